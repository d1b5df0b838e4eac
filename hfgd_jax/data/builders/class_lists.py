"""Reads a user's list of classes: of names (their places are the ids), or of names and colours."""

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from hfgd_jax.data import image_files
from hfgd_jax.data.builders import files
from hfgd_jax.data.labels import IGNORE, LabelTable, voc_colours
from hfgd_jax.errors import UserError

NAMES, CSV, LABELMAP = "classes.txt", "classes.csv", "labelmap.txt"
IGNORED = frozenset({"void", "ignore", "ignored", "unlabelled", "unlabeled"})

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ClassList:
    """The classes of a folder: their table, and the function that reads its masks as the table's raw ids."""

    table: LabelTable
    read_label: Callable[[Path], Integer[np.ndarray, "h w"]]


def read(source: Path) -> ClassList:
    """Reads `classes.txt`, `classes.csv` or `labelmap.txt` of a folder.

    - `classes.txt`: a name a line (blank lines do not count); masks have one channel (or a palette, whose
      indices count) and hold the line's number from 0. 255 is ignored.
    - `classes.csv`: a header with the columns name, r, g, b, and a line for each class; masks hold these
      colours, in whatever mode.
    - `labelmap.txt`: lines `name:r,g,b`, of which anything after a further colon, and lines that start with
      `#`, are passed over; otherwise like `classes.csv`.

    Lines named void, ignore, ignored, unlabelled or unlabeled are ignored pixels, not classes.

    Raises:
        UserError: none of the files, several of them, or lines that cannot be read.
    """
    there = [name for name in (NAMES, CSV, LABELMAP) if (source / name).is_file()]
    if len(there) != 1:
        found = f"both {there[0]} and {there[1]}" if there else "no list of classes"
        raise UserError(
            f"{source}: {found}; want {NAMES} (masks hold ids), or {CSV} or {LABELMAP} (masks hold colours)"
        )
    path = source / there[0]
    if there == [NAMES]:
        return ClassList(_table(path, files.read_list(path), None), _read_ids)
    rows = _csv_rows(path) if there == [CSV] else _labelmap_rows(path)
    colours = [colour for _, colour in rows]
    shared = [name for i, (name, colour) in enumerate(rows) if colour in colours[:i]]
    if shared:
        raise UserError(f"{path}: the colour of {shared[0]!r} is another class's, too")
    masks = ColourMasks(path.name, np.array(colours), "void," if there == [CSV] else "void:")
    return ClassList(_table(path, [name for name, _ in rows], colours), masks.read)


def _table(path: Path, names: Sequence[str], colours: Sequence[Colour] | None) -> LabelTable:
    classes = [i for i, name in enumerate(names) if name.lower() not in IGNORED]
    palette = voc_colours(range(len(names))) if colours is None else np.array(colours, np.uint8)
    if not 0 < len(classes) < IGNORE or len(set(names)) != len(names):
        twice = {name for name in names if names.count(name) > 1}
        what = f"{sorted(twice)[0]!r} more than once" if twice else f"{len(classes)} classes"
        raise UserError(f"{path}: {what}; want 1 to 254 different names")
    raw_ids = dict.fromkeys(range(len(names)), IGNORE)
    raw_ids |= {raw: train for train, raw in enumerate(classes)}
    if colours is None:
        raw_ids.setdefault(IGNORE, IGNORE)
    return LabelTable("folder", tuple(names[i] for i in classes), palette[classes], raw_ids)


def _read_ids(path: Path) -> Integer[np.ndarray, "h w"]:
    try:
        return files.read_label(path)
    except files.ColourLabelError as error:
        raise files.ColourLabelError(f"{error}, or {CSV} with the colours in place of {NAMES}") from None


def _text(path: Path) -> str:
    return files.read_text(path)


def _csv_rows(path: Path) -> list[tuple[str, Colour]]:
    rows = [row for row in csv.reader(_text(path).splitlines(), skipinitialspace=True) if any(row)]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not {"name", "r", "g", "b"} <= set(header):
        raise UserError(f"{path}: the first line is {','.join(header)!r}; want a header with name,r,g,b")
    out = []
    for row in rows[1:]:
        cells = dict(zip(header, row, strict=False))
        out.append(_row(path, ",".join(row), cells.get("name", ""), [cells.get(c, "") for c in "rgb"]))
    return out


def _labelmap_rows(path: Path) -> list[tuple[str, Colour]]:
    lines = [line.strip() for line in _text(path).splitlines()]
    out = []
    for line in lines:
        if line and not line.startswith("#"):
            name, colour, *_ = [*line.split(":"), ""]
            out.append(_row(path, line, name, colour.split(",")))
    return out


def _row(path: Path, line: str, name: str, cells: Sequence[str]) -> tuple[str, Colour]:
    try:
        colour = tuple(int(cell) for cell in cells)
    except ValueError:
        colour = ()
    if not name.strip() or len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
        raise UserError(f"{path}: {line!r}: want a name and its colour, three numbers from 0 to 255")
    return name.strip(), colour


@dataclasses.dataclass(frozen=True)
class ColourMasks:
    """Reads masks of colours: the raw id of a pixel is its colour's place in `colours` `[N, 3]`.

    Attributes:
        source: the list's name, for messages.
        colours: of the list, in its order.
        ignore: how a line of the list begins whose colour is ignored, for messages.
    """

    source: str
    colours: Integer[np.ndarray, "N 3"]
    ignore: str = "void,"

    def read(self, path: Path) -> Integer[np.ndarray, "h w"]:
        """Ids of a mask in any mode of 8 bits; a palette's colours count, transparency does not.

        Raises:
            UserError: the file cannot be read, or has colours that the table does not list.
        """
        try:
            with image_files.opened(path) as image:
                if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
                    raise ValueError(f"mode {image.mode}; want 8 bits a channel")
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # decoders raise many kinds on bad bytes
            raise UserError(f"{path}: mask cannot be read ({error})") from None
        known, packed = _packed(self.colours), _packed(pixels)
        order = np.argsort(known)
        places = np.searchsorted(known, packed, sorter=order).clip(max=len(known) - 1)
        ids = order[places]
        wrong = known[ids] != packed
        if wrong.any():
            values = [(v >> 16, v >> 8 & 255, v & 255) for v in np.unique(packed[wrong]).tolist()]
            first = self.ignore + ",".join(map(str, values[0]))
            raise UserError(
                f"{path}: not in {self.source}: {'colours' if values[1:] else 'colour'} "
                f"{files.listing(list(map(str, values)))} ({wrong.mean():.1%} of the mask); a line {first!r} "
                "in the list ignores a colour"
            )
        return ids


def _packed(rgb: np.ndarray) -> np.ndarray:
    rgb = rgb.astype(np.int32)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
