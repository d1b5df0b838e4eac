"""The command `hfgd`: one subcommand for each thing that the package does, over the modules that do it.

    hfgd train --config camvid:method=hfgd --workdir runs/camvid
    hfgd predict --workdir runs/camvid --input photos/ --output out/
    hfgd weights import --backbone resnet50 --source timm.safetensors --output weights
    hfgd completion bash >> ~/.bashrc

`hfgd train` is `python -m hfgd_jax.main`, `hfgd prepare` is `python -m hfgd_jax.tools.prepare`, and so on,
with the same options; `--config` takes the name of a config of the package as well as a file.
"""

import importlib
import inspect
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from hfgd_jax import __version__
from hfgd_jax.errors import UserError, nearest
from hfgd_jax.runtime import interrupts


class Command(NamedTuple):
    """What a subcommand runs.

    Attributes:
        module: has `define_flags()` and `main(argv) -> exit code`.
        about: one line.
        mode: the front door's `--mode`; empty for tools.
    """

    module: str
    about: str
    mode: str = ""


COMMANDS = {
    "train": Command("hfgd_jax.main", "train a model, or go on training it", "train"),
    "eval": Command("hfgd_jax.main", "score checkpoints of a run", "eval"),
    "predict": Command("hfgd_jax.main", "write masks and overlays of images", "predict"),
    "export": Command("hfgd_jax.main", "write a checkpoint as a bundle that jax and numpy run", "export"),
    "prepare": Command("hfgd_jax.tools.prepare", "prepare a data set for training"),
    "check": Command("hfgd_jax.tools.check_dataset", "look for files that would spoil a run"),
    "browse": Command("hfgd_jax.tools.browse", "draw what the training sees of a data set"),
    "sample-images": Command("hfgd_jax.tools.sample_images", "write images of a prepared data set as PNG"),
    "scores": Command("hfgd_jax.tools.scores", "compare finished runs class by class, over their seeds"),
    "figures compare": Command("hfgd_jax.tools.figures_compare", "draw runs' masks of an image side by side"),
    "figures features": Command("hfgd_jax.tools.figures_features", "draw runs' features, and how separate"),
    "figures tokens": Command("hfgd_jax.tools.figures_tokens", "draw how runs' class tokens depend"),
    "figures contamination": Command(
        "hfgd_jax.tools.figures_contamination", "draw how good runs' backbones' features are"
    ),
    "figures curves": Command("hfgd_jax.tools.figures_curves", "draw runs' loss, mIoU and learning rate"),
    "report": Command("hfgd_jax.tools.report", "write a page on a run's errors and doubtful labels"),
    "reachability": Command("hfgd_jax.tools.reachability", "which classes a run's features can reach"),
    "serve": Command("hfgd_jax.tools.serve", "a page and an API on this machine that predict images"),
    "weights import": Command("hfgd_jax.tools.import_weights", "read weights of other projects"),
    "weights export": Command("hfgd_jax.tools.export_weights", "write weights under other projects' names"),
    "macs": Command("hfgd_jax.tools.macs", "multiply-accumulates and parameters of a config"),
    "mesh": Command("hfgd_jax.tools.mesh", "how a state lies on a mesh of devices"),
    "lower": Command("hfgd_jax.tools.lower", "lower a config's steps for accelerators that are absent"),
    "paper": Command("hfgd_jax.tools.paper", "the paper's tables, their commands and our results"),
    "push": Command("hfgd_jax.tools.push", "put an exported bundle on the Hugging Face hub"),
    "export-onnx": Command("hfgd_jax.tools.export_onnx", "convert a bundle to ONNX"),
}
SHELLS = ("bash", "zsh")
USER_ERROR = 2


def main() -> None:
    """The entry point: reads `sys.argv`, runs a subcommand and exits with its code."""
    words = sys.argv[1:]
    group = words.pop(0) if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS) else ""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(group))
        sys.exit(0 if words else USER_ERROR)
    words = [group, *words] if group else words
    if words[0] == "--version":
        print(f"hfgd_jax {__version__}")
        sys.exit(0)
    if words[0] == "completion":
        sys.exit(_print_completion(words[1:]))
    name, rest = find(words)
    if name is None:
        sys.exit(_refuse(" ".join(words[: 2 if group else 1])))
    interrupts.while_loading()
    run(name, rest)


def usage(group: str = "") -> str:
    """What `hfgd --help` prints, and `hfgd figures --help` of the commands of a group."""
    abouts = {name: command.about for name, command in COMMANDS.items()}
    abouts["completion"] = f"print the completion of {' or '.join(SHELLS)}"
    shown = [name for name in abouts if name.startswith(f"{group} " if group else "")]
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {abouts[name]}" for name in shown]
    return "\n".join(
        [
            "hfgd: High-level Feature Guided Decoding for semantic segmentation",
            "",
            "hfgd COMMAND --option=value ...; hfgd COMMAND --help lists a command's options",
            "",
            *lines,
        ]
    )


def find(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The subcommand that the words begin with (None: none), and the words after it."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, list(words[length:])
    return None, list(words)


def run(name: str, rest: list[str]) -> None:
    """Runs a subcommand with these options and exits with its code."""
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    module.define_flags()
    if {"-h", "--help", "-help"} & set(rest):
        print(describe(name, module))
        sys.exit(0)
    from hfgd_jax.runtime import shell  # loads absl: not for `hfgd --help`

    try:
        argv = [f"hfgd {name}", *with_config_files(rest)]
    except UserError as error:
        sys.exit(shell.fail(error))
    if command.mode:
        from hfgd_jax.runtime import processes

        # ml_collections reads overrides of the config from there.
        sys.argv = module.with_saved_config([*argv, f"--mode={command.mode}"])
        shell.run(module.main, on_failure=processes.end_now)
    else:
        sys.argv = argv
        shell.run(module.main)


def with_config_files(words: Sequence[str]) -> list[str]:
    """The words, `--config NAME` being replaced by the file of the package's config of that name.

    Raises:
        UserError: no config has this name; a file of one's own ends in `.py` or is given with its folder.
    """
    from hfgd_jax import configs

    out, names = [], set(configs.names())
    for position, word in enumerate(words):
        flag = "--config=" if word.startswith("--config=") else ""
        if flag or (position and words[position - 1] == "--config"):
            name, colon, arguments = word.removeprefix(flag).partition(":")
            if name in names or not (name.endswith(".py") or "/" in name):
                word = f"{flag}{configs.path(name)}{colon}{arguments}"
        out.append(word)
    return out


def describe(name: str, module: ModuleType) -> str:
    """What `hfgd NAME --help` prints: what the module does, and its options with their defaults."""
    from hfgd_jax.runtime import shell

    command = COMMANDS[name]
    about = module.MODES[command.mode] if command.mode else inspect.getdoc(module)
    return shell.usage(about or command.about, options(name, module))


def options(name: str, module: ModuleType) -> list:
    """The flags of a subcommand whose module has defined them, in the order of their definition."""
    from hfgd_jax.runtime import shell

    mode, found = COMMANDS[name].mode, shell.own_flags()
    if not mode:
        return found
    return [f for f in found if f.name != "mode" and mode in module.OF_MODES.get(f.name, (mode,))]


def forget_options() -> None:
    """Removes the flags that subcommands have defined in this process, so that another can define its own."""
    from absl import flags

    for owner, owned in flags.FLAGS.flags_by_module_dict().items():
        for flag in list(owned) if owner.startswith("hfgd_jax.") else ():
            delattr(flags.FLAGS, flag.name)


def _refuse(word: str) -> int:
    near = nearest(word, [*COMMANDS, "completion"])
    hint = f"did you mean {near!r}? " if near else ""
    print(f"error: hfgd {word}: no such command; {hint}hfgd --help lists them", file=sys.stderr)
    return USER_ERROR


def _print_completion(words: Sequence[str]) -> int:
    if list(words) not in [[name] for name in SHELLS]:
        print(f"error: hfgd completion: want one of {', '.join(SHELLS)}", file=sys.stderr)
        return USER_ERROR
    print(completion(words[0]))
    return 0


def completion(shell: str) -> str:
    """A script for a shell that completes subcommands, their options, and file names."""
    cases = []
    for name, command in COMMANDS.items():
        module = importlib.import_module(command.module)
        module.define_flags()
        own = options(name, module)
        cases.append(f'    "{name}") words="{" ".join(f"--{flag.name}" for flag in own)}" ;;')
        forget_options()
    firsts = " ".join(dict.fromkeys(name.split()[0] for name in [*COMMANDS, "completion"]))
    groups: dict[str, list[str]] = {}
    for first, second in (name.split() for name in COMMANDS if " " in name):
        groups.setdefault(first, []).append(second)
    seconds = [f'    {first}) words="{" ".join(words)}" ;;' for first, words in groups.items()]
    lines = [
        "autoload -U +X bashcompinit && bashcompinit" if shell == "zsh" else "",
        "_hfgd() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" words="" command="${COMP_WORDS[1]}"',
        '  if [ "$COMP_CWORD" -gt 2 ]; then',
        f'    case "$command" in {"|".join(groups)}) command="$command ${{COMP_WORDS[2]}}" ;; esac',
        "  fi",
        '  case "$command" in',
        *cases,
        *seconds,
        f'    completion) words="{" ".join(SHELLS)}" ;;',
        "  esac",
        f'  [ "$COMP_CWORD" -eq 1 ] && words="{firsts}"',
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        "complete -o default -F _hfgd hfgd",
    ]
    return "\n".join(line for line in lines if line)
