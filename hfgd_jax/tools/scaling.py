"""What a step sends between devices, read from compiled programs, and a model of its time on more chips.

    python -m hfgd_jax.tools.scaling --results benchmarks/results/2026-11-24_cpu2_communication.jsonl

The results are lines of `benchmarks/communication.py`. The times are a model's (`step_seconds`): no
accelerator was measured for them.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from absl import flags
from etils import epath

from hfgd_jax.errors import UserError
from hfgd_jax.runtime import shell

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
            continue  # what it calls is its addition
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


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the model takes of a chip; vendors' own figures, nothing measured here.

    Attributes:
        peak: FLOP/s in bfloat16.
        ring: bytes/s that a chip can send in a ring over the fast links.
        reach: chips that the fast links join at most.
        beyond: bytes/s that a chip has to the chips out of reach.
        source: what the figures are.
    """

    peak: float
    ring: float
    reach: int
    beyond: float
    source: str


CHIPS = {
    "tpu-v5e": Chip(
        197e12, 100e9, 256, 3.1e9, "ICI 1,600 Gbit/s a chip, one axis of its two; beyond: assumed"
    ),
    "tpu-v5p": Chip(
        459e12, 200e9, 8960, 6.2e9, "ICI 4,800 Gbit/s a chip, one axis of its three; beyond: assumed"
    ),
    "h100-sxm": Chip(989e12, 450e9, 8, 50e9, "NVLink 4, 450 GB/s each way; InfiniBand NDR, 400 Gbit/s a GPU"),
}
UTILISATION = 0.35  # of the peak, by the step's computation: assumed
LATENCY = 5e-6  # seconds of each collective for each doubling of its group: assumed


def collective_seconds(item: Collective, chip: Chip) -> float:
    """Time of all runs of a collective in a step: bytes over links, plus a latency.

    Of an all-reduce over more chips than the fast links join each chip sends only its share beyond them.
    """
    inner = min(item.group, chip.reach)
    outer = math.ceil(item.group / inner)
    seconds = dataclasses.replace(item, group=inner).sent / chip.ring if inner > 1 else 0.0
    if outer > 1:
        share = item.size / inner if item.kind == "all-reduce" else item.size
        seconds += dataclasses.replace(item, size=int(share), group=outer).sent / chip.beyond
    return item.times * (seconds + LATENCY * math.log2(item.group))


def widened(found: Iterable[Collective], *, data: int, fsdp: int, chips: int) -> list[Collective]:
    """The collectives of a mesh `(data, fsdp)` as they would be on `chips`, with more of `data` alone.

    The batch of each chip stays, so the sizes do; groups along `data` and over all grow with it.

    Raises:
        UserError: `chips` is no multiple of `fsdp`, or the sizes of the axes do not tell them apart.
    """
    if chips % fsdp:
        raise UserError(f"--chips={chips}: no multiple of the mesh's fsdp={fsdp}")
    if data == fsdp > 1 or (data == 1 and fsdp > 1):
        raise UserError(f"mesh data={data}, fsdp={fsdp}: compile for one whose data is larger than its fsdp")
    groups = {data * fsdp: chips, data: chips // fsdp, fsdp: fsdp}
    return [dataclasses.replace(item, group=groups.get(item.group, item.group)) for item in found]


def gathers_batch(found: Iterable[Collective], *, data: int, fsdp: int) -> bool:
    """Whether a step gathers over the whole mesh: what it gathers would grow with the chips, too."""
    return data > 1 and fsdp > 1 and any(i.kind == "all-gather" and i.group == data * fsdp for i in found)


def step_seconds(flops: float, found: Iterable[Collective], chip: Chip) -> tuple[float, float]:
    """Model of a step's seconds: computation, and communication with nothing of it hidden behind the other.

    Args:
        flops: of each device in a step.
        found: the collectives of each device in a step.
        chip: what it runs on.
    """
    return flops / (chip.peak * UTILISATION), sum(collective_seconds(item, chip) for item in found)


def model_flops(result: Mapping) -> float:
    """FLOPs of each device in a step: three times the forward pass's.

    XLA's own count is not taken: of ConvNeXt-L it is 2.4 times as much, and why is not known.
    """
    images = result["batch"][0] / math.prod(result["mesh"].values())
    return 3 * 2 * result["macs_per_image"] * images


def table(results: Sequence[Mapping], chips: Sequence[int]) -> str:
    """The model's times as a Markdown table: one line for each result, chip and number of chips."""
    lines = [
        "| model | mesh compiled for | chip | chips | compute, ms | communication, ms | efficiency |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        mesh, found = result["mesh"], [Collective(*item) for item in result["collectives"]]
        for (name, chip), count in ((c, n) for c in CHIPS.items() for n in chips):
            wide = widened(found, data=mesh["data"], fsdp=mesh["fsdp"], chips=count)
            compute, communication = step_seconds(model_flops(result), wide, chip)
            least, most = compute / (compute + communication), compute / max(compute, communication)
            backbone = result["model"]["backbone"]["name"]
            lines.append(
                f"| {backbone} | data={mesh['data']}, fsdp={mesh['fsdp']} | {name} | {count} "
                f"| {compute * 1e3:.1f} | {communication * 1e3:.1f} | {least:.0%} to {most:.0%} |"
            )
    return "\n".join(lines)


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("results", None, "File of lines of benchmarks/communication.py.", required=True)
    flags.DEFINE_list("chips", "8,64,512", "Numbers of chips, with commas.")


def main(_: Sequence[str]) -> int:
    """Prints the model's table; returns the exit code."""
    path = epath.Path(flags.FLAGS.results)
    try:
        results = [json.loads(text) for text in path.read_text().splitlines()]
        chips = [int(number) for number in flags.FLAGS.chips]
    except FileNotFoundError:
        raise UserError(
            f"--results={path}: no such file; benchmarks/communication.py prints its lines"
        ) from None
    except ValueError as error:
        raise UserError(f"--results={path}, --chips={','.join(flags.FLAGS.chips)}: {error}") from None
    known, unknown = [], []
    for result in results:
        mesh, found = result["mesh"], [Collective(*item) for item in result["collectives"]]
        unfit = mesh["data"] <= mesh["fsdp"] or gathers_batch(found, **mesh)
        (unknown if unfit else known).append(result)
    print(table(known, chips))
    print()
    for result in unknown:
        print(f"left out, since it does not tell of more chips: {result['config']}, mesh {result['mesh']}")
    print(
        f"assumed: {UTILISATION:.0%} of the peak; {LATENCY * 1e6:.0f} us a collective and doubling of chips"
    )
    for name, chip in CHIPS.items():
        print(f"{name}: {chip.peak / 1e12:.0f} TFLOP/s in bfloat16; {chip.source}")
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
