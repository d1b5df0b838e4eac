"""transformers' UPerNet as a run here, and back: the same logits."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the comparisons with torch need the extra [parity]")
transformers = pytest.importorskip("transformers", reason="needs the extra [parity]")

from hfgd_jax.inference.tiles import TiledPredictor  # noqa: E402
from hfgd_jax.inference.views import Inference  # noqa: E402
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


@pytest.fixture(scope="module", params=BACKBONES)
def both(request, parity, tmp_path_factory):
    """A backbone's name; transformers' network with random weights; folder, config, parts of its import."""
    name, folder = request.param, tmp_path_factory.mktemp("upernet")
    labels = {"id2label": dict(enumerate("abcde")), "label2id": {k: i for i, k in enumerate("abcde")}}
    network = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=BACKBONES[name](), hidden_size=64, **labels)
    )
    parity.randomize(network).save_pretrained(folder / "theirs")
    report = import_weights.import_model(folder / "theirs", folder / "run")
    assert report.missing == report.reinitialised == []
    config = saved_config.get_config(str(folder / "run"))
    assert config.model.backbone.name == name
    return name, network, folder, config, system.load(config, str(folder / "run"), "latest")


def normalised(pixels):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / std).astype(np.float32)


def test_logits_are_transformers(both, parity, tmp_path):
    name, network, folder, _, (whole, variables, _, table) = both
    assert table.classes == tuple("abcde")

    # 256x224: levels of 64x56 to 8x7, so that Swin's windows pad and bins of the pooling overlap.
    pixels = np.random.default_rng(0).integers(0, 256, (1, 256, 224, 3), np.uint8)
    theirs = logits_before_resizing(network, normalised(pixels))
    ours = jax.jit(lambda v, x: whole.model.apply(v, x, train=False).logits)(variables, pixels)
    error = parity.relative_error(ours, theirs)
    print(f"{name}: {error:.1e}")
    assert error < 1e-3

    export_weights.export_run(
        str(folder / "run"), "latest", "transformers", str(tmp_path / "back"), overwrite=False
    )
    again, loading = transformers.UperNetForSemanticSegmentation.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not loading["unexpected_keys"] and not loading["mismatched_keys"]
    # Swin's last norm, which a backbone has in memory and never uses, is in no file of ours.
    assert all("swin.layernorm" in key for key in loading["missing_keys"]), loading["missing_keys"]
    torch.testing.assert_close(
        logits_before_resizing(again.eval(), normalised(pixels)),
        theirs,
        rtol=0,
        atol=1e-6 * float(theirs.abs().max()),
    )
    assert json.loads((tmp_path / "back" / "config.json").read_text())["id2label"]["4"] == "e"


def test_masks_at_sizes_off_the_stride_are_those_of_the_padded_image(both):
    """docs/weights.md has the shares that this prints (`pytest -s`): transformers does not pad."""
    name, network, _, config, (whole, variables, _, _) = both
    few = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    image = np.asarray(Image.fromarray(few).resize((311, 413), Image.Resampling.BICUBIC))
    padded = np.full((416, 320, 3), np.asarray(whole.mean_pixel).round(), np.uint8)
    padded[:413, :311] = image

    def mask(pixels):
        with torch.no_grad():
            given = torch.tensor(normalised(pixels[None]).transpose(0, 3, 1, 2).copy())
            return network(pixel_values=given).logits[0].argmax(0).numpy()[:413, :311]

    predictor = TiledPredictor(Inference(whole.model, config), variables, whole.mean_pixel)
    predictor.plan([image.shape[:2]])
    ours = predictor(image)[0]
    assert len(np.unique(ours)) > 1
    off, off_padded = (ours != mask(image)).mean(), (ours != mask(padded)).mean()
    print(f"{name}: other than transformers at {off:.2%} of the pixels; its input padded: {off_padded:.2%}")
    assert off_padded < 0.002
