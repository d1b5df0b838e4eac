"""docs/custom-data.md: its five commands run as they stand there, tiny; the others have valid configs."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfgd_jax import config as configuration
from hfgd_jax import configs

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "custom-data.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [
    [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    for block in BLOCKS
    if block.startswith("python ")
]


def write_folder(folder, count=12):
    """Grey pictures with a red square and a blue bar, which are the classes 1 and 2."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("ground\nsquare\nbar\n")
    for i in range(count):
        mask = np.zeros((66 + i, 90), np.uint8)
        top, left = rng.integers(0, 40, 2)
        mask[top : top + 20, left : left + 20] = 1
        mask[:, 70:76] = 2
        mask[0] = 255
        image = np.array([[120, 120, 120], [200, 40, 40], [40, 40, 200]])[mask % 255]
        image = (image + rng.integers(0, 30, image.shape)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{i:04d}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{i:04d}.png")


def made_tiny(command):
    """`tiny` beside the config's other arguments."""
    return [f"{x},tiny" if x.startswith("configs/folder.py:") else x for x in command]


@pytest.mark.slow
def test_the_five_commands(tmp_path, user_env):
    write_folder(tmp_path / "mine")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = COMMANDS[0]
    assert len(commands) == 5 and all(command[:2] == ["python", "-m"] for command in commands)
    printed = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, *made_tiny(command)[1:]],
            cwd=tmp_path,
            env=user_env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        printed.append(done.stdout)
    assert printed[0].endswith("no problems found\nits config: configs/folder.py:classes=3,images=90x71\n")
    assert (tmp_path / "data" / "folder").is_dir()
    run = tmp_path / "runs" / "mine"
    with Image.open(run / "samples.png") as image:
        assert image.size[0] > 1000 and image.size[1] > 8 * 280
    summary = json.loads((run / "metrics.json").read_text())
    assert set(summary["per_class"]) == {"ground", "square", "bar"}
    assert len(list((run / "best").iterdir())) == 1
    names = {f"{i:04d}" for i in range(12)}
    for part in ("masks", "overlays"):
        assert names <= {path.stem for path in (run / "predictions" / part).iterdir()}, part
    for path in (tmp_path / "mine" / "images").iterdir():
        with (
            Image.open(path) as image,
            Image.open(run / "predictions" / "masks" / f"{path.stem}.png") as mask,
        ):
            assert image.size == mask.size


def config_of(command):
    """What a command's `--config` and its overrides stand for, or the config of a run."""
    arguments = command[command.index("--config") + 1].partition(":")[2] if "--config" in command else ""
    config = configs.load("folder", arguments)
    for override in (x for x in command if x.startswith("--config.")):
        apply(config, override)
    return config


def apply(config, override):
    """A dotted override of a field that there is, as the command line has it."""
    name, _, value = override.removeprefix("--config.").partition("=")
    before = dict(config.items())
    for part in name.split("."):
        before = before[part]
    config.update_from_flattened_dict({name: value if isinstance(before, str) else ast.literal_eval(value)})


@pytest.mark.parametrize(
    "command", [c for block in COMMANDS[1:] for c in block], ids=lambda c: " ".join(c)[-40:]
)
def test_the_other_commands_have_valid_configs(command):
    assert command[:3] == ["python", "-m", "hfgd_jax.main"] and "--workdir" in command
    configuration.validate(config_of(command))


def test_what_the_five_commands_train_is_as_the_page_says():
    config = config_of(COMMANDS[0][3])
    configuration.validate(config)
    assert f", {config.train.steps} steps." in TEXT and f"evaluates every {config.eval.every} steps" in TEXT
    assert not config.model.backbone.weights and config.data.num_classes == 3
    large = config_of(COMMANDS[2][0])
    assert f"{large.train.steps} steps of {large.train.batch_size}" in TEXT


def test_the_fields_of_the_text_are_valid():
    found = [x.replace('"', "") for x in re.findall(r"`(--config\.[\w.]+=[^`]+)`", TEXT)]
    assert len(found) >= 6
    for override in found:
        config = config_of(COMMANDS[0][3])
        before = configuration.to_json(config)
        apply(config, override)
        configuration.validate(config)
        assert configuration.to_json(config) != before, override


def test_complaints_are_those_that_the_check_has():
    sources = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text())  # messages over several lines
        for path in [*(ROOT / "hfgd_jax/data").rglob("*.py"), *(ROOT / "hfgd_jax/tools").glob("*.py")]
    )
    table = TEXT.partition("| it says |")[2].partition("\n\n")[0]
    said = [x for line in table.splitlines()[2:] for x in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert len(said) >= 10
    for phrase in said:
        start, _, end = phrase.partition("in train")  # the split's name is put in
        assert start.strip() in sources and end.strip() in sources, phrase
