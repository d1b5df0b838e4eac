"""benchmarks/hlo.py reads compiled programs; scaling.py makes a model of a step's time of them."""

import json
import subprocess
import sys
from pathlib import Path

import hlo
import jax
import jax.numpy as jnp
import pytest
import scaling
from hlo import Collective
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hfgd_jax.errors import UserError

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
    found = hlo.collectives(PROGRAM, devices=8)
    assert sorted(found, key=lambda item: item.kind) == [
        Collective("all-gather", 16, 2, 1),
        Collective("all-gather", 32, 2, 7),
        Collective("all-reduce", 64, 4, 1),
        Collective("all-to-all", 8, 4, 1),
        Collective("all-to-all", 12, 4, 1),
        Collective("collective-permute", 64, 8, 1),
        Collective("reduce-scatter", 3, 8, 1),
    ]
    sums = hlo.by_kind(found)["all-gather over 2"]
    assert sums == {"count": 8, "mib": (16 + 7 * 32) / 2**20, "sent_mib": (16 + 7 * 32) / 2 / 2**20}


def test_groups_in_an_unknown_form_raise():
    with pytest.raises(ValueError, match="form that is not known here: %x = f32"):
        hlo.collectives("ENTRY %m (p: f32[]) -> f32[] {\n %x = f32[] all-reduce(%p), groups=?\n}", 8)


def test_bytes_that_a_device_sends_in_a_ring_of_four():
    sent = {kind: Collective(kind, 100, 4).sent for kind in hlo.KINDS}
    assert sent == {
        "all-reduce": 150.0,
        "all-gather": 75.0,
        "reduce-scatter": 300.0,
        "all-to-all": 75.0,
        "collective-permute": 100.0,
    }


def test_collectives_of_what_xla_compiles_are_those_that_were_written():
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
    found = hlo.collectives(program, devices=8)
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


def test_step_seconds_are_flops_over_the_peak_and_bytes_over_the_links():
    chip = scaling.Chip(peak=1e12, ring=1e9, reach=4, beyond=1e8, source="")
    compute, none = scaling.step_seconds(scaling.UTILISATION * 2e12, [], chip)
    assert (compute, none) == (pytest.approx(2.0), 0)
    near = scaling.collective_seconds(Collective("all-reduce", 10**9, 4, 3), chip)
    assert near == pytest.approx(3 * (1.5 + 2 * scaling.LATENCY))
    # Beyond the fast links each chip sends its quarter alone, over the slow ones.
    far = scaling.collective_seconds(Collective("all-reduce", 10**9, 8), chip)
    assert far == pytest.approx(1.5 + 2 * 0.5 * 0.25e9 / 1e8 + 3 * scaling.LATENCY)


def test_table_has_the_models_times_and_leaves_out_meshes_that_tell_nothing_of_more_chips(tmp_path, user_env):
    line = {
        "model": {"backbone": {"name": "resnet50"}},
        "mesh": {"data": 8, "fsdp": 1},
        "batch": [16, 513, 513],
        "macs_per_image": 10**11,
        "collectives": [["all-reduce", 10**8, 8, 1]],
        "config": "configs/x.py",
    }
    # Two images a device, two FLOPs a multiply-accumulate, the forward pass and twice that backward.
    assert scaling.model_flops(line) == 2 * 2 * 3 * 10**11
    split = line | {"mesh": {"data": 1, "fsdp": 8}}
    gathers = line | {"mesh": {"data": 4, "fsdp": 2}, "collectives": [["all-gather", 10**8, 8, 1]]}
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(result) + "\n" for result in (line, split, gathers)))

    def command(*arguments):
        words = [sys.executable, "benchmarks/scaling.py", *arguments]
        done = subprocess.run(words, cwd=ROOT, env=user_env, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, err = command(f"--results={path}", "--chips=8,512")
    assert code == 0, err
    rows = [row for row in out.splitlines() if row.startswith("| resnet50")]
    assert len(rows) == 2 * len(scaling.CHIPS) and "assumed: 35% of the peak" in out
    assert out.count("left out") == 2 and "mesh {'data': 4, 'fsdp': 2}" in out
    for few, many in zip(rows[::2], rows[1::2], strict=True):
        few, many = few.split("|"), many.split("|")
        assert float(few[6]) < float(many[6])  # communication grows with the chips, computation does not
        assert few[5] == many[5]
    code, _, err = command(f"--results={tmp_path / 'none'}")
    assert code == 2 and "no such file; benchmarks/communication.py" in err


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
