"""The one id table of each data set: raw label ids -> train ids, class names and colours.

Labels become train ids once, when a data set is prepared. After that `IGNORE` is the only value that is
not a class. The table is stored with the prepared data set and read back from there.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from hfgd_jax.errors import UserError

IGNORE = 255


@dataclasses.dataclass(frozen=True, eq=False)
class LabelTable:
    """Raw ids and what they mean.

    Attributes:
        name: the data set's name.
        classes: names of the classes, in the order of their train ids.
        palette: uint8 `[K, 3]` RGB, a colour a class.
        raw_ids: raw id (0-65535) -> train id (0 to K - 1, or `IGNORE`). A raw id that is not listed is an
            error.
    """

    name: str
    classes: tuple[str, ...]
    palette: UInt8[np.ndarray, "K 3"]
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


def _contiguous(name: str, classes: Sequence[tuple[str, tuple[int, int, int]]], *ignored: int) -> LabelTable:
    """A table whose raw ids 0 to K - 1 are the train ids; the raw ids in `ignored` are ignored."""
    raw_ids = {i: i for i in range(len(classes))} | dict.fromkeys(ignored, IGNORE)
    return LabelTable(
        name, tuple(c for c, _ in classes), np.array([p for _, p in classes], np.uint8), raw_ids
    )


TABLES: dict[str, LabelTable] = {
    table.name: table
    for table in (
        _contiguous(
            "camvid",
            (
                ("sky", (128, 128, 128)),
                ("building", (128, 0, 0)),
                ("pole", (192, 192, 128)),
                ("road", (128, 64, 128)),
                ("pavement", (0, 0, 192)),
                ("tree", (128, 128, 0)),
                ("sign", (192, 128, 128)),
                ("fence", (64, 64, 128)),
                ("car", (64, 0, 128)),
                ("pedestrian", (64, 64, 0)),
                ("bicyclist", (0, 128, 192)),
            ),
            11,  # void
        ),
        _contiguous(
            "shapes",
            (
                ("sky", (135, 190, 235)),
                ("water", (40, 90, 180)),
                ("grass", (110, 190, 80)),
                ("road", (128, 64, 128)),
                ("building", (190, 120, 90)),
                ("tree", (20, 110, 50)),
                ("pole", (250, 220, 90)),
                ("sign", (230, 50, 60)),
                ("car", (70, 20, 140)),
            ),
            IGNORE,
        ),
    )
}
