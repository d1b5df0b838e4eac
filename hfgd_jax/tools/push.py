"""Puts an exported bundle into a repository of the Hugging Face hub.

python -m hfgd_jax.tools.push --bundle BUNDLE --repository OWNER/NAME [--private]

Who you are and which hub is as huggingface_hub has it (`hf auth login` or HF_TOKEN; HF_ENDPOINT). The model
card is the bundle's README.md. `hfgd_jax.load("hf:OWNER/NAME")` loads what was pushed.
"""

from collections.abc import Sequence

from absl import flags

from hfgd_jax.export import hub
from hfgd_jax.runtime import shell


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("bundle", None, "Folder that --mode export wrote.", required=True)
    flags.DEFINE_string("repository", None, "OWNER/NAME on the hub.", required=True)
    flags.DEFINE_bool("private", False, "A repository that is made is private.")


def main(_: Sequence[str]) -> int:
    """Pushes the bundle; returns the exit code."""
    values = flags.FLAGS
    hub.push(values.bundle, values.repository, private=values.private)
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
