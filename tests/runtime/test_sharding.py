"""The mesh, the rules of sharding, the rows of a batch. The same numbers on any mesh: test_step.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from hfgd_jax.errors import UserError
from hfgd_jax.runtime import sharding


def mesh_config(data=-1, fsdp=1):
    return ConfigDict({"data": data, "fsdp": fsdp})


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (1, 1, (1, 1)), (1, 8, (1, 8)), (3, 2, (3, 2))],
)
def test_mesh_sizes_follow_from_the_config_and_the_device_count(data, fsdp, shape):
    assert sharding.mesh_shape(mesh_config(data, fsdp), 8) == shape
    assert dict(sharding.make_mesh(mesh_config(data, fsdp)).shape) == dict(
        zip(("data", "fsdp"), shape, strict=True)
    )


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (9, 1, "only 8 devices"),
        (-1, 3, "config.mesh.fsdp=3: does not divide"),
        (16, -1, "config.mesh.data=16"),
    ],
)
def test_meshes_that_do_not_fit_the_devices_are_refused(data, fsdp, message):
    with pytest.raises(UserError, match=message):
        sharding.mesh_shape(mesh_config(data, fsdp), 8)


def test_large_kernels_are_split_on_their_largest_axis_that_divides():
    spec = sharding.spec_of
    assert spec("params/a/kernel", (3, 3, 256, 512), 4) == P(None, None, None, "fsdp")
    assert spec("opt_state/0/mu/a/kernel", (3, 3, 512, 256), 4) == P(None, None, "fsdp")
    assert spec("params/a/kernel", (256, 256), 8) == P(None, "fsdp")  # the last of equals
    assert spec("params/a/kernel", (250, 128), 4) == P(None, "fsdp")  # 250 does not divide
    assert spec("params/a/kernel", (255, 129), 4) == P()
    assert spec("params/a/kernel", (64, 64), 4) == P()  # small
    assert spec("params/a/bias", (65_536,), 4) == P()
    assert spec("params/a/kernel", (256, 256), 1) == P()


def test_a_state_is_sharded_by_the_rules_and_gathered_whole():
    mesh = sharding.make_mesh(mesh_config(2, 4))
    tree = {"kernel": np.arange(2**15, dtype=np.float32).reshape(128, 256), "bias": np.arange(5.0)}
    lying = jax.device_put(tree, sharding.state_shardings(mesh, tree))
    assert {x.data.shape for x in lying["kernel"].addressable_shards} == {(128, 64)}
    assert lying["bias"].is_fully_replicated
    for copy in (sharding.gathered(mesh, lying), sharding.local_copy(mesh, lying)):
        assert all(x.is_fully_replicated for x in copy.values())
        jax.tree.map(np.testing.assert_array_equal, copy, tree)
    assert all(len(x.devices()) == 1 for x in sharding.local_copy(mesh, lying).values())


def test_the_table_of_rules_needs_no_devices():
    tree = {
        "a": {"kernel": jax.ShapeDtypeStruct((128, 4096), jnp.float32)},
        "b": jax.ShapeDtypeStruct((3,), jnp.int32),
    }
    mesh = sharding.abstract_mesh(mesh_config(-1, 64), 512)
    table = sharding.rules_table(mesh, tree).splitlines()
    assert table[1].split() == ["a/kernel", "128", "x", "4096/64", "0.031", "(^|/)kernel$"]
    assert table[2].split() == ["b", "3", "0.000", "(any)"]
    assert "2.0 MiB in all, 0.0 MiB on each of 512 devices" in table[3]


def test_the_rows_of_a_batch_are_split_over_all_devices():
    mesh = sharding.make_mesh(mesh_config(2, 4))
    assert sharding.process_share(mesh) == (0, 1)
    batch = sharding.global_batch(mesh, {"x": np.arange(16).reshape(16, 1)})["x"]
    assert [int(shard.data[0, 0]) for shard in batch.addressable_shards] == list(range(0, 16, 2))


def test_the_smallest_kernels_that_are_split_and_depthwise_ones_that_are_not():
    assert sharding.spec_of("params/a/kernel", (128, 128), 4) == P(None, "fsdp")
    assert sharding.spec_of("params/a/depthwise/kernel", (7, 7, 1, 1024), 4) == P()
