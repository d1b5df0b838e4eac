"""A run's model as a bundle that others can run: what it reads, lowered for every platform, and checked.

The command compares what it wrote, read back, with the model as evaluation runs it, and leaves a bundle only
where the two agree. What is in a bundle: `export/bundle.py`, docs/export.md.
"""

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.data import augment, canvases, pipeline
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError
from hfgd_jax.export import bundle, loader
from hfgd_jax.export import program as programs
from hfgd_jax.export.card import card
from hfgd_jax.export.program import Program
from hfgd_jax.geometry import grid_size
from hfgd_jax.inference.sliding import COARSEST
from hfgd_jax.inference.views import Inference
from hfgd_jax.models import backbones, build_model
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runs.system import load
from hfgd_jax.runtime import sharding
from hfgd_jax.runtime.progress import Doing

DTYPES = ("float32", "bfloat16")
BOUND = 1e-4  # of float32's largest difference, relative to the largest logit
BATCHES = (1, 3)
_PACKAGES = ("hfgd_jax", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")

Images = UInt8[np.ndarray, "b h w 3"]
Logits = Callable[[Images], Float32[np.ndarray, "b h w k"]]  # of images of any size, at their pixels


def run(
    config: ConfigDict,
    workdir: str,
    checkpoint: str,
    output: str,
    *,
    dtypes: Sequence[str] = DTYPES,
    fold_batch_norm: bool = False,
    orbax: bool = False,
    overwrite: bool = False,
    log: Callable[[str], Any] = print,
) -> int:
    """Exports a checkpoint of a run into the folder `output`; returns the exit code, 0.

    Args:
        config: of the run.
        workdir: where the run is.
        checkpoint: `latest`, `best` or a step.
        output: the bundle's folder; appears whole and checked, or not at all.
        dtypes: of the variants, some of `DTYPES`.
        fold_batch_norm: fold batch norms into the convolutions before them.
        orbax: write the parameters as an orbax checkpoint as well.
        overwrite: replace a bundle that is there.
        log: called with each line.

    Raises:
        UserError: no such checkpoint, something at `output`, a disk that is full, or a float32 result that
            is further than `BOUND` from the model's.
    """
    path = bundle.target(output, overwrite=overwrite)
    system, on_mesh, step, table = load(config, workdir, checkpoint)
    variables = jax.device_get(sharding.local_copy(system.mesh, on_mesh))
    mean_iou = known_mean_iou(workdir, checkpoint, step)
    log(f"exporting step {step} of {workdir}" + (f", mIoU {mean_iou:.4f}" if mean_iou is not None else ""))
    with bundle.staged(path) as folder:
        described = {
            "step": step,
            "mIoU": mean_iou,
            "fold_batch_norm": fold_batch_norm,
            "platforms": list(programs.PLATFORMS),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
            | {"python": platform.python_version()},
            "input": input_contract(config),
            "output": {"masks": "uint8 [b, h, w], index into classes", "logits": "float32 [b, h, w, k]"},
            "variants": _write(folder, config, variables, table, dtypes, fold_batch_norm, log),
        }
        if orbax:
            weights = Program(config, "float32").read(variables, fold_batch_norm=fold_batch_norm)
            bundle.write_tree(folder / "orbax", unflatten_dict(weights, sep="/"))
        (folder / "README.md").write_text(card(described, table, config, known_scores(workdir, step)))
        bundle.write_manifest(folder, described)
        parity = _compare(folder, config, variables, dtypes, log)
        manifest = bundle.write_manifest(folder, described | {"parity": parity})
    size = sum(file["bytes"] for file in manifest["files"].values())
    log(f"wrote {output}: {size / 1e6:.1f} MB, for {', '.join(programs.PLATFORMS)}")
    return 0


def input_contract(config: ConfigDict) -> dict[str, Any]:
    """What images a program takes, as plain data: what `loader.py` goes by."""
    backbone = config.model.backbone
    mean, std = backbones.normalization(backbone.name, backbone.normalization)
    scale = augment.as_fraction(float(config.data.input_scale))
    return {
        "images": "uint8 [b, H, W, 3], RGB 0-255; the program normalises: (x - mean) / std",
        "rows, columns": "float32 [r], [c]: where masks are wanted, in pixels of the scaled images",
        "mean": list(mean),
        "std": list(std),
        "scale": [scale.numerator, scale.denominator],  # of the images before all else
        "geometry": config.model.geometry,
        "multiple": COARSEST,  # H and W are multiple * k + extra
        "extra": 1 if config.model.geometry == "align_corners" else 0,
        "padding": np.rint(mean).astype(int).tolist(),  # at the bottom and right, up to H and W
        "crop": list(config.data.crop),  # height and width that the model was trained on
    }


def known_mean_iou(workdir: str, checkpoint: str, step: int) -> float | None:
    """The mIoU of a run's checkpoint, where the run has it: of `best`, and of the last evaluation."""
    saved = Checkpoints(workdir, read_only=True)
    best = saved.best_mean_iou() if saved.find(checkpoint) == ("best", step) else None
    saved.close()
    return best if best is not None else _last_evaluation(workdir, step).get("mIoU")


def known_scores(workdir: str, step: int) -> dict[str, float | None]:
    """The IoU of each class at a step, where the run's last evaluation was of it; else empty."""
    return _last_evaluation(workdir, step).get("per_class", {})


def _last_evaluation(workdir: str, step: int) -> dict[str, Any]:
    """What `metrics.json` has, where it is of this step; else empty."""
    path = epath.Path(workdir) / "metrics.json"
    try:
        last = json.loads(path.read_text())
    except (OSError, ValueError):  # none, or cut short by a full disk
        return {}
    return last if last["step"] == step else {}


def _write(
    folder: Path,
    config: ConfigDict,
    variables: Mapping[str, Any],
    table: LabelTable,
    dtypes: Sequence[str],
    fold_batch_norm: bool,
    log: Callable[[str], Any],
) -> dict[str, dict[str, str]]:
    """Writes all but the manifest; gives the files of each variant."""
    (folder / "config.json").write_text(configuration.to_json(config))
    (folder / "labels.json").write_text(table.to_json() + "\n")
    (folder / "loader.py").write_bytes(Path(loader.__file__).read_bytes())
    weights = Program(config, "float32").read(variables, fold_batch_norm=fold_batch_norm)
    present = programs.flatten(variables)
    log(
        f"inference reads {_millions(weights)} of {_millions(present)} million numbers"
        + (f"; {len(present) - len(weights)} arrays are folded or left out" if fold_batch_norm else "")
    )
    variants = {}
    for dtype in dtypes:
        program = Program(config, dtype)
        weights = program.read(variables, fold_batch_norm=fold_batch_norm)
        with Doing(f"{dtype}: lowering the program for {', '.join(programs.PLATFORMS)}"):
            variants[dtype] = bundle.write_variant(folder, dtype, weights, program.lower(weights))
        sizes = {what: (folder / name).stat().st_size / 1e6 for what, name in variants[dtype].items()}
        log(f"{dtype}: weights {sizes['weights']:.1f} MB, program {sizes['program']:.1f} MB")
    return variants


def _millions(weights: Mapping[str, np.ndarray]) -> str:
    return f"{sum(leaf.size for leaf in weights.values()) / 1e6:.2f}"


def _compare(
    folder: Path,
    config: ConfigDict,
    variables: Mapping[str, Any],
    dtypes: Sequence[str],
    log: Callable[[str], Any],
) -> dict[str, Any]:
    """What was written, read back, against the model as it is evaluated; at scale 1, in float32.

    Raises:
        UserError: a float32 result is too far off.
    """
    sizes = grid_size((96, 128), config.model.geometry), (75, 100)  # on the grid, and off it
    reference = evaluated(config, variables)
    candidates: dict[str, Logits] = {}
    if (folder / "orbax").exists():
        candidates["orbax"] = _restored(config, bundle.read_tree(folder / "orbax"))
    for dtype in dtypes:
        model = loader.load(folder, dtype)
        model.scale = (1, 1)  # rescaling images is not the model's
        candidates[dtype] = lambda images, model=model: model(images, logits=True)
    tested = [_test_images(size)[:batch] for size in sizes for batch in BATCHES]
    with Doing("computing what the model itself says"):
        wanted = [(images, reference(images)) for images in tested]
    figures = {}
    for name, candidate in candidates.items():
        with Doing(f"{name}: comparing what was written with the model"):
            found = figures[name] = difference(candidate, wanted)
        log(
            f"{name}: max |difference| {found['max_difference']:.1e} of the largest logit, "
            f"{found['differing_pixels']:.3%} of the mask's pixels differ"
        )
        if name != "bfloat16" and not found["max_difference"] <= BOUND:
            raise UserError(
                f"export: {name} is {found['max_difference']:.1e} of the largest logit away from the model, "
                f"more than {BOUND:.0e}; nothing was exported. Try without --fold_batch_norm, or on a CPU "
                "(JAX_PLATFORMS=cpu)"
            )
    return {"bound": BOUND, "sizes": list(map(list, sizes)), "batches": list(BATCHES), **figures}


def difference(candidate: Logits, wanted: Sequence[tuple[Images, np.ndarray]]) -> dict[str, float]:
    """How far a function's logits are from those wanted.

    Returns:
        `max_difference`, relative to `max_logit`, the largest absolute value of the wanted; and
        `differing_pixels`, the share of pixels whose largest logit is another class's.
    """
    largest = max(float(np.abs(logits).max()) for _, logits in wanted)
    furthest, differing = 0.0, []
    for images, logits in wanted:
        found = candidate(images)
        # A NaN is as far off as can be: max() would pass over it.
        gap = float(np.abs(found - logits).max()) if np.isfinite(found).all() else np.inf
        furthest = max(furthest, gap)
        differing.append(np.mean(found.argmax(-1) != logits.argmax(-1)))
    return {
        "max_difference": furthest / largest if largest else furthest,
        "max_logit": largest,
        "differing_pixels": float(np.mean(differing)),
    }


def evaluated(config: ConfigDict, variables: Mapping[str, Any]) -> Logits:
    """Logits as evaluation and prediction compute them: in float32, of whole images at one scale."""
    config = config.copy_and_resolve_references()
    config.eval.update({"scales": (1.0,), "flip": False, "window": (0, 0), "branch": "prediction"})
    config.data.input_scale = 1.0
    seen = Inference(build_model(config.model, config.data.num_classes, "float32"), config)

    def logits(images: Images) -> Float32[np.ndarray, "b h w k"]:
        view, size = _view(images, config)
        sizes = np.array([size] * len(images), np.int32)
        with jax.default_matmul_precision("highest"):
            found = seen.logits(variables, [view], sizes, view["image"].shape[1:3])
        return np.asarray(found)[:, : size[0], : size[1]]

    return logits


def _restored(config: ConfigDict, tree: Mapping[str, Any]) -> Logits:
    """Logits of the variables that orbax restored."""
    compiled, weights = jax.jit(Program(config, "float32").__call__), programs.flatten(tree)

    def logits(images: Images) -> Float32[np.ndarray, "b h w k"]:
        view, size = _view(images, config)
        rows, columns = (jnp.arange(side, dtype=jnp.float32) for side in size)
        return np.asarray(compiled(weights, view["image"], rows, columns)[1])

    return logits


def _view(images: Images, config: ConfigDict) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    """Images as evaluation pads them, and their height and width."""
    size = images.shape[1:3]
    ((canvas, _),) = canvases.plan([size], 1, [Fraction(1)], config.model.geometry)
    backbone = config.model.backbone
    mean, _ = backbones.normalization(backbone.name, backbone.normalization)
    views = [pipeline.views(image, (1.0,), canvas, mean)[0] for image in images]
    return {key: np.stack([view[key] for view in views]) for key in views[0]}, size


def _test_images(size: tuple[int, int]) -> Images:
    """As many images as the largest batch: coloured squares and noise, the same at every export."""
    rng, count = np.random.default_rng(0), max(BATCHES)
    coarse = rng.integers(0, 256, (count, -(-size[0] // 16), -(-size[1] // 16), 3))
    squares = coarse.repeat(16, 1).repeat(16, 2)[:, : size[0], : size[1]]
    return np.clip(squares + rng.normal(0, 8, squares.shape), 0, 255).astype(np.uint8)
