"""Reads the collective operations of a compiled program: kind, bytes, devices of a group, runs in a step."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
_INSTRUCTION = re.compile(rf"=\s*(\(.*?\)|\S+)\s+({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program, on one device.

    Attributes:
        kind: of `KINDS`.
        size: bytes of its result on each device.
        group: devices that take part together.
        times: that it runs in a step, where it stands in loops.
    """

    kind: str
    size: int
    group: int
    times: int = 1

    @property
    def sent(self) -> float:
        """Bytes that each device sends for one run, by the ring algorithms."""
        share = (self.group - 1) / self.group
        factor = {
            "all-reduce": 2 * share,
            "all-gather": share,
            "reduce-scatter": self.group - 1,
            "all-to-all": share,
            "collective-permute": 1.0,
        }
        return factor[self.kind] * self.size


def collectives(program: str, devices: int) -> list[Collective]:
    """The collectives of a compiled program's HLO text (`Compiled.as_text()`), loops multiplied out.

    Groups of one device send nothing and are left out. Loops whose count XLA does not tell count once.
    """
    parts, entry, name = {}, "", ""
    for line in program.splitlines():
        head = _COMPUTATION.match(line.rstrip())
        if head:
            name = head[2]
            parts[name], entry = [], name if head[1] else entry
        elif name:
            parts[name].append(line)
    return [item for item in _walk(parts, entry, 1, devices) if item.group > 1]


def _walk(parts: Mapping[str, list[str]], name: str, times: int, devices: int) -> Iterable[Collective]:
    for line in parts.get(name, ()):
        found = _INSTRUCTION.search(line)
        if found:
            yield Collective(
                found[2], _size(found[1], found[2], bool(found[3])), _group(line, devices), times
            )
            continue  # it calls its own addition alone
        trips = _TRIPS.search(line)
        inner = times * int(trips[1]) if trips and " while(" in line else times
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for other in called:
            yield from _walk(parts, other, inner, devices)


def _size(shape: str, kind: str, started: bool) -> int:
    sizes = []
    for dtype, dims in _SHAPE.findall(shape):
        bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
        sizes.append(math.prod(int(d) for d in dims.split(",") if d) * bits // 8)
    if started and kind in ("all-gather", "collective-permute"):
        return sizes[1]  # operand, result, and what the platform adds
    return sum(sizes)


def _group(line: str, devices: int) -> int:
    """How many devices take part in one group of the operation."""
    if "source_target_pairs=" in line:
        return devices
    named = re.search(r"replica_groups=mesh\[([^]]*)\][^{]*\{([^}]*)\}", line)
    if named:  # axes of a mesh, or parts of one: 'x', 'y':(2)4
        sizes = dict(re.findall(r"('[^']+')=(\d+)", named[1]))
        axes = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    if "replica_groups={}" in line:
        return devices
    raise ValueError(f"groups of devices in a form that is not known here: {line.strip()[:300]}")


def by_kind(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """For each `KIND over GROUP`: `count`, `mib` of results and `sent_mib`, of each device in a step."""
    totals: dict[str, dict[str, float]] = {}
    for item in found:
        row = totals.setdefault(f"{item.kind} over {item.group}", {"count": 0, "mib": 0.0, "sent_mib": 0.0})
        row["count"] += item.times
        row["mib"] += item.times * item.size / 2**20
        row["sent_mib"] += item.times * item.sent / 2**20
    return totals
