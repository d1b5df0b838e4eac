"""A bundle goes to the hub and comes back, and what the model card says."""

import json
import re

import hub_server
import numpy as np
import pytest
from tiny_exports import pictures, random_variables, tiny

import hfgd_jax
from hfgd_jax import config as configuration
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.export import exporter, hub
from hfgd_jax.export.card import card
from hfgd_jax.runs.checkpoints import Checkpoints, meta
from hfgd_jax.weights import sources

pytestmark = pytest.mark.usefixtures("light_backbone_everywhere")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle of a run whose last evaluation was of its only step."""
    folder = tmp_path_factory.mktemp("hub")
    config, table = tiny(), TABLES["shapes"]
    variables = random_variables(config)
    saved = Checkpoints(folder / "run")
    saved.save(7, variables, {"step": np.int32(7)}, meta(7, config, table))
    saved.close()
    (folder / "run" / "config.json").write_text(configuration.to_json(config))
    scores = {"step": 7, "mIoU": 0.5, "per_class": dict.fromkeys(table.classes, 0.125) | {"sky": None}}
    (folder / "run" / "metrics.json").write_text(json.dumps(scores))
    options = {"dtypes": ["float32"], "log": lambda line: None}
    exporter.run(config, str(folder / "run"), "latest", str(folder / "bundle"), **options)
    return folder / "bundle"


@pytest.fixture
def server(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="the hub needs the extra [hub]")
    files = {"some/net": {"model.safetensors": b""}, "some/evil": {}}
    manifest = {"variants": {"float32": {"program": "../../x", "weights": "w"}}}
    files["some/evil"] = {"manifest.json": json.dumps(manifest).encode(), "labels.json": b"{}"}
    running = hub_server.start(
        monkeypatch, tmp_path, files, {"some/gated": (403, {"X-Error-Code": "GatedRepo"})}
    )
    monkeypatch.setenv("HF_TOKEN", "good")
    yield running
    running.stop()


def test_a_bundle_that_was_pushed_predicts_the_same_by_its_name(exported, server, capsys):
    hub.push(str(exported), "me/model")
    assert "hfgd_jax.load('hf:me/model')" in capsys.readouterr().out
    sent, manifest = server.files["me/model"], json.loads((exported / "manifest.json").read_text())
    assert sent.keys() == {"manifest.json", *manifest["files"]}
    assert all((exported / name).read_bytes() == data for name, data in sent.items())
    image = pictures(1, 50, 70)[0]
    model = hfgd_jax.load("hf:me/model@main")
    np.testing.assert_array_equal(model(image).mask, hfgd_jax.load(exported)(image).mask)
    server.stop()  # now from the cache
    np.testing.assert_array_equal(hfgd_jax.load("hf:me/model")(image).mask, model(image).mask)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:some/net", "holds no manifest.json; want a bundle, as hfgd push writes it"),
        ("hf:some/evil", "names a file outside of it: '../../x'"),
        ("hf:some/net@v2", "has no revision 'v2'"),
        ("hf:net", "want hf:OWNER/NAME"),
    ],
)
def test_what_is_no_bundle_is_refused(server, name, says):
    with pytest.raises(UserError, match=re.escape(says)):
        hfgd_jax.load(name)


def test_what_cannot_be_pushed_is_refused(exported, server, tmp_path, monkeypatch):
    for folder, repository, says in (
        (exported, "model", "--repository=model: want OWNER/NAME"),
        (tmp_path, "me/model", "is no whole bundle"),
    ):
        with pytest.raises(UserError, match=says):
            hub.push(str(folder), repository)
    monkeypatch.setenv("HF_TOKEN", "bad")
    with pytest.raises(UserError, match=r"--repository=me/model: .* log in \(hf auth login\)"):
        hub.push(str(exported), "me/model")
    assert "me/model" not in server.files


def test_the_card_has_classes_scores_settings_and_licence(exported):
    text = (exported / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: hfgd_jax\npipeline_tag: image-segmentation\n")
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 9 and re.fullmatch(r"\| 0 \| sky \| #[0-9a-f]{6} \| n/a \|", rows[0])
    assert rows[1].endswith("| 12.5 |") and "Step 7 of a run" in text and "mIoU 0.5000" in text
    assert "| guidance | tokens, protect, axial_attention |" in text and "from random weights" in text
    config = tiny()
    config.model.backbone.weights = "/home/me/secret/net.pth"
    config.data.dataset = "a|b"
    described = {"step": 1, "mIoU": None, "variants": [], "platforms": [], "input": {"crop": [65, 65]}}
    text = card(described, TABLES["shapes"], config, {})
    assert "IoU % on" not in text and "a\\|b" in text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "from random weights"),
        ("pip:efficientnet_lite0", "Apache-2.0"),
        ("hf:timm/resnet50.a1_in1k@main", "https://huggingface.co/timm/resnet50.a1_in1k"),
        ("/home/me/net.pth", "the file `net.pth`, whose licence is not known here"),
    ],
)
def test_the_licence_of_weights_by_their_name(name, says):
    assert says in sources.licence(name) and "/home" not in sources.licence(name)
