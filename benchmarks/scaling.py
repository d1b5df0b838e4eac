"""A model of a training step's time on more chips than there are here; nothing was measured for its times.

    python benchmarks/scaling.py --results benchmarks/results/2026-11-24_cpu2_communication.jsonl

The results are lines of `benchmarks/communication.py`: what a compiled step sends. The model adds vendors'
bandwidths and two assumed figures, `UTILISATION` and `LATENCY`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from absl import flags
from etils import epath
from hlo import Collective

from hfgd_jax.errors import UserError
from hfgd_jax.runtime import shell


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
