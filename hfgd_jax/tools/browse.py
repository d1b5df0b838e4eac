"""Draws the first samples of a training run on one sheet: before and after augmentation, with labels.

python -m hfgd_jax.tools.browse --config configs/camvid.py --count 8 --output sheet.png

Each sample is a row, made by the run's own pipeline: the record, its label, the crop that the model sees and
that crop's label; below, the record's id. Ignored pixels are hatched. What to look for: labels that lie
beside their objects, classes in the wrong places, crops that are nearly all padding, objects that are a few
pixels wide.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict, config_flags
from PIL import Image, ImageDraw, ImageFont

from hfgd_jax import config as configuration
from hfgd_jax.data import augment, pipeline
from hfgd_jax.data.labels import IGNORE, LabelTable
from hfgd_jax.data.prepared import Split
from hfgd_jax.errors import UserError
from hfgd_jax.geometry import grid_size
from hfgd_jax.inference.render import legend, overlay, write_image
from hfgd_jax.models import backbones
from hfgd_jax.runs.system import open_data
from hfgd_jax.runtime import shell, storage

SUFFIXES = (".png", ".jpg", ".jpeg")
TITLES = ("record", "its label", "as the model sees it", "its label")

_PANEL, _GAP, _TEXT, _LINE = 280, 10, 15, 24
_PAPER, _INK, _FAINT = (255, 255, 255), (32, 32, 32), (110, 110, 110)
_PADDING = 0.15  # share of a crop from which the note is printed
_ALPHA, _HATCH = 0.6, 8  # weight of the classes' colours; pixels from one line to the next


@dataclasses.dataclass(frozen=True)
class Sample:
    """A record and what the model sees of it.

    Attributes:
        id: the record's.
        image, label: the record as stored.
        seen_image, seen_label: after augmentation, of the crop's size.
    """

    id: str
    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]
    seen_image: UInt8[np.ndarray, "H W 3"]
    seen_label: UInt8[np.ndarray, "H W"]


def first_samples(config: ConfigDict, split: Split, count: int) -> list[Sample]:
    """The first samples of a run of this config, from the start, as its pipeline gives them.

    Records that cannot be read are left out where `data.skip_corrupt` is on.

    Raises:
        UserError: the split is empty or has no labels. CorruptRecordError: a record cannot be read.
    """
    data = config.data.copy_and_resolve_references()
    data.update({"workers": 0, "prefetch": 1})  # a sample depends on its number and the seed alone
    backbone = config.model.backbone
    mean_pixel, _ = backbones.normalization(backbone.name, backbone.normalization)
    with pipeline.train_batches(
        split, data, batch_size=count, seed=config.train.seed, mean_pixel=mean_pixel
    ) as batches:
        batch = next(batches)
    found = []
    for row in np.flatnonzero(~batch["corrupt"]):
        record = split.example(int(batch["index"][row]))
        seen = batch["image"][row], batch["label"][row]
        found.append(Sample(record["id"], record["image"], record["label"], *seen))
    return found


def sheet(samples: Sequence[Sample], table: LabelTable, title: str) -> UInt8[np.ndarray, "h w 3"]:
    """A title, a row of four panels a sample, and a legend of the classes that occur."""
    width = 4 * _PANEL + 5 * _GAP
    heads = [(_GAP + i * (_PANEL + _GAP), name) for i, name in enumerate(TITLES)]
    parts = [_line([(_GAP, title)], width, _INK), _line(heads, width, _FAINT)]
    parts += [_row(sample, table, width) for sample in samples]
    labels = np.concatenate([x.ravel() for s in samples for x in (s.label, s.seen_label)])
    counts = np.bincount(labels, minlength=256)
    seen = [k for k in np.flatnonzero(counts) if k != IGNORE]
    parts.append(legend([table.classes[k] for k in seen], [table.palette[k] for k in seen], width))
    if counts[IGNORE]:
        parts.append(_line([(_GAP, "hatched: ignored")], width, _INK))
    return np.concatenate(parts)


def _row(sample: Sample, table: LabelTable, width: int) -> np.ndarray:
    """The panels of a sample, each pair above its caption."""
    record = f"{sample.id}:  {_described(sample.label)}"
    pairs = (
        _pair(sample.image, sample.label, table, record),
        _pair(sample.seen_image, sample.seen_label, table, _described(sample.seen_label)),
    )
    row = np.full((max(pair.shape[0] for pair in pairs) + _GAP, width, 3), _PAPER, np.uint8)
    for left, pair in zip((0, 2 * (_PANEL + _GAP)), pairs, strict=True):
        row[: pair.shape[0], left : left + pair.shape[1]] = pair
    return row


def _described(label: np.ndarray) -> str:
    return f"{label.shape[1]} x {label.shape[0]}, {np.mean(label == IGNORE):.0%} ignored"


def _pair(image: np.ndarray, label: np.ndarray, table: LabelTable, caption: str) -> np.ndarray:
    """An image and its label beside each other, each in a panel with a margin at its left."""
    width = 2 * (_PANEL + _GAP)
    panels = _fit(image), _coloured(image, label, table)
    out = np.full((panels[0].shape[0], width, 3), _PAPER, np.uint8)
    for left, panel in zip((_GAP, _PANEL + 2 * _GAP), panels, strict=True):
        out[:, left : left + panel.shape[1]] = panel
    return np.concatenate([out, _line([(_GAP, caption)], width, _FAINT)])


def _fit(image: np.ndarray) -> np.ndarray:
    """The image at the size of a panel; where it is enlarged a lot its pixels show."""
    factor = _PANEL / max(image.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    small = Image.Resampling.BOX if factor < 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST if factor > 2 else small))


def _coloured(image: np.ndarray, label: np.ndarray, table: LabelTable) -> np.ndarray:
    """The label over the image, hatched where it is ignored."""
    panel = _fit(overlay(image, label, table.palette, _ALPHA))
    ignored = Image.fromarray(label == IGNORE).resize(panel.shape[1::-1], Image.Resampling.NEAREST)
    rows, columns = np.indices(panel.shape[:2])
    lines = np.asarray(ignored) & ((rows + columns) % _HATCH < 2)
    return np.where(lines[..., None], np.uint8(255) - panel // 4, panel)


def _line(texts: Sequence[tuple[int, str]], width: int, ink: tuple[int, int, int]) -> np.ndarray:
    """A line of text; each piece starts at its column and ends before the next one's."""
    strip = Image.new("RGB", (width, _LINE), _PAPER)
    canvas, font = ImageDraw.Draw(strip), ImageFont.load_default(_TEXT)
    ends = [left for left, _ in texts[1:]] + [width]
    for (left, text), end in zip(texts, ends, strict=True):
        shown = text
        while len(shown) > 1 and canvas.textlength(shown, font=font) > end - left - _GAP:
            text = text[1:]  # the end of an id tells more than its folders
            shown = "..." + text
        canvas.text((left, _LINE / 2), shown, fill=ink, font=font, anchor="lm")
    return np.asarray(strip)


def check_output(output: epath.Path, overwrite: bool) -> None:
    """Raises UserError for a suffix that is not in `SUFFIXES`, or an existing file without `overwrite`."""
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output={output}: want a name that ends in {', '.join(SUFFIXES)}")
    if output.exists() and not overwrite:
        raise UserError(f"--output={output}: is there already; take another name, or --overwrite")


def padding(config: ConfigDict, samples: Sequence[Sample]) -> str | None:
    """The note for crops larger than most images, with a crop that fits; None where they are not.

    The random scale is left out: images that it shrinks below the crop are intended.
    """
    crop, scale = tuple(config.data.crop), augment.as_fraction(config.data.input_scale)
    sizes = [augment.scaled_size(sample.image.shape[:2], scale) for sample in samples]
    height, width = (int(side) for side in np.median(sizes, axis=0))
    inside = min(height, crop[0]) * min(width, crop[1])
    share = 1 - inside / (crop[0] * crop[1])
    whole = tuple(max(64, min(pair) // 32 * 32) for pair in zip((height, width), crop, strict=True))
    fits = grid_size(whole, config.model.geometry)
    if share < _PADDING or fits == crop:
        return None
    return (
        f"note: {share:.0%} of a crop of {crop[1]}x{crop[0]} is padding, for the images are {width}x{height} "
        f"(at data.input_scale={config.data.input_scale:g}); --config.data.crop='{fits}' fits"
    )


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
    flags.DEFINE_string("split", None, "The split to show; by default the one that is trained on.")
    flags.DEFINE_integer("count", 8, "How many samples.", lower_bound=1, upper_bound=200)
    flags.DEFINE_string("output", None, "The image to write, .png or .jpg.", required=True)
    flags.DEFINE_bool("overwrite", False, "Replace the image if it is there.")
    flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> int:
    """Writes the sheet and says where it is; returns the exit code."""
    values = flags.FLAGS
    config, output = values.config, storage.resolve(values.output, "--output")
    configuration.validate(config)
    check_output(output, values.overwrite)
    split = open_data(config, values.split or config.data.train_split)
    samples = first_samples(config, split, values.count)
    if not samples:
        raise UserError(f"data set {split.dataset!r}, split {split.split!r}: none of the records can be read")
    title = (
        f"{split.dataset} {split.split}: the first {len(samples)} training samples with seed "
        f"{config.train.seed}, scale {config.data.scale_range[0]:g} to {config.data.scale_range[1]:g}"
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_image(output, sheet(samples, split.table, title))
    except OSError as error:
        raise UserError(f"--output={output}: {error}") from error
    print(f"{len(samples)} samples of {split.dataset}/{split.split} in {output}")
    if note := padding(config, samples):
        print(note)
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
