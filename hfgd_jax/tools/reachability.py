"""Computes which classes a run's features can reach with its class tokens, and how similar the tokens are.

    python -m hfgd_jax.tools.reachability --workdirs runs/hfgd,runs/sfpn
    python -m hfgd_jax.tools.reachability --workdirs runs/hfgd --format json --output reachability.json

For each class the smallest feature, by l1 norm, whose logit is above every other class's by 1. Tokens that
are frozen for the upsampler (paper, Sec. 3.1) do not move towards its features: where no feature of the sign
that the upsampler makes wins a class, no training of the upsampler finds that class. docs/evaluation.md says
how to read it.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Float
from ml_collections import ConfigDict
from scipy.optimize import linprog

from hfgd_jax.errors import UserError
from hfgd_jax.figures.tokens import cosines
from hfgd_jax.models import signed_features
from hfgd_jax.runs import saved_config, system
from hfgd_jax.runtime import shell, storage
from hfgd_jax.tools import tables

FORMATS = (*tables.FORMATS, "json")
_SOLVED, _INFEASIBLE = 0, 2  # statuses of linprog


def smallest_features(
    kernel: Float[np.ndarray, "c k"], bias: Float[np.ndarray, " k"], *, signed: bool
) -> Float[np.ndarray, " k"]:
    """Of each class the least l1 norm of a feature x whose logit `x @ kernel + bias` wins by 1 or more.

    A linear program for each class k: minimise the sum of |x| such that
    `x . (w_k - w_j) + b_k - b_j >= 1` for all other classes j, with x >= 0 where it is not signed.

    Args:
        kernel: `[C, K]`, a token a column.
        bias: `[K]`.
        signed: x may be negative: the feature does not end in a ReLU.

    Returns:
        float64 `[K]`; inf where no feature wins.

    Raises:
        ValueError: shapes that do not belong together, or numbers that are not finite.
        ArithmeticError: the solver gave up.
    """
    kernel, bias = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
        raise ValueError(f"kernel {kernel.shape} and bias {bias.shape}: want [C, K] and [K]")
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise ValueError("tokens that are not finite")
    return np.array([_smallest(kernel, bias, k, signed) for k in range(len(bias))])


def _smallest(kernel: np.ndarray, bias: np.ndarray, k: int, signed: bool) -> float:
    # linprog wants A x <= b and x >= 0; a signed x is the difference of two parts, whose sum is |x|.
    others = np.delete(kernel, k, axis=1).T - kernel[:, k]
    matrix = np.hstack([others, -others]) if signed else others
    found = linprog(
        np.ones(matrix.shape[1]), A_ub=matrix, b_ub=bias[k] - np.delete(bias, k) - 1.0, method="highs"
    )
    if found.status not in (_SOLVED, _INFEASIBLE):
        raise ArithmeticError(f"class {k}: {found.message}")
    return float(found.fun) if found.status == _SOLVED else np.inf


@dataclasses.dataclass(frozen=True)
class TrainedTokens:
    """The class tokens of a trained run.

    Attributes:
        label: what tables call the run.
        step: of the checkpoint.
        classes: K names.
        kernel, bias: `[C, K]` and `[K]`.
        signed: by branch (`student`, and `teacher` where it is classified by these tokens): whether its
            feature may be negative.
    """

    label: str
    step: int
    classes: tuple[str, ...]
    kernel: np.ndarray
    bias: np.ndarray
    signed: dict[str, bool]


def branches(model_config: ConfigDict) -> dict[str, bool]:
    """The branches that the tokens classify, and whether the feature of each may be negative."""
    signed = signed_features(model_config)
    return signed if model_config.guidance.tokens else {"student": signed["student"]}


def read(workdir: str, checkpoint: str) -> TrainedTokens:
    """The tokens of a run's checkpoint (`latest`, `best` or a step).

    Raises:
        UserError: no run, or no such checkpoint.
    """
    config = saved_config.get_config(workdir)
    _, variables, step, table = system.load(config, workdir, checkpoint)
    tokens = jax.device_get(variables["params"]["class_tokens"])
    label = storage.resolve(workdir, "--workdirs").name
    kernel, bias = tokens["kernel"], tokens["bias"]
    return TrainedTokens(label, step, tuple(table.classes), kernel, bias, branches(config.model))


def examine(run: TrainedTokens) -> dict[str, Any]:
    """What the tokens of a run allow, ready for JSON.

    Returns:
        `run`, `step`; `smallest_features`: by branch, `signed` and `l1` by class (None: out of reach);
        `token_norms` by class; `mean_cosine` and `largest_cosine` of different tokens (None of one class).
    """
    smallest = {}
    for branch, signed in run.signed.items():
        norms = smallest_features(run.kernel, run.bias, signed=signed).tolist()
        least = [norm if np.isfinite(norm) else None for norm in norms]
        smallest[branch] = {"signed": signed, "l1": dict(zip(run.classes, least, strict=True))}
    token_norms = np.linalg.norm(np.asarray(run.kernel, np.float64), axis=0).tolist()
    others = cosines(run.kernel)[~np.eye(len(run.classes), dtype=bool)]
    return {
        "run": run.label,
        "step": run.step,
        "smallest_features": smallest,
        "token_norms": dict(zip(run.classes, token_norms, strict=True)),
        "mean_cosine": float(others.mean()) if others.size else None,
        "largest_cosine": float(others.max()) if others.size else None,
    }


def render(found: Sequence[dict[str, Any]], form: str) -> str:
    """What `examine` found of several runs: two tables, as `text` or `markdown`, or `json`.

    The teacher has a column of its own where its feature has another sign than the student's.
    """
    if form == "json":
        return json.dumps(list(found), indent=2, allow_nan=False)
    columns = [
        (f"{one['run']}{' teacher' if name == 'teacher' else ''}, {_sign(branch)}", branch["l1"])
        for one in found
        for name, branch in one["smallest_features"].items()
        if name == "student" or branch["signed"] != one["smallest_features"]["student"]["signed"]
    ]
    classes = list(dict.fromkeys(name for one in found for name in one["token_norms"]))
    rows = [["smallest l1 norm", *(title for title, _ in columns)]]
    for name in classes:
        rows.append([name, *(_least(l1, name) for _, l1 in columns)])
    norms = [["token's norm", *(one["run"] for one in found)]]
    norms += [[name, *(_number(one["token_norms"].get(name)) for one in found)] for name in classes]
    norms.append(["mean cosine", *(_number(one["mean_cosine"]) for one in found)])
    norms.append(["largest cosine", *(_number(one["largest_cosine"]) for one in found)])
    ends = 1 + len(classes)
    return tables.render(rows, form) + "\n\n" + tables.render(norms, form, {ends})


def _sign(branch: dict[str, Any]) -> str:
    return "signed" if branch["signed"] else "x >= 0"


def _least(norms: dict[str, float | None], name: str) -> str:
    if name not in norms:
        return "n/a"
    return "out of reach" if norms[name] is None else f"{norms[name]:.2f}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_list("workdirs", None, "Folders of runs, joined by commas.", required=True)
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step, of each run.")
    flags.DEFINE_enum("format", "text", FORMATS, "How the tables are written.")
    flags.DEFINE_string("output", "", "File to write to; empty: the terminal.")


def main(_: Sequence[str]) -> int:
    """Examines the runs; returns the exit code."""
    v = flags.FLAGS
    text = render([examine(read(workdir, v.checkpoint)) for workdir in v.workdirs], v.format)
    if not v.output:
        print(text)
        return 0
    try:
        storage.write_atomically(storage.resolve(v.output, "--output"), text + "\n")
    except OSError as error:
        raise UserError(f"--output={v.output}: cannot be written to ({error})") from error
    print(f"wrote {v.output}")
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
