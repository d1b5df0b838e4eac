"""Programs are kept in the user's cache folder from one command to the next, unless JAX is told otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from hfgd_jax.runtime import compilation_cache

PROGRAM = """
import sys
if {early}:
    import jax
from hfgd_jax.runtime import compilation_cache, shell


def main(argv):
    import jax
    if {several}:
        compilation_cache.leave()
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("/cache_hits")))
    jax.jit(lambda x: x * 3 + 1)(2.0)
    print(sum(hits))


shell.run(main)
"""


def hits(home: Path, *, early: bool = True, several: bool = False, **variables: str) -> int:
    """How many programs a command with this home finds."""
    variables |= {"HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "XDG_"))}
    code = PROGRAM.format(early=early, several=several)
    found = subprocess.run([sys.executable, "-c", code], env=ours | variables, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    return int(found.stdout)


def test_the_next_command_finds_what_one_has_compiled(tmp_path):
    assert hits(tmp_path, early=False) == 0
    assert list(tmp_path.glob(".cache/hfgd_jax/compiled/*/*-cache"))
    assert hits(tmp_path) > 0
    assert hits(tmp_path, several=True) == 0  # one of several processes compiles for itself
    assert hits(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "another")) == 0
    assert hits(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "another")) > 0


@pytest.fixture
def settings(monkeypatch):
    """What JAX would be told, in place of telling it."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    return found


def test_the_folder_is_bounded_and_its_size_is_the_users(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "1000")
    compilation_cache.use()
    folder = settings["jax_compilation_cache_dir"]
    assert Path(folder).parent == tmp_path / "hfgd_jax" / "compiled"
    assert settings["jax_compilation_cache_max_size"] == 1000


def test_without_a_place_to_write_nothing_is_kept(settings, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.use()
    assert not settings


def test_each_kind_of_processor_has_a_folder_of_its_own(monkeypatch):
    here = compilation_cache.folder()
    monkeypatch.setattr(Path, "read_text", lambda self: "model name: another\nflags : sse2 avx512f\n")
    assert compilation_cache.folder() != here
