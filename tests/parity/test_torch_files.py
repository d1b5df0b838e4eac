"""Files that torch itself writes, in both formats, against what torch reads of them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the comparisons with torch need the extra [parity]")

from hfgd_jax.weights import files  # noqa: E402

TYPES = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves(zipped, tmp_path):
    generator = torch.Generator().manual_seed(0)
    numbers = 4 * torch.randn(5, 6, generator=generator)
    state = {
        f"of {name}": (numbers > 0 if name == "bool" else numbers.to(getattr(torch, name))) for name in TYPES
    }
    state |= {
        "transposed": numbers.T,
        "channels last": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        "part": numbers[1:4, ::2],
        "row": numbers[2],
        "scalar": numbers[1, 1],
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(numbers.clone()),
        "frozen": torch.nn.Parameter(numbers, requires_grad=False),
    }
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 3, 2, 2)).sum().backward()
    optimizer.step()
    checkpoint = {"epoch": 3, "optimizer": optimizer.state_dict(), "state_dict": network.state_dict()}
    path = tmp_path / "weights.pth"
    for saved, sharing in ((state, ("transposed", "part")), (checkpoint, ())):
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
        theirs = torch.load(path, weights_only=True)
        theirs, ours = theirs.get("state_dict", theirs), files.read(path)
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            assert ours[name].dtype.name == str(value.dtype).removeprefix("torch."), name
            np.testing.assert_array_equal(
                ours[name].astype(np.float64), value.detach().double(), err_msg=name
            )
        assert not sharing or np.shares_memory(*(ours[name] for name in sharing))
