"""What the launchers' tests share: the scripts as modules and commands, and the front door's own parser."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

# Each command line in a fork of its own, since flags are parsed once a process.
_PARSER = """
import json, os, sys
from absl import flags
from hfgd_jax import main
main.define_flags()
for argv in json.loads(sys.argv[1]):
    if not os.fork():
        sys.argv = argv = main.with_saved_config(argv)  # ml_collections reads overrides from there
        rest = flags.FLAGS(argv)
        assert rest == argv[:1], rest
        given = {n: flags.FLAGS[n].value for n in flags.FLAGS if flags.FLAGS[n].present}
        print(json.dumps({n: v for n, v in given.items() if isinstance(v, str | int)}), flush=True)
        os._exit(0)
    assert not os.wait()[1]
"""


def load(name: str) -> ModuleType:
    """A script of `launch/` as a module."""
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words: Any, cwd: Path = ROOT, **env: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, with these variables on top of a bare environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=kept | env, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def main_flags(*commands: list[str]) -> list[dict[str, Any]]:
    """What each command `... -m hfgd_jax.main ARGUMENTS` sets, as the front door itself parses it."""
    lines = []
    for words in commands:
        start = words.index("hfgd_jax.main")
        assert words[start - 1] == "-m", words
        lines.append(["main", *words[start + 1 :]])
    code, out, err = run(
        sys.executable, "-W", "ignore", "-c", _PARSER, json.dumps(lines), JAX_PLATFORMS="cpu"
    )
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]
