"""hfgd_jax.tools.export_weights: backbones and whole UPerNets out of a run, and in again."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from hfgd_jax import config as configs
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.runs import system
from hfgd_jax.tools import export_weights, import_weights
from hfgd_jax.weights import pretrained


def make_run(workdir, method, seed=0, **changes):
    """A run of step 0 with random variables: a small model on ResNet-18 or ConvNeXt-atto."""
    config = configs.default()
    configs.set_method(config, method)
    if method == "upernet":
        configs.set_backbone(config, "convnext_a")
    configs.set_tiny(config)
    config.model.update_from_flattened_dict({key.replace("__", "."): v for key, v in changes.items()})
    whole, rng = system.build(config), np.random.default_rng(seed)
    shapes = jax.eval_shape(system.make_init(whole), jax.random.PRNGKey(0)).model
    variables = jax.tree.map(lambda s: rng.random(s.shape, np.float32), shapes)
    import_weights.write_run(epath.Path(workdir), whole, variables, TABLES["shapes"])
    return variables


def export(workdir, output, naming="", checkpoint="latest", overwrite=False):
    return export_weights.export_run(str(workdir), checkpoint, naming, str(output), overwrite=overwrite)


@pytest.fixture(scope="module")
def hfgd(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("hfgd")
    return workdir, make_run(workdir, "hfgd")


@pytest.fixture(scope="module")
def upernet(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("upernet")
    return workdir, make_run(workdir, "upernet", channels=8, context_channels=8, batch_norm_epsilon=1e-5)


def test_a_runs_backbone_comes_back(hfgd, tmp_path):
    workdir, variables = hfgd
    lines = export(workdir, tmp_path / "out" / "weights.safetensors", naming="torchvision")
    assert lines == [
        f"wrote {tmp_path}/out/weights.safetensors: 100 tensors of resnet18 at step 0, "
        "in torchvision's naming"
    ]
    empty = jax.tree.map(np.zeros_like, variables)
    loaded, _ = pretrained.load_backbone(empty, "resnet18", tmp_path / "out" / "weights.safetensors")
    for collection in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal,
            loaded[collection]["backbone"],
            variables[collection]["backbone"],
        )
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(loaded[collection]["upsampler"]))


def test_what_a_naming_has_no_name_for_is_told(upernet, tmp_path):
    lines = export(upernet[0], tmp_path / "a.safetensors", naming="timm")
    assert [line.split(":")[0] for line in lines[:2]] == [
        "not written     params/backbone/norm_16/bias",
        "not written     params/backbone/norm_16/scale",
    ]
    assert len(lines) == 9


def test_a_whole_upernet_comes_back_bit_exact(upernet, tmp_path):
    workdir, variables = upernet
    folder = tmp_path / "exported"
    (line,) = export(workdir, folder, naming="transformers")
    assert str(folder) in line
    described = json.loads((folder / "config.json").read_text())
    assert described["id2label"]["3"] == TABLES["shapes"].classes[3]
    assert described["backbone_config"]["hidden_sizes"] == [40, 80, 160, 320]
    report = import_weights.import_model(folder, tmp_path / "again")
    assert report.reinitialised == []
    config = configs.from_json((tmp_path / "again" / "config.json").read_text())
    _, again, _, table = system.load(config, str(tmp_path / "again"), "latest")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), variables)
    assert table == TABLES["shapes"]
    with pytest.raises(UserError, match="--overwrite"):
        export(workdir, folder, naming="transformers")


def test_another_epsilon_goes_into_the_variances(tmp_path):
    variables = make_run(tmp_path / "run", "upernet", channels=8, context_channels=8)
    export(tmp_path / "run", tmp_path / "out", naming="transformers")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    var = variables["batch_stats"]["upsampler"]["fuse"]["norm"]["var"]
    written = tensors["decode_head.fpn_bottleneck.batch_norm.running_var"]
    np.testing.assert_allclose(written + 1e-5, var + 1e-3, rtol=1e-6)


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("folder", {"naming": "transformers"}, "config.model.context='cae'"),
        ("folder", {"naming": "timm"}, "want FILE.safetensors"),
        ("a.safetensors", {"naming": "mmseg"}, "'mmseg': resnet18 has none"),
        ("a.safetensors", {"checkpoint": "best"}, "not in"),
    ],
)
def test_refusals(output, options, words, hfgd, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        export(hfgd[0], tmp_path / output, **options)
    assert "\n" not in str(error.value) and not (tmp_path / output).exists()


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        export(tmp_path, tmp_path / "a.safetensors")
