"""Label tables: for each data set the train id of every raw label id, and its classes' names and colours.

Labels become train ids once, when a data set is prepared; after that `IGNORE` is the only value that is
not a class. The table is stored with the prepared data set and read back from there.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from hfgd_jax.data.label_tables import ade20k, camvid, cityscapes, coco_stuff, pascal_context, shapes
from hfgd_jax.errors import UserError, printable

IGNORE = 255
Palette = Sequence[Sequence[int]] | UInt8[np.ndarray, "k 3"]  # RGB, 0-255
_LONGEST_NAME = 500  # characters; ADE20K's and transformers' lists of synonyms are long


@dataclasses.dataclass(frozen=True, eq=False)
class LabelTable:
    """The classes of a data set, and the raw ids that its label files hold.

    Attributes:
        name: the data set's name.
        classes: names of the classes, in the order of their train ids.
        palette: uint8 `[K, 3]` RGB, a colour a class.
        raw_ids: raw id (0-65535) -> train id (0 to K - 1, or `IGNORE`). A raw id that is not listed is an
            error.
    """

    name: str
    classes: tuple[str, ...]
    palette: Palette
    raw_ids: Mapping[int, int]

    def __post_init__(self) -> None:
        palette = np.array(self.palette, np.uint8).reshape(-1, 3)
        raw_ids = {int(raw): int(train) for raw, train in self.raw_ids.items()}
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "palette", palette)
        object.__setattr__(self, "raw_ids", raw_ids)
        count = len(self.classes)
        if not 0 < count < IGNORE or len(palette) != count or len(set(self.classes)) != count:
            raise UserError(
                f"label table {self.name!r}: want 1 to 254 different class names and a colour for each, "
                f"got {count} names and {len(palette)} colours"
            )
        for name in self.classes:
            if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or printable(name) != name:
                raise UserError(
                    f"label table {self.name!r}: class name {str(name)[:40]!r}: want a line of 1 to "
                    f"{_LONGEST_NAME} characters, none of them control characters"
                )
        for raw, train in raw_ids.items():
            if not 0 <= raw < 65536 or not (0 <= train < count or train == IGNORE):
                raise UserError(
                    f"label table {self.name!r}: raw id {raw} -> {train}: want a raw id from 0 to 65535 and "
                    f"a train id from 0 to {count - 1}, or {IGNORE} for ignored"
                )
        lookup = np.full(max(raw_ids, default=0) + 1, -1, np.int16)
        for raw, train in raw_ids.items():
            lookup[raw] = train
        object.__setattr__(self, "_lookup", lookup)

    @property
    def num_classes(self) -> int:
        """The number of classes, without the ignored label."""
        return len(self.classes)

    def unknown_ids(self, raw: Integer[np.ndarray, "h w"]) -> list[int]:
        """Values of `raw` that the table does not list, ascending."""
        values = _present(raw)
        return [v for v in values if v >= len(self._lookup) or v < 0 or self._lookup[v] < 0]

    def to_train_ids(self, raw: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """Maps a raw label map of any integer type.

        Raises:
            UserError: values that the table does not list; the message names them.
        """
        unknown = self.unknown_ids(raw)
        if unknown:
            more = " ..." if len(unknown) > 8 else ""
            raise UserError(
                f"label value {', '.join(map(str, unknown[:8]))}{more} is not in the label table of "
                f"{self.name!r} (known: {_ranges(self.raw_ids)})"
            )
        return self._lookup[raw].astype(np.uint8)

    def to_raw_ids(self, train: UInt8[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
        """Writes train ids back as raw ids, as a benchmark's server wants them.

        Returns:
            uint8, or uint16 where an id needs it. Where several raw ids have one train id, or are ignored,
            the smallest stands for them.

        Raises:
            UserError: a value that no raw id has.
        """
        back = np.full(256, -1, np.int32)
        for raw, value in sorted(self.raw_ids.items(), reverse=True):
            back[value] = raw
        out = back[train]
        if out.size and out.min() < 0:
            missing = np.unique(train[out < 0]).tolist()
            raise UserError(f"train id {missing[0]}: data set {self.name!r} has no raw id for it")
        return out.astype(np.uint8 if back.max() < 256 else np.uint16)

    def check_order(self, data: "LabelTable") -> None:
        """Makes sure that data has a model's train ids: those from elsewhere may order the classes otherwise.

        Args:
            data: the table of the data that this table's model is to see.

        Raises:
            UserError: the same classes, in another order.
        """
        if set(self.classes) <= {*data.classes, "background"} and self.classes != data.classes:
            at = next(i for i, (a, b) in enumerate(zip(self.classes, data.classes, strict=False)) if a != b)
            raise UserError(
                f"the model's classes are in another order than those of {data.name!r} (train id {at}: "
                f"{self.classes[at]!r}, there {data.classes[at]!r}): it can be neither scored on nor trained "
                "with these labels; --mode=predict --ids=raw writes the data set's own ids"
            )

    def to_json(self) -> str:
        """The table as JSON; `from_json` reads it back."""
        return json.dumps(
            {
                "name": self.name,
                "classes": list(self.classes),
                "palette": self.palette.tolist(),
                "raw_ids": {str(raw): train for raw, train in sorted(self.raw_ids.items())},
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "LabelTable":
        """Reads what `to_json` wrote.

        Raises:
            UserError: the text is not such a table.
        """
        try:
            value = json.loads(text)
            raw_ids = {int(raw): train for raw, train in value["raw_ids"].items()}
            return cls(value["name"], tuple(value["classes"]), value["palette"], raw_ids)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"label table: {error!r}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelTable) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())


def _present(raw: np.ndarray) -> list[int]:
    if raw.dtype == np.uint8:
        return np.flatnonzero(np.bincount(raw.ravel(), minlength=256)).tolist()
    return np.unique(raw).tolist()


def _ranges(ids: Mapping[int, int]) -> str:
    """`0-11, 255` for the ids 0 to 11 and 255."""
    parts: list[list[int]] = []
    for value in sorted(ids):
        if parts and parts[-1][1] == value - 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def voc_colours(ids: Sequence[int]) -> UInt8[np.ndarray, "n 3"]:
    """The colours that PASCAL VOC gives to the ids 0-255."""
    ids = np.asarray(ids, np.int64)
    out = np.zeros((len(ids), 3), np.uint8)
    for bit in range(24):
        out[:, bit % 3] |= ((ids >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return out


def make_table(
    name: str,
    classes: Sequence[str],
    palette: Palette,
    raw_ids: Sequence[int],
    ignored: Sequence[int] = (),
) -> LabelTable:
    """A table of classes with raw ids in the same order, and the raw ids that are ignored."""
    mapping = {raw: train for train, raw in enumerate(raw_ids)} | dict.fromkeys(ignored, IGNORE)
    return LabelTable(name, tuple(classes), np.array(palette, np.uint8), mapping)


def _coco_stuff(name: str, shift: int, unlabelled: int) -> LabelTable:
    ids, names = zip(*coco_stuff.CLASSES, strict=True)
    return make_table(name, names, voc_colours(ids), [i - shift for i in ids], [unlabelled])


def _pascal_context() -> LabelTable:
    """For 59-class files in the owners' order; 0 is background, which is ignored."""
    ids = range(1, len(pascal_context.CLASSES) + 1)
    return make_table(
        "pascal_context", [name for name, _ in pascal_context.CLASSES], voc_colours(ids), ids, [0]
    )


def _coloured(
    name: str, classes: Sequence[tuple[str, tuple[int, int, int]]], first: int, ignored: int
) -> LabelTable:
    """Raw ids run from `first`."""
    names, colours = zip(*classes, strict=True)
    return make_table(name, names, colours, range(first, first + len(names)), [ignored])


def _cityscapes() -> LabelTable:
    ids, names, colours = zip(*cityscapes.CLASSES, strict=True)
    return make_table("cityscapes", names, colours, ids, [i for i, _ in cityscapes.IGNORED])


# Of the data sets whose classes do not depend on the raw folder.
TABLES: dict[str, LabelTable] = {
    table.name: table
    for table in (
        _coloured("ade20k", ade20k.CLASSES, 1, 0),
        _coloured("camvid", camvid.CLASSES, 0, camvid.VOID),
        _cityscapes(),
        _coco_stuff("coco_stuff10k", 0, 0),
        _coco_stuff("coco_stuff164k", 1, 255),
        _pascal_context(),
        _coloured("shapes", shapes.CLASSES, 0, IGNORE),
    )
}
