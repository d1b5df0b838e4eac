"""hfgd_jax.tools.scaling: bytes read from compiled programs, and the model of a step's time."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hfgd_jax.errors import UserError
from hfgd_jax.tools import scaling
from hfgd_jax.tools.scaling import Collective

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%body.1 (state: (s32[], f32[16])) -> (s32[], f32[16]) {
  %g = bf16[2,8]{1,0} all-gather(%x), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[16]) tuple(%i, %y)
}

%condition.1 (state: (s32[], f32[16])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.9 (p: f32[16]) -> f32[16] {
  %r = (f32[10]{0}, f32[6]{0}) all-reduce(%p, %q), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %s = (bf16[4]{0}, bf16[8]{0}) all-gather-start(%p), replica_groups={{0,1},{2,3}}, dimensions={0}
  %d = bf16[8]{0} all-gather-done(%s)
  %n = f32[2]{0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'b','c'}
  %h = f32[3]{0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}, dimensions={0}
  %c = pred[3]{0} reduce-scatter(%p), replica_groups={}, to_apply=%add
  %one = f32[5]{0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add
  %w = (s32[], f32[16]) while(%init), condition=%condition.1, body=%body.1, {TRIPS}
  ROOT %m = f32[16]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}
""".replace("{TRIPS}", 'backend_config={"known_trip_count":{"n":"7"}}')


def test_collectives_of_a_program_with_a_loop():
    found = scaling.collectives(PROGRAM, devices=8)
    assert sorted(found, key=lambda item: item.kind) == [
        Collective("all-gather", 16, 2, 1),
        Collective("all-gather", 32, 2, 7),
        Collective("all-reduce", 64, 4, 1),
        Collective("all-to-all", 8, 4, 1),
        Collective("all-to-all", 12, 4, 1),
        Collective("collective-permute", 64, 8, 1),
        Collective("reduce-scatter", 3, 8, 1),
    ]
    sums = scaling.by_kind(found)["all-gather over 2"]
    assert sums == {"count": 8, "mib": (16 + 7 * 32) / 2**20, "sent_mib": (16 + 7 * 32) / 2 / 2**20}


def test_groups_that_cannot_be_read_are_told():
    with pytest.raises(ValueError, match="form that is not known here: %x = f32"):
        scaling.collectives("ENTRY %m (p: f32[]) -> f32[] {\n %x = f32[] all-reduce(%p), groups=?\n}", 8)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 150.0),
        ("all-gather", 75.0),
        ("reduce-scatter", 300.0),
        ("all-to-all", 75.0),
        ("collective-permute", 100.0),
    ],
)
def test_bytes_of_a_ring_of_four(kind, sent):
    assert Collective(kind, 100, 4).sent == sent


def test_what_xla_compiles_is_read_as_it_was_written():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def body(total, row):
        return total + jax.lax.psum(row, ("data", "fsdp")), None

    def inner(x, w):
        whole = jax.lax.all_gather(w, "fsdp", tiled=True)
        return jax.lax.scan(body, jnp.zeros(6), x)[0] * whole.sum()

    split = jax.shard_map(
        inner, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("fsdp")), out_specs=PartitionSpec(),
        check_vma=False,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((5, 6), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    w = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    program = jax.jit(split).lower(x, w).compile().as_text()
    found = scaling.collectives(program, devices=8)
    assert Collective("all-gather", 256, 2, 1) in found
    assert sum(item.times for item in found if item.kind == "all-reduce" and item.group == 8) == 5
    assert {item.size for item in found if item.kind == "all-reduce"} == {24}


def test_more_chips_widen_the_groups_along_data():
    found = [Collective("all-reduce", 1, 8), Collective("all-reduce", 1, 4), Collective("all-gather", 1, 2)]
    groups = [item.group for item in scaling.widened(found, data=4, fsdp=2, chips=512)]
    assert groups == [512, 256, 2]
    assert scaling.widened(found[:1], data=8, fsdp=1, chips=8) == found[:1]
    with pytest.raises(UserError, match="--chips=9: no multiple"):
        scaling.widened(found, data=4, fsdp=2, chips=9)
    with pytest.raises(UserError, match="compile for one whose data is larger"):
        scaling.widened(found, data=1, fsdp=8, chips=64)


def test_model_of_a_step():
    chip = scaling.Chip(peak=1e12, ring=1e9, reach=4, beyond=1e8, source="")
    compute, none = scaling.step_seconds(scaling.UTILISATION * 2e12, [], chip)
    assert (compute, none) == (pytest.approx(2.0), 0)
    near = scaling.collective_seconds(Collective("all-reduce", 10**9, 4, 3), chip)
    assert near == pytest.approx(3 * (1.5 + 2 * scaling.LATENCY))
    # Beyond the fast links each chip sends its quarter alone, over the slow ones.
    far = scaling.collective_seconds(Collective("all-reduce", 10**9, 8), chip)
    assert far == pytest.approx(1.5 + 2 * 0.5 * 0.25e9 / 1e8 + 3 * scaling.LATENCY)


def test_flops_of_a_device():
    result = {"batch": [16, 1, 1], "mesh": {"data": 4, "fsdp": 2}, "macs_per_image": 10}
    assert scaling.model_flops(result) == 2 * 60  # two images, two FLOPs, forward and twice that backward


def test_table_of_the_model(tmp_path, monkeypatch, capsys):
    line = {
        "model": {"backbone": {"name": "resnet50"}},
        "mesh": {"data": 8, "fsdp": 1},
        "batch": [16, 513, 513],
        "macs_per_image": 10**11,
        "collectives": [["all-reduce", 10**8, 8, 1]],
        "config": "configs/x.py",
    }
    other = line | {"mesh": {"data": 1, "fsdp": 8}}  # tells nothing of more chips
    path = tmp_path / "results.jsonl"
    gathers = line | {"mesh": {"data": 4, "fsdp": 2}, "collectives": [["all-gather", 10**8, 8, 1]]}
    path.write_text("".join(json.dumps(result) + "\n" for result in (line, other, gathers)))
    values = type("Values", (), {"results": str(path), "chips": ["8", "512"]})
    monkeypatch.setattr(scaling.flags, "FLAGS", values)
    assert scaling.main([]) == 0
    out = capsys.readouterr().out
    rows = [row for row in out.splitlines() if row.startswith("| resnet50")]
    assert len(rows) == 2 * len(scaling.CHIPS) and "assumed: 35% of the peak" in out
    assert out.count("left out") == 2 and "mesh {'data': 4, 'fsdp': 2}" in out
    for pair in zip(rows[::2], rows[1::2], strict=True):
        times = [float(row.split("|")[6]) for row in pair]
        assert times[0] < times[1]  # communication grows with the chips, computation does not
        assert len({row.split("|")[5] for row in pair}) == 1
    values.results = str(tmp_path / "none")
    with pytest.raises(UserError, match=r"no such file; benchmarks/communication\.py"):
        scaling.main([])
    values.results, values.chips = str(path), ["many"]
    with pytest.raises(UserError, match="many"):
        scaling.main([])


@pytest.mark.slow
def test_a_step_adds_up_every_gradient(user_env):
    command = [sys.executable, "benchmarks/communication.py", "--config=configs/demo.py:tiny", "--devices=4"]
    done = subprocess.run(
        [*command, "--config.train.batch_size=4"], cwd=ROOT, env=user_env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["mesh"] == {"data": 4, "fsdp": 1} and result["flops"] > result["macs_per_image"] > 1e7
    added = result["by_kind"]["all-reduce over 4"]
    state = result["gib_per_device"]["state_and_batch"] * 1024  # parameters and two moments, MiB
    assert state / 3 * 0.9 < added["mib"] < state
    assert sum(c[3] for c in result["collectives"] if c[0] == "all-reduce") == added["count"]
