"""What the project promises about itself: its files, requirements, commands and the shape of its code."""

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hfgd_jax import configs

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hfgd_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TARGETS = ("demo", "demo-compare", "test", "parity", "slow", "browser", "chaos", "lint", "format")

# Where the name to import is not the name to install.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "tensorflow_datasets": "tensorflow-datasets",
}
# tensorflow-datasets imports them, jax.export the last, undeclared
NOT_IMPORTED_HERE = {"array-record", "filelock", "importlib-resources", "flatbuffers"}
# Used where they are installed, told to install where they are needed.
OPTIONAL = {"wandb", "huggingface_hub", "jax2onnx", "onnx", "onnxruntime", "starlette", "uvicorn"}
OPTIONAL |= {"matplotlib", "sklearn", "umap"}  # of figures


def _lines(name):
    text = (ROOT / name).read_text()
    return [line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()]


@functools.cache
def _project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@functools.cache
def _asked():
    extras = _project()["optional-dependencies"]
    return [Requirement(line) for line in _lines("requirements.txt") + extras["dev"] + extras["parity"]]


@functools.cache
def _make(target):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--no-print-directory", "--dry-run", "--always-make", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ")


def test_license_is_the_whole_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:5] == ["Apache", "License", "Version", "2.0,", "January"]
    assert "9. Accepting Warranty or Additional Liability." in text and "END OF TERMS AND CONDITIONS" in text
    assert _project()["license"] == "Apache-2.0" and _project()["license-files"] == ["LICENSE"]


def test_every_requirement_is_pinned_within_its_range():
    pins = {}
    for line in _lines("constraints.txt"):
        name, _, version = line.partition("==")
        assert version, f"constraints.txt: {line!r} is no pin"
        pins[canonicalize_name(name)] = version
    for requirement in _asked():
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against the pin {version}"
        assert re.match(r">=\d", str(requirement.specifier)), f"{requirement}: say from which version on"
    for extra in ("gpu", "tpu"):
        (jax,) = map(Requirement, _project()["optional-dependencies"][extra])
        assert jax.name == "jax" and jax.extras and jax.specifier.contains(pins["jax"])


def test_every_import_is_asked_for_and_everything_asked_for_is_imported():
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported -= sys.stdlib_module_names | {"hfgd_jax"} | OPTIONAL
    used = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported}
    asked = {canonicalize_name(Requirement(line).name) for line in _lines("requirements.txt")}
    assert used == asked - NOT_IMPORTED_HERE


@pytest.mark.parametrize("target", TARGETS)
def test_make_targets_set_up_first_and_then_run_what_exists(target):
    commands = _make(target)
    assert commands.index("-m venv .venv") < commands.index("pip install") < commands.index("touch .venv")
    run = commands[commands.index("touch .venv") :]
    modules = re.findall(r"-m (hfgd_jax[\w.]*|pytest|ruff|mypy)", run)
    assert modules
    for module in modules:
        if module.startswith("hfgd_jax"):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for config in re.findall(r"--config (\S+?\.py)", run):
        assert (ROOT / config).is_file(), config


def test_demo_ends_with_the_score_and_where_things_are():
    commands = _make("demo")
    assert re.search(r"scores --workdirs runs/demo\n", commands)
    tail = commands.strip().splitlines()[-3:]
    assert [line.split()[1].strip('":') for line in tail] == ["masks", "overlays", "metrics"]
    assert "--output runs/demo/predictions " in commands
    assert "runs/demo/predictions/masks" in tail[0] and "runs/demo/metrics.json" in tail[2]


def test_wrong_python_is_told(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    old = tmp_path / "python"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); $2"\n')
    old.chmod(0o755)
    command = ["make", f"PYTHON={old}", f"VENV={tmp_path}/venv", "venv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_runs_the_users_commands():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0].endswith("bash") and "set -euo pipefail" in lines
    assert {"make test", "make parity", "make lint"} <= set(lines)


def test_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text()
    modules = re.findall(r"python -m (hfgd_jax[\w.]*)", text)
    assert "hfgd_jax.main" in modules
    for module in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for path in re.findall(r"\b((?:configs|docs|hfgd_jax|launch|tests)/[\w/]+\.(?:py|md|ipynb))", text):
        assert (ROOT / path).is_file(), path


def test_configs_open_with_their_command():
    for name in configs.names():
        docstring = ast.get_docstring(ast.parse(configs.path(name).read_text()))
        assert f"python -m hfgd_jax.main --config configs/{name}.py" in docstring, name


def test_sources_are_short_and_public_functions_annotated():
    """What ruff has no rule for; its rules ask for the docstrings."""
    for path in SOURCES:
        text = path.read_text()
        assert text.count("\n") < 400, f"{path}: split the file"
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                bare = [argument.arg for argument in arguments if argument.annotation is None]
                assert not bare, f"{path}: {node.name}: annotate {bare}"
