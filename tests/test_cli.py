"""The command `hfgd`: its subcommands are those of the package, with their options and exit codes."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hfgd_jax import __version__, cli, configs
from hfgd_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def hfgd(monkeypatch, capsys):
    """Runs the command in this process: for what ends before a subcommand's module runs."""

    def call(*words):
        cli.forget_options()
        monkeypatch.setattr(sys, "argv", ["hfgd", *words])
        monkeypatch.setattr(cli.interrupts, "while_loading", lambda: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(ended.value.code, *capsys.readouterr())

    yield call
    cli.forget_options()


def test_every_tool_has_a_subcommand():
    modules = {command.module for command in cli.COMMANDS.values()}
    tools = {
        f"hfgd_jax.tools.{path.stem}"
        for path in (ROOT / "hfgd_jax" / "tools").glob("*.py")
        if "def main(" in path.read_text()
    }
    assert modules == tools | {"hfgd_jax.main"}
    modes = [command.mode for command in cli.COMMANDS.values() if command.mode]
    assert modes == ["train", "eval", "predict", "export"]


def test_help_lists_the_commands_and_an_unknown_one_the_nearest(hfgd):
    done = hfgd("--help")
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)
    done = hfgd("figures", "--help")
    listed = [line.split("  ")[1] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert done.returncode == 0 and listed == [name for name in cli.COMMANDS if name.startswith("figures ")]
    assert hfgd("weights").returncode == 2 and "weights import" in hfgd("weights").stdout
    assert "did you mean 'figures compare'" in hfgd("figures", "compar").stderr
    done = hfgd("trian", "--workdir=x")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: hfgd trian: no such command; did you mean 'train'?"
    )


def test_help_of_a_command_lists_its_options_alone(hfgd):
    predict, prepare = hfgd("predict", "--help").stdout, hfgd("prepare", "--help").stdout
    for name in ("config", "workdir", "checkpoint", "input", "output", "ids", "overwrite"):
        assert f"\n  --{name}\n" in predict
    assert "--dtypes" not in predict and "--mode" not in predict and "--processes" in predict
    assert "--dataset" in prepare and "(default: 'data')" in prepare and "--workdir" not in prepare


def test_a_command_runs_with_the_options_and_exit_codes_of_its_module(user_env, tmp_path):
    def process(*words):
        code = "from hfgd_jax import cli; cli.main()"
        return subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, env=user_env
        )

    done = process("macs", "--config=demo:tiny", "--size=65x97")
    assert done.returncode == 0 and "backbone" in done.stdout, done.stderr
    done = process("eval", f"--workdir={tmp_path / 'none'}")
    assert done.returncode == 2 and "holds no run" in done.stderr
    done = process("predict", f"--workdir={tmp_path}", "--config=demo", "--output=x")
    assert done.returncode == 2 and "--input: needed with --mode=predict" in done.stderr


def test_a_config_is_found_by_its_name():
    camvid = str(configs.path("camvid"))
    assert cli.with_config_files(["--config=camvid:tiny,method=sfpn", "--workdir=demo"]) == [
        f"--config={camvid}:tiny,method=sfpn", "--workdir=demo"
    ]  # fmt: skip
    assert cli.with_config_files(["--config", "camvid", "demo"]) == ["--config", camvid, "demo"]
    assert cli.with_config_files(["--config=mine.py:camvid"]) == ["--config=mine.py:camvid"]
    assert cli.with_config_files(["--config=runs/demo"]) == ["--config=runs/demo"]
    with pytest.raises(UserError, match="config 'camvit': unknown; did you mean 'camvid'"):
        cli.with_config_files(["--config", "camvit:tiny"])


def test_completion_is_a_script_that_knows_commands_and_options(hfgd):
    script = hfgd("completion", "bash").stdout

    def words(*typed):
        line = f"COMP_WORDS=({' '.join(['hfgd', *typed])}); COMP_CWORD={len(typed)}; _hfgd"
        line += "; echo ${COMPREPLY[*]}"
        return subprocess.run(
            ["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True
        ).stdout.split()

    assert words("pre") == ["predict", "prepare"]
    assert words("weights", "''") == ["import", "export"]
    assert words("predict", "--in") == ["--input"] and words("export", "--in") == []
    assert words("weights", "import", "--so") == ["--source"]
    assert words("figures", "co") == ["compare", "contamination"]
    assert words("figures", "features", "--per") == ["--per_class"]
    assert hfgd("completion", "tcsh").returncode == 2
    assert hfgd("completion", "zsh").stdout.startswith("autoload ")


def test_without_a_command_the_usage_is_an_error_and_the_version_is_known(hfgd):
    done = hfgd()
    assert done.returncode == 2 and done.stdout.startswith("hfgd: ")
    assert hfgd("--version") == (0, f"hfgd_jax {__version__}\n", "")
    done = hfgd("macs", "--config=dema")
    assert done.returncode == 2 and "config 'dema': unknown; did you mean 'demo'" in done.stderr
