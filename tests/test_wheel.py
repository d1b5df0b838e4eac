"""The package as a wheel in an empty environment, away from the checkout: its commands find all they read."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BUILT_OF = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "configs", "hfgd_jax")


def data_files(package):
    return {
        os.path.relpath(Path(folder) / name, package)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if not name.endswith((".py", ".pyc"))
    }


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_trains_reports_and_predicts(user_env, tmp_path):
    environment = {key: value for key, value in user_env.items() if key != "PYTHONPATH"}
    source, venv, away = (tmp_path / name for name in ("source", "venv", "away"))
    python, hfgd = venv / "bin" / "python", venv / "bin" / "hfgd"
    source.mkdir()
    away.mkdir()

    def run(*words):
        words = list(map(str, words))
        done = subprocess.run(words, cwd=away, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    # A copy: setuptools leaves folders where it builds, and takes what it finds in them.
    run("cp", "-a", *(ROOT / name for name in BUILT_OF), source)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", source, "-w", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", venv)
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    installed = Path(run(python, "-c", "import hfgd_jax; print(hfgd_jax.__path__[0])").strip())
    assert installed.is_relative_to(venv) and data_files(installed) == data_files(ROOT / "hfgd_jax")

    # What needs an extra says what it does without it.
    for words in (["--help"], ["figures", "--help"], ["figures", "compare", "--help"], ["serve", "--help"]):
        run(hfgd, *words)
    run(hfgd, "train", "--config=demo:tiny", "--workdir=run", "--config.train.steps=2")
    run(hfgd, "report", "--workdir=run", "--output=report")
    assert (away / "report" / "index.html").is_file()
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(photo).save(away / "photo.png")
    run(hfgd, "predict", "--workdir=run", "--input=photo.png", "--output=out")
    with Image.open(away / "out" / "masks" / "photo.png") as mask:
        assert mask.size == (60, 40) and mask.mode == "P"
