"""Real torch files in, and files that torchvision, timm and transformers take back without a word."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="the comparisons with torch need the extra [parity]")

from hfgd_jax.errors import UserError  # noqa: E402
from hfgd_jax.weights import pretrained  # noqa: E402
from hfgd_jax.weights.layouts import resize_position_bias  # noqa: E402

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def load(name, path):
    empty = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), pretrained.backbone_shapes(name))
    return pretrained.load_backbone(empty, name, path)


def torchvision_network(name):
    models = pytest.importorskip("torchvision").models
    return getattr(models, {"convnext_t": "convnext_tiny"}.get(name, name))()


def timm_network(name):
    timm = pytest.importorskip("timm")
    names = {"convnext_a": "convnext_atto", "swin_t": "swin_tiny_patch4_window7_224"}
    return timm.create_model(names.get(name, name))


def transformers_network(name):
    transformers = pytest.importorskip("transformers")
    if name == "swin_t":
        return transformers.SwinForImageClassification(transformers.SwinConfig(num_heads=[3, 6, 12, 24]))
    if name == "convnext_a":
        sizes = {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}
        return transformers.ConvNextBackbone(transformers.ConvNextConfig(out_features=STAGES, **sizes))
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    )


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (torchvision_network, "resnet18"),
        (torchvision_network, "convnext_t"),
        (torchvision_network, "swin_t"),
        (timm_network, "resnet18"),
        (timm_network, "convnext_a"),
        (timm_network, "swin_t"),
    ],
)
def test_state_dicts_there_and_back(make, name, parity, tmp_path):
    """As `.pth`, wrapped as training scripts do; the export is loaded into another network, strictly."""
    network = parity.randomize(make(name))
    wrapped = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "weights.pth")
    variables, report = load(name, tmp_path / "weights.pth")
    assert not report.notes and (report.reinitialised == [] or "norm_4" in "".join(report.reinitialised))
    naming = "torchvision" if make is torchvision_network else "timm"
    tensors = pretrained.export(variables, pretrained.find_naming(name, naming), root="backbone")
    theirs = {key: value.numpy() for key, value in network.state_dict().items()}
    assert {key.removeprefix("module.") for key in report.surplus} == theirs.keys() - tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)
    other, rest = make(name), {key: torch.tensor(theirs[key]) for key in theirs.keys() - tensors.keys()}
    other.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()} | rest, strict=True)


@pytest.mark.parametrize("name", ["resnet18", "convnext_a", "swin_t"])
def test_transformers_folders_there_and_back(name, parity, tmp_path):
    """Whatever stands before the names, they and the tensors come back."""
    network = parity.randomize(transformers_network(name))
    network.save_pretrained(tmp_path)
    variables, report = load(name, tmp_path)
    assert report.naming == "transformers" and not report.notes[1:]
    saved = load_file(tmp_path / "model.safetensors")
    exported = pretrained.export(variables, pretrained.find_naming(name, "transformers"), root="backbone")
    prefix = pretrained.find_naming(name, "transformers").prefixes[0]
    norms = {key for key in exported if "hidden_states_norms" in key}
    exported = {key: value for key, value in exported.items() if key not in norms or name == "convnext_a"}
    for key, value in exported.items():
        (own,) = [k for k in report.loaded if f".{k}".endswith("." + key.removeprefix(prefix))]
        np.testing.assert_array_equal(value, saved[own], err_msg=key)
    assert len(exported) == len(report.loaded)


def test_position_biases_resize_as_in_torch():
    rng = np.random.default_rng(0)
    for window, new in ((7, 12), (12, 7), (12, 24), (8, 7)):
        table = rng.standard_normal(((2 * window - 1) ** 2, 3)).astype(np.float32)
        maps = torch.tensor(table.T.reshape(1, 3, 2 * window - 1, 2 * window - 1).copy())
        side = 2 * new - 1
        theirs = torch.nn.functional.interpolate(maps, size=(side, side), mode="bicubic")
        theirs = theirs.reshape(3, -1).T.numpy()
        ours = resize_position_bias(table, side**2)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_half_precision_and_other_kinds_of_files(parity, tmp_path):
    network = parity.randomize(timm_network("resnet18"))
    path = tmp_path / "weights.bin"
    torch.save(network.bfloat16().state_dict(), path)
    variables, report = load("resnet18", path)
    assert report.notes == ["100 tensors cast from bfloat16 to float32"]
    kernel = network.conv1.weight.detach().float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(variables["params"]["backbone"]["conv1"]["kernel"], kernel)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match="cannot be read as torch weights"):
        load("resnet18", path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(UserError, match="flat dictionary"):
        load("resnet18", path)
    path.write_text("<!DOCTYPE html> a page")
    with pytest.raises(UserError, match="cannot be read as torch weights"):
        load("resnet18", path)
    path.write_bytes(whole)
    path.rename(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="is a torch file"):
        load("resnet18", tmp_path / "weights.safetensors")


def test_a_whole_network_is_no_state_dict_and_never_run(tmp_path):
    """`torch.save(network)` holds classes to call; so does a trap in its place."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "network.pth")
    marker = tmp_path / "marker"

    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(marker)!r}, 'w')",))

    torch.save({"state_dict": {"conv1.weight": Trap()}}, tmp_path / "trap.pth")
    for name in ("network.pth", "trap.pth"):
        with pytest.raises(UserError, match="never run") as error:
            load("resnet18", tmp_path / name)
        assert "\n" not in str(error.value)
    assert not marker.exists()
    torch.load(tmp_path / "trap.pth", weights_only=False)  # the trap does work
    assert marker.exists()
