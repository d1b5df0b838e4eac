"""The bundle of a trained run, in an environment of its own."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_exports import ALONE, pictures

from hfgd_jax import config as configuration
from hfgd_jax.export import exporter, loader


@pytest.mark.slow
def test_a_trained_models_bundle_runs_in_a_fresh_environment(user_env, tmp_path):
    """A venv with jax, numpy and flatbuffers; batch 1 and 3, two sizes, three platforms."""
    workdir, path, root = tmp_path / "demo", tmp_path / "bundle", Path(__file__).parents[2]
    command = [sys.executable, "-m", "hfgd_jax.main", f"--workdir={workdir}"]
    more = ["--config=configs/demo.py", "--config.train.steps=100", f"--config.data.data_dir={tmp_path}"]
    subprocess.run([*command, *more], check=True, cwd=root, env=user_env)
    subprocess.run([*command, "--mode=export", f"--output={path}"], check=True, cwd=root, env=user_env)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    install = ["-m", "pip", "install", "-q", "-c", root / "constraints.txt", "jax", "numpy", "flatbuffers"]
    subprocess.run([python, *install], check=True)
    given = {
        f"{batch}x{side}": pictures(batch, *side, seed=batch)
        for batch in (1, 3)
        for side in ((129, 161), (100, 150))
    }
    np.savez(tmp_path / "pictures.npz", **given)
    arguments = [path, tmp_path / "pictures.npz", tmp_path / "found.npz"]
    subprocess.run([python, "-c", ALONE, *arguments], check=True, cwd=tmp_path, env=user_env)
    manifest, found = loader.verify(path), np.load(tmp_path / "found.npz")
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    config = configuration.from_json((path / "config.json").read_text())
    _, variables, _, _ = exporter.load(config, str(workdir), "latest")
    reference = exporter.evaluated(config, jax.device_get(variables))
    for name, images in given.items():
        wanted = reference(images)
        gap = np.abs(found[f"float32 {name} logits"] - wanted).max() / np.abs(wanted).max()
        share = np.mean(found[f"bfloat16 {name} masks"] != wanted.argmax(-1))
        print(
            f"{name}: max |difference| {gap:.1e} of the largest logit; bfloat16 masks differ at {share:.2%}"
        )
        assert gap <= 1e-4
