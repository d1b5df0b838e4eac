"""Draws how much the class tokens of runs depend on each other (paper, Fig. 6).

    python -m hfgd_jax.tools.figures_tokens --workdirs runs/sfpn,runs/hfgd --output tokens.png

Each token is classified by all tokens, without biases: a row of a matrix is the softmax, the diagonal the
confidence in the token's own class.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags

from hfgd_jax.figures import draw, tokens, trained
from hfgd_jax.runtime import shell
from hfgd_jax.tools import figures_options, tables


def statistics(kernel: np.ndarray) -> tuple[float, float, float]:
    """Mean diagonal of `tokens.dependencies`, mean cosine of different tokens, mean norm of a token."""
    others = ~np.eye(kernel.shape[1], dtype=bool)
    diagonal = np.diagonal(tokens.dependencies(kernel)).mean()
    cosine = tokens.cosines(kernel)[others].mean() if others.any() else 0.0
    return float(diagonal), float(cosine), float(np.linalg.norm(kernel, axis=0).mean())


def define_flags() -> None:
    """The command's flags."""
    figures_options.define_runs()
    figures_options.define_checkpoint()


def main(_: Sequence[str]) -> int:
    """Draws the matrices and prints what is in them; returns the exit code."""
    v = flags.FLAGS
    paths, runs = figures_options.outputs(v), figures_options.read_runs(v)
    rows = [["run", "step", "mean diagonal", "mean cosine of others", "mean norm"]]
    kernels = {name: trained.class_tokens(run) for name, run in runs.items()}
    for name, kernel in kernels.items():
        rows.append([name, str(runs[name].step), *(f"{value:.3f}" for value in statistics(kernel))])
    print(tables.render(rows, "text"))
    panels = {name: tokens.dependencies(kernel) for name, kernel in kernels.items()}
    classes = next(iter(runs.values())).table.classes
    figures_options.save(draw.matrices(panels, classes), paths)
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
