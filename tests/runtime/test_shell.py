"""What every command shares: exit codes, one-line errors, overrides of the config."""

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import hashlib, os, signal, threading, time
from absl import flags
from ml_collections import config_flags
from hfgd_jax.runtime import shell
from hfgd_jax.errors import UserError

flags.DEFINE_string("do", "", "What to do.")
flags.DEFINE_integer("code", None, "What to return.")
config_flags.DEFINE_config_file("config")


def main(argv):
    if flags.FLAGS.do == "user":
        raise UserError("thing 'x': is wrong\\n  in two lines")
    if flags.FLAGS.do == "compile":  # native code that no handler of Python's interrupts
        print("compiling", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
    if flags.FLAGS.do == "hang":
        threading.Thread(target=threading.Event().wait).start()
        raise UserError("wrong")
    if flags.FLAGS.do.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, flags.FLAGS.do))
        time.sleep(30)
    if flags.FLAGS.do == "bug":
        raise ValueError("a bug")
    print("steps", flags.FLAGS.config.train.steps)
    return flags.FLAGS.code


shell.run(main)
"""

CONFIG = """
from ml_collections import ConfigDict
from hfgd_jax.errors import UserError


def get_config(text=None):
    if text:
        raise UserError(f"config argument {text!r}: unknown")
    return ConfigDict({"train": {"steps": 5}, "data": {"crop": (3, 4)}})
"""


def run(folder, *arguments):
    (folder / "config.py").write_text(CONFIG)
    (folder / "broken.py").write_text("def get_config(:")
    command = [sys.executable, "-c", PROGRAM, "--config=config.py", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=environment)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        ([], 0, ""),
        (["--code=3"], 3, ""),
        (["--do=user"], 2, "error: thing 'x': is wrong in two lines\n"),
        (["--do=SIGINT"], 130, "SIGINT: ending\n"),
        (["--do=SIGTERM"], 143, "SIGTERM: ending\n"),
        (["--do=hang"], 2, "error: wrong\n"),  # within seconds, whatever its threads do
        (["--code=three"], 2, "error: flag --code=three: invalid literal"),
        (["--dos=user"], 2, "error: --dos: no such option; did you mean --do?\n"),
        (["--confg", "x.py", "--do"], 2, "error: --confg: no such option; did you mean --config?\n"),
        (["--config.train.stesp=4"], 2, "error: --config.train.stesp: no such field; did you mean config.t"),
        (["--config.train.steps=many"], 2, "error: "),
        (["--config.train.steps.more=1"], 2, "error: "),
        (["--config.data.crop=(1,)x"], 2, "error: "),
        (["--config=config.py:nonsense"], 2, "error: "),
        (["--config=confg.py"], 2, "error: --config=confg.py: no such file; did you mean config.py?\n"),
        (["--config=broken.py"], 2, "error: "),
        (["user"], 2, "error: unexpected argument 'user'"),
    ],
)
def test_each_ending_has_its_exit_code_and_one_line(arguments, code, error, tmp_path):
    done = run(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(error) and done.stderr.count("\n") == (1 if error else 0)
    assert ("steps 5" in done.stdout) == (not error)


def test_the_message_of_an_error_in_a_config_file_is_kept(tmp_path):
    assert "config argument 'nonsense': unknown" in run(tmp_path, "--config=config.py:nonsense").stderr
    assert "steps" in run(tmp_path, "--config.train.stesp=4").stderr
    assert "nowhere.py" in run(tmp_path, "--config=nowhere.py").stderr


def test_config_overrides_reach_the_program(tmp_path):
    assert run(tmp_path, "--config.train.steps=7").stdout == "steps 7\n"


def test_a_signal_is_answered_while_native_code_runs_and_a_second_one_ends(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    command = [sys.executable, "-c", PROGRAM, "--config=config.py", "--do=compile"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        assert process.stdout.readline() == "compiling\n"
        time.sleep(0.5)  # it is in native code by now
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # passed on by a supervisor, say: the same once more
        assert process.stderr.readline() == "SIGINT: ending\n"
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143


def test_help_lists_the_programs_own_options_and_the_configs_fields(tmp_path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "\n  --do\n      What to do.\n" in done.stdout and "--verbosity" not in done.stdout
    assert "\n  --config.train.steps=" in done.stdout


def test_loading_is_told_when_it_takes_long_and_ends_at_a_signal():
    program = (
        "from hfgd_jax.runtime import interrupts; interrupts.while_loading(0.05); import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        assert "loading the libraries" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "SIGTERM: ending\n" and process.wait(10) == 143


def test_a_bug_keeps_its_traceback(tmp_path):
    done = run(tmp_path, "--do=bug")
    assert done.returncode == 1 and "Traceback" in done.stderr and "a bug" in done.stderr
