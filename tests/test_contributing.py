"""What CONTRIBUTING.md says of an upsampler, followed to the letter in a copy of the package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import jax, numpy as np
from hfgd_jax import build_model, configs
config = configs.load("demo", tiny=True)
config.model.upsampler = "concat"
network = build_model(config)
assert config.model.guidance.tokens and type(network.upsampler).__name__ == "Concat"
images = np.zeros((1, 65, 97, 3), np.uint8)
variables = jax.eval_shape(lambda: network.init(jax.random.PRNGKey(0), images, train=False))
assert "out" in variables["params"]["upsampler"]
print(jax.eval_shape(lambda v: network.apply(v, images, train=False), variables).logits.shape)
"""


def test_an_upsampler_is_one_file_and_one_line(tmp_path, user_env):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text[text.index("## An upsampler") : text.index("## A context encoder")]
    module, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    path, registry = re.findall(r"`(hfgd_jax/\S+\.py)`", section)
    name = re.search(r"line goes into `(\w+)`", section)[1]
    shutil.copytree(ROOT / "hfgd_jax", tmp_path / "hfgd_jax", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / path).write_text(module)
    before = (tmp_path / registry).read_text()
    after = before.replace(f"{name} = {{\n", f"{name} = {{\n{line}")
    assert after.count("\n") == before.count("\n") + 1
    (tmp_path / registry).write_text(after)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=user_env | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 17, 25, 9)\n"


def test_the_files_that_it_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = re.findall(r"`((?:hfgd_jax|tests|configs|docs)/[\w/.]+)`", text) + re.findall(
        r"\]\(([\w/.]+)\)", text
    )
    missing = [n for n in names if "NAME" not in n and "concat" not in n and not (ROOT / n).exists()]
    assert len(names) > 10 and not missing
