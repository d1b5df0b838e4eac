"""The commands of the pages: found in their fenced blocks, and made small.

A block without a language holds commands, or, with `$ ` before them, commands and what they print; a block of
another kind names its language (`text`). Blocks of Python count as commands but on the pages of `API`.
"""

import ast
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from hfgd_jax import configs

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
API = ("README.md", "CONTRIBUTING.md", "docs/api.md")  # test_api.py and test_contributing.py run their Python

# Commands that are not run, and why. The whole of a command matches.
NOT_RUN = {
    r"pip install jax numpy flatbuffers": "tests/export/test_trained_bundle.py runs a bundle so",
    r"python -m venv onnx|onnx/bin/.*": "jax2onnx comes from an index, unpinned",
    r"gcloud auth .*": "needs a Google account",
    r"xpk .*": "needs xpk and a cluster; tests/launch has the like of it, gke_jobset.py",
}

# Commands that are looked up in place of being run: targets of the Makefile, extras of pyproject.toml.
LOOKED_UP = re.compile(
    r'make (?P<target>[\w-]+)|pip install (?:-e )?"?(?:\.|hfgd_jax)(?:\[(?P<extra>\w+)\])?"?'
)

# What is run: modules, subcommands, scripts and programs.
RUN = re.compile(
    r"(?:\w+=\S+ )*"
    r"(?:python -m hfgd_jax\.[\w.]+ |hfgd [a-z]|python (?:launch|benchmarks)/\w+\.py |python \w+/loader\.py "
    r"|launch/|sbatch |curl |export )"
)

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n(?:\n[^\n]*\(exit code (\d+)\))?", re.MULTILINE | re.DOTALL)
_CONFIG = re.compile(r"(--config[ =])(\S+)")
_UNSHRUNK = re.compile(
    r"tools\.macs |launch/\w+\.(sh|sbatch)|ablation\.py "
)  # no `tiny`, or not in the config

# How commands are made small, in this order, and what they are given in place of the real thing.
SMALL = [
    # Data: miniatures, which have not the owners' numbers of images and may be there already.
    (r"((?:tools\.|hfgd )prepare .*)", r"\1 --overwrite --allow_partial"),
    (r"--dataset NAME", "--dataset camvid"),
    (r"configs/CONFIG\.py", "configs/camvid.py"),
    (r"split:test", "split:val"),
    # Weights: the smallest backbone of the family; a file in place of a package,
    # a folder in place of a bucket.
    (r"(?=weights=(?:resnet50\.|hf:timm/resnet50))", "backbone=resnet18,"),
    (r"backbone=efficientnet_b3", "backbone=efficientnet_lite0"),
    (r"weights=pip:(\w+)", r"weights=\1.safetensors"),
    (r"gs://BUCKET", "BUCKET"),
    # Training and evaluation: few steps, runs and scales; the batch of a mesh of many devices.
    (r"train\.steps=\d+", "train.steps=2"),
    (r"--checkpoint 500\b", "--checkpoint 2"),
    (r"--checkpoint 2,1000,", "--checkpoint 2,4,"),
    (r"--names hfgd,sfpn", "--names hfgd"),  # the page records sfpn as it does hfgd, unsaid
    (r"(scales=['\"]?\([\d.]+, ?[\d.]+)[^)]*\)", r"\1)"),
    (r"(ablation\.py .*--arguments \S+)(.*)", r"\1,tiny\2 --methods hfgd --seeds 0"),
    (r"(local_pod\.py --processes 2) --devices 4", r"\1 --devices 1"),
    (r"(communication\.py .*)", r"\1 --config.train.batch_size=8"),
    (r"(--devices 64 .*)", r"\1 --config.train.batch_size=64"),
    # What the text below a command adds to it.
    (r"(--mode export --fold_batch_norm .*)", r"\1 --orbax"),
    # Reports of one run after another in one folder, as no reader has them.
    (r"(tools\.report .*)", r"\1 --overwrite"),
    (r"/tmp/planted(.*)", r"planted\1 --count 2 --first 6 --wanted 0"),
    # Clouds.
    (r"launch/(tpu_\w+)\.sh (?!--dry-run)", r"launch/\1.sh --dry-run "),
    (r"sbatch .*launch/slurm\.sbatch", "launch/slurm.sbatch --dry-run"),
]  # fmt: skip


class Command(NamedTuple):
    """A command, or a block of Python, of a page; `code` is the exit code that the page shows."""

    page: str
    line: int
    text: str
    python: bool = False
    code: int = 0

    @property
    def config(self):
        """The config that it names, or None."""
        found = _CONFIG.search(self.text)
        return found and found[2]

    def small(self):
        """The same at the size of a test."""
        text = self.text
        for pattern, replacement in SMALL:
            text = re.sub(pattern, replacement, text)
        if _UNSHRUNK.search(text):
            return text
        return _CONFIG.sub(lambda match: f"{match[0]}{',' if ':' in match[2] else ':'}tiny", text)

    def problem(self):
        """What to do before the test knows it; empty where it does."""
        known = self.python or RUN.match(self.text) or LOOKED_UP.fullmatch(self.text) or self.reason()
        return "" if known else (
            f"{self.page}:{self.line}: `{self.text}` is not tested. Add its program to RUN in "
            "tests/page_commands.py, and to SMALL what makes it small; or to NOT_RUN, with the reason. "
            "A block that is no command names a language: ```text"
        )  # fmt: skip

    def reason(self):
        """Why it is not run; None where it is."""
        return next((why for what, why in NOT_RUN.items() if re.fullmatch(what, self.text)), None)


def commands_of(page, text):
    """The commands of a page, in their order."""
    found = []
    for block in _BLOCK.finditer(text):
        language, body, code = block.groups()
        line = text[: block.start()].count("\n") + 2
        if language == "python" and page not in API:
            found.append(Command(page, line, body, python=True))
        elif not language:
            found += [Command(page, line, command, code=int(code or 0)) for command in lines_of(body)]
    return found


def lines_of(body):
    """The commands of a block: continued lines are joined, comments and what is printed left out."""
    lines = body.replace("\\\n", " ").splitlines()
    if body.startswith("$ "):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    lines = [re.sub(r"\s+", " ", re.sub(r"\s+#\s.*", "", line)).strip() for line in lines]
    return [line for line in lines if line]


def all_commands():
    """Of every page; a command that stands on several is that of the first."""
    once = {}
    for page in PAGES:
        for command in commands_of(page, (ROOT / page).read_text()):
            once.setdefault(command.text, command)
    return list(once.values())


def config_of(text):
    """The config of a command with its overrides, at its full size."""
    name, _, arguments = _CONFIG.search(text)[2].partition(":")
    config = configs.load(Path(name).stem, arguments)
    for word in shlex.split(text):
        if word.startswith("--config."):
            override(config, word)
    return config


def override(config, word):
    """Sets a field as `--config.FIELD=VALUE` does; there must be such a field."""
    name, _, value = word.removeprefix("--config.").partition("=")
    before = dict(config.items())
    for part in name.split("."):
        before = before[part]
    config.update_from_flattened_dict({name: value if isinstance(before, str) else ast.literal_eval(value)})
