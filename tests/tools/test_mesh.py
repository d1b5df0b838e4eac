"""The table of a state on a mesh."""

import re

import pytest

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.tools import mesh


def tiny():
    config = configuration.default()
    configuration.set_method(config, "hfgd")
    configuration.set_tiny(config)
    return config


def test_every_device_holds_its_share():
    config = tiny()
    config.mesh.fsdp = 8
    lines = mesh.table(config, 64).splitlines()
    whole, here = map(
        float, re.search(r"([\d.]+) MiB in all, ([\d.]+) MiB on each of 64", lines[-1]).groups()
    )
    assert whole / 8 < here < whole / 6  # what is small stays whole
    names = [line.split()[0] for line in lines[1:-1]]
    assert "params/backbone/layer4_1/conv2/kernel" in names
    assert any(name.endswith("mu/backbone/layer4_1/conv2/kernel") for name in names)
    assert any(
        re.match(r"params/backbone/layer4_1/conv2/kernel +3 x 3 x 512 x 512/8 ", line) for line in lines
    )


def test_a_mesh_that_does_not_fit_is_refused():
    config = tiny()
    config.mesh.fsdp = 16
    with pytest.raises(UserError, match=r"config\.mesh\.fsdp=16: does not divide the 8 devices"):
        mesh.table(config, 8)
