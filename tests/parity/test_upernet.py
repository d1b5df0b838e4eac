"""transformers' UPerNet as a run here, and back: the same logits."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the comparisons with torch need the extra [parity]")
transformers = pytest.importorskip("transformers", reason="needs the extra [parity]")

from hfgd_jax.runs import saved_config, system  # noqa: E402
from hfgd_jax.tools import export_weights, import_weights  # noqa: E402

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "convnext_t": lambda: transformers.ConvNextConfig(
        depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 768], out_features=STAGES
    ),
    "swin_t": lambda: transformers.SwinConfig(
        depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=STAGES
    ),
    "resnet50": lambda: transformers.ResNetConfig(
        depths=[3, 4, 6, 3], hidden_sizes=[256, 512, 1024, 2048], out_features=STAGES
    ),
}


def logits_before_resizing(network, images):
    """Of the decoder, `[B, K, h, w]`."""
    kept = []
    handle = network.decode_head.classifier.register_forward_hook(lambda *args: kept.append(args[-1]))
    with torch.no_grad():
        network(pixel_values=torch.tensor(images.transpose(0, 3, 1, 2).copy()))
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("name", BACKBONES)
def test_logits_are_transformers(name, parity, tmp_path):
    labels = {"id2label": dict(enumerate("abcde")), "label2id": {k: i for i, k in enumerate("abcde")}}
    network = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=BACKBONES[name](), hidden_size=64, **labels)
    )
    parity.randomize(network).save_pretrained(tmp_path / "theirs")
    report = import_weights.import_model(tmp_path / "theirs", tmp_path / "run")
    assert report.missing == report.reinitialised == []
    config = saved_config.get_config(str(tmp_path / "run"))
    assert config.model.backbone.name == name
    whole, variables, _, table = system.load(config, str(tmp_path / "run"), "latest")
    assert table.classes == tuple("abcde")

    # 256x224: levels of 64x56 to 8x7, so that Swin's windows pad and bins of the pooling overlap.
    pixels = np.random.default_rng(0).integers(0, 256, (1, 256, 224, 3), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((pixels / 255 - mean) / std).astype(np.float32)
    theirs = logits_before_resizing(network, normalised)
    ours = jax.jit(lambda v, x: whole.model.apply(v, x, train=False).logits)(variables, pixels)
    error = parity.relative_error(ours, theirs)
    print(f"{name}: {error:.1e}")
    assert error < 1e-3

    export_weights.export_run(
        str(tmp_path / "run"), "latest", "transformers", str(tmp_path / "back"), overwrite=False
    )
    again, loading = transformers.UperNetForSemanticSegmentation.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not loading["unexpected_keys"] and not loading["mismatched_keys"]
    # Swin's last norm, which a backbone has in memory and never uses, is in no file of ours.
    assert all("swin.layernorm" in key for key in loading["missing_keys"]), loading["missing_keys"]
    torch.testing.assert_close(
        logits_before_resizing(again.eval(), normalised),
        theirs,
        rtol=0,
        atol=1e-6 * float(theirs.abs().max()),
    )
    assert json.loads((tmp_path / "back" / "config.json").read_text())["id2label"]["4"] == "e"
