"""The commands of README.md and docs/*.md run as they stand there, at a tiny size (`page_commands.py`)."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import hub_server
import numpy as np
import page_commands
import pytest
from page_commands import ROOT, SMALL, Command
from PIL import Image
from safetensors.numpy import save_file
from tiny_weights import UPERNET, random_backbone, random_upernet

from hfgd_jax import cli
from hfgd_jax import config as configuration
from hfgd_jax.data import builders
from hfgd_jax.data.labels import TABLES

COMMANDS = page_commands.all_commands()
RUN = [c for c in COMMANDS if not c.reason() and not page_commands.LOOKED_UP.fullmatch(c.text)]
PAGES = sorted({command.page for command in RUN})
REPOSITORIES = {  # of the hub, and whose tensors their files hold
    "timm/resnet50.a1_in1k": "resnet18",
    "timm/tf_efficientnet_b3.ap_in1k": "efficientnet_lite0",
    "timm/swin_tiny_patch4_window7_224.ms_in22k": "swin_t",
}
# What a block of Python takes for granted.
BEFORE = "import numpy as np\nimages = np.zeros((2, 40, 50, 3), np.uint8)\n"
CHECKED = "no problems found\nits config: configs/folder.py:classes=3,images=90x69\n"  # of `mine`
SERVING = "serving step"  # begins the line that tells that requests are answered


def test_every_command_is_run_or_looked_up_or_has_a_reason():
    assert len(COMMANDS) > 100
    problems = [problem for command in COMMANDS if (problem := command.problem())]
    assert not problems, "\n".join(problems)


def test_a_command_that_no_test_knows_is_told():
    (command,) = page_commands.commands_of("docs/new.md", "A\n\n```\npodman run image  # ours\n```\n")
    assert command == Command("docs/new.md", 4, "podman run image")
    assert "docs/new.md:4: `podman run image` is not tested" in command.problem()


def test_reasons_and_what_makes_commands_small_are_needed():
    """A rule that fits no command stands for one that has gone."""
    texts = [command.text for command in COMMANDS]
    for pattern in page_commands.NOT_RUN:
        assert any(re.fullmatch(pattern, text) for text in texts), pattern
    for i, (pattern, _) in enumerate(SMALL):
        before = [made(text, SMALL[:i]) for text in texts]
        assert any(re.search(pattern, text) for text in before), pattern


def made(text, rules):
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def test_targets_and_extras_that_are_named_are_there():
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = [match for c in COMMANDS if (match := page_commands.LOOKED_UP.fullmatch(c.text))]
    assert len(found) > 5
    for match in found:
        target, extra = match["target"], match["extra"]
        assert not target or re.search(rf"^{target}:", makefile, re.MULTILINE), match[0]
        assert not extra or extra in extras, match[0]


@pytest.mark.parametrize(
    "command", [c for c in RUN if c.config and not c.code], ids=lambda c: f"{c.page}:{c.line}"
)
def test_configs_are_valid_at_their_full_size(command):
    """What `make slow` runs is tiny; a placeholder (`CONFIG`) is made a name."""
    configuration.validate(page_commands.config_of(made(command.text, SMALL[1:3])))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """Weights of every name, and a folder as transformers saves it."""
    folder = tmp_path_factory.mktemp("made")
    for name, backbone in {
        "resnet18": "resnet18", "resnet50": "resnet18", "efficientnet_lite0": "efficientnet_lite0",
        "model": "convnext_t", "swin_t": "swin_t",
    }.items():  # fmt: skip
        save_file(random_backbone(backbone), folder / f"{name}.safetensors")
    upernet = folder / "upernet-convnext-tiny"
    upernet.mkdir()
    save_file(random_upernet(), upernet / "model.safetensors")
    (upernet / "config.json").write_text(json.dumps(UPERNET))
    return folder


@pytest.fixture(scope="module")
def hub(made_once):
    """A hub of this machine with the repositories that the pages name."""
    files = {
        name: {"model.safetensors": (made_once / f"{tensors}.safetensors").read_bytes()}
        for name, tensors in REPOSITORIES.items()
    }
    folder = made_once / "upernet-convnext-tiny"
    files["openmmlab/upernet-convnext-tiny"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    running = hub_server.Running(type("Hub", (hub_server.Hub,), {"files": files, "errors": {}}))
    yield f"http://127.0.0.1:{running.server.server_port}"
    running.stop()


@pytest.fixture(scope="module")
def environment(user_env, hub, made_once):
    """A user's, with the hub of this machine; `python` and `hfgd` are those of this environment."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), user_env["PATH"]])
    python = os.pathsep.join([str(ROOT), "BUNDLE"])  # the checkout wherever a command runs; a bundle's loader
    hf = {"HF_ENDPOINT": hub, "HF_HOME": str(made_once / "hub"), "HF_TOKEN": "good"}
    return user_env | {"PATH": paths, "PYTHONPATH": python, "PYTHONUNBUFFERED": "1"} | hf


def write_folder(folder, classes, count=8):
    """Pictures and masks of stripes in the layout of docs/custom-data.md."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    colours = np.random.default_rng(0).integers(0, 255, (256, 3)).astype(np.uint8)
    for i in range(count):
        rows, columns = np.mgrid[: 66 + i, :90]
        mask = ((rows // 8 + columns // 8 + i) % len(classes)).astype(np.uint8)
        mask[0] = 255
        Image.fromarray(colours[mask]).save(folder / "images" / f"{i:04d}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{i:04d}.png")


@pytest.fixture(scope="module")
def world(made_once, camvid_folder, camvid_dir, shapes_dir, environment, tmp_path_factory):
    """A folder with all that the pages have: data raw and prepared, photographs, weights, and two runs."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("configs", "launch", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for path in made_once.iterdir():
        (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", folder / "docs")
    for done in ("camvid/lite0_1200_whole", "msrc/lite0_800"):  # what is recorded is not run again
        for path in (folder / "docs" / "results" / done).glob("hfgd_seed*.json"):
            path.unlink()
    shutil.copytree(camvid_folder, folder / "RAW")
    write_folder(folder / "RAW", [f"class{k}" for k in range(21)])  # beside it: MSRC's
    write_folder(folder / "mine", ["ground", "square", "bar"])
    write_folder(folder / "photos", TABLES["camvid"].classes)
    for name in ("PHOTOS", "new", "photos"):  # in photos/ itself for README.md
        shutil.copytree(folder / "photos" / "images", folder / name, dirs_exist_ok=True)
    (folder / "new" / "0000.jpg").rename(folder / "new" / "048.jpg")
    (folder / "new" / "notes.jpg").write_text("no picture")
    shutil.copy(folder / "new" / "048.jpg", folder / "photo.jpg")
    Image.open(folder / "photo.jpg").save(folder / "other.png")
    np.save(folder / "image.npy", np.asarray(Image.open(folder / "photo.jpg")))
    for data in (camvid_dir, shapes_dir):
        shutil.copytree(data, folder / "data", dirs_exist_ok=True)
    builders.prepare("folder", folder / "mine", folder / "data", report=lambda line: None)
    (folder / "BUCKET").mkdir()
    for name in ("data", "photos"):
        shutil.copytree(folder / name, folder / "BUCKET" / name)
    for method in ("hfgd", "sfpn"):
        config = f"--config configs/camvid.py:method={method},tiny --config.eval.details=True"
        run(f"python -m hfgd_jax.main {config} --workdir made/{method}", folder, environment)
    return folder


def run(text, folder, environment, code=0):
    """A line of the shell; what it prints."""
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == code, f"{text}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def provide_runs(text, folder, world):
    """Runs that a command reads and no command of its page has made are copies of the world's."""
    if "--config" in re.sub(r"--config\.\S+", "", text):
        return
    names = ",".join(re.findall(r"--(?:workdirs?|compare)[ =](\S+)", text)).split(",")
    for name in (name for name in names if name and not (folder / name).exists()):
        shutil.copytree(
            world / "made" / ("sfpn" if "sfpn" in name else "hfgd"), folder / name, copy_function=link
        )
        if name.endswith("_seed1"):
            path = folder / name / "config.json"
            config = json.loads(path.read_text())
            config["train"]["seed"] = 1
            path.write_text(json.dumps(config))


def link(source, target):
    """Copies what a run changes, and links the rest: checkpoints are large."""
    (shutil.copy if ".json" in Path(source).suffix else os.link)(source, target)


class Shell:
    """Runs a page's commands in its folder, and keeps its servers and what it has exported."""

    def __init__(self, folder, world, environment, port):
        self.folder, self.world, self.environment, self.port = folder, world, dict(environment), port
        self.servers = []

    def __call__(self, command):
        """Runs it and returns what it prints."""
        text = command.small().replace(":8000", f":{self.port}")
        if command.python:
            (self.folder / "block.py").write_text(BEFORE + text)
            text = "python block.py"
        if exported := re.match(r"export (.*)", text):
            self.environment |= dict(word.split("=", 1) for word in exported[1].split())
            return ""
        provide_runs(text, self.folder, self.world)
        if re.search(r"tools\.serve |hfgd serve ", text):
            return self.serve(f"{text} --port {self.port}")
        code = 0 if command.code == 128 + signal.SIGINT else command.code  # nobody presses Ctrl-C
        if "figures features" in text and not importlib.util.find_spec("umap"):
            code = cli.USER_ERROR  # the extra [figures] is not among the tests' packages
        return run(text, self.folder, self.environment, code)

    def serve(self, text):
        """Starts a server and waits until it answers."""
        server = subprocess.Popen(
            ["bash", "-c", f"exec {text}"], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.servers.append(server)
        printed = ""
        for line in server.stdout:
            printed += line
            if line.startswith(SERVING):
                return printed
        raise AssertionError(f"{text}\n{printed}")

    def stop(self):
        """Ends the servers, as Ctrl-C does."""
        for server in self.servers:
            server.send_signal(signal.SIGINT)
        return [server.wait(60) for server in self.servers]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, world, environment, free_port, tmp_path):
    """In their order, in one folder; `-s` shows how long each took."""
    folder = tmp_path / "page"
    shutil.copytree(world, folder, symlinks=True, ignore=shutil.ignore_patterns("made"))
    shell = Shell(folder, world, environment, free_port())
    try:
        for command in (command for command in RUN if command.page == page):
            start = time.monotonic()
            printed = shell(command)
            assert "check_dataset --dataset folder --source mine" not in command.text or printed.endswith(
                CHECKED
            )
            print(f"{time.monotonic() - start:6.1f} s  {command.text.splitlines()[0]}", flush=True)
    finally:
        ended = shell.stop()
    assert all(code == 128 + signal.SIGINT for code in ended), ended
    if page == "docs/custom-data.md":
        check_custom_data(folder)


def check_custom_data(folder):
    """What docs/custom-data.md says of its commands."""
    mine = folder / "runs" / "mine"
    with Image.open(mine / "samples.png") as image:
        assert image.size[0] > 1000 and image.size[1] > 8 * 280
    assert set(json.loads((mine / "metrics.json").read_text())["per_class"]) == {"ground", "square", "bar"}
    assert len(list((mine / "best").iterdir())) == 1
    for path in (folder / "mine" / "images").iterdir():
        assert list((mine / "predictions" / "overlays").glob(f"{path.stem}.*"))
        with (
            Image.open(path) as image,
            Image.open(mine / "predictions" / "masks" / f"{path.stem}.png") as mask,
        ):
            assert image.size == mask.size
