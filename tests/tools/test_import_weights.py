"""hfgd_jax.tools.import_weights: a backbone's file checked and rewritten, a whole UPerNet made a run."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_weights import UPERNET, random_backbone, random_upernet

from hfgd_jax import main
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.runs import saved_config, system
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.tools import import_weights
from hfgd_jax.weights import pretrained


@pytest.fixture(scope="module")
def tensors():
    return random_upernet()


@pytest.fixture
def folder(tensors, tmp_path):
    """A folder as transformers saves it."""
    folder = tmp_path / "upernet"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(UPERNET))
    return folder


def test_a_whole_model_becomes_a_run_that_predicts(folder, tensors, tmp_path, capsys):
    workdir = tmp_path / "run"
    report = import_weights.import_model(folder, workdir)
    assert report.surplus == [
        "auxiliary_head.classifier.bias",
        "decode_head.bottleneck.batch_norm.num_batches_tracked",
    ]
    assert report.reinitialised == [] and len(report.loaded) == len(tensors) - 2

    config = saved_config.get_config(str(workdir))
    assert config.model.backbone.name == "convnext_a" and config.data.num_classes == 4
    _, variables, step, table = system.load(config, str(workdir), "latest")
    assert step == 0 and table.classes == ("sky", "road (1)", "car", "road (3)")
    assert len({tuple(color) for color in table.palette}) == 4
    params = variables["params"]
    for leaf, source in (
        (params["context"]["branch_6"]["conv"]["kernel"], "decode_head.psp_modules.3.1.conv.weight"),
        (params["upsampler"]["smooth_8"]["conv"]["kernel"], "decode_head.fpn_convs.1.conv.weight"),
        (params["backbone"]["norm_32"]["scale"], "backbone.hidden_states_norms.stage4.weight"),
        (params["class_tokens"]["kernel"], "decode_head.classifier.weight"),
    ):
        wanted = tensors[source] if leaf.ndim == 1 else tensors[source].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(leaf, wanted.reshape(leaf.shape), err_msg=source)

    (tmp_path / "photos").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "photos" / "one.png")
    output = tmp_path / "out"
    assert main.predict_images(config, str(workdir), "latest", str(tmp_path / "photos"), str(output)) == 0
    mask = np.asarray(Image.open(output / "masks" / "one.png"))
    assert mask.shape == (40, 60) and mask.max() < 4
    assert "predicting with step 0" in capsys.readouterr().out

    with pytest.raises(UserError, match="holds a run"):
        import_weights.import_model(folder, workdir)
    import_weights.import_model(folder, workdir, overwrite=True)
    state = jax.eval_shape(system.make_init(system.build(config)), jax.random.PRNGKey(0))
    _, training = Checkpoints(workdir, read_only=True).restore(0, state.model, state.training)
    assert int(training["step"]) == 0  # training goes on from here


def test_a_trained_run_is_never_replaced(folder, tmp_path):
    workdir = tmp_path / "run"
    saved = Checkpoints(workdir)
    saved.save(3, {"a": np.zeros(1)}, {"b": np.zeros(1)}, {"step": 3})
    saved.close()
    with pytest.raises(UserError, match="not an import's"):
        import_weights.import_model(folder, workdir, overwrite=True)
    assert (workdir / "checkpoints" / "3").exists()


def test_a_damaged_model_is_refused_and_leaves_no_run(folder, tensors, tmp_path):
    spoilt = {k: v for k, v in tensors.items() if k != "decode_head.fpn_convs.0.conv.weight"}
    spoilt["decode_head.classifier.bias"] = np.zeros(5, np.float32)
    save_file(spoilt, folder / "model.safetensors")
    with pytest.raises(UserError) as error:
        import_weights.import_model(folder, tmp_path / "run")
    assert "1 missing: decode_head.fpn_convs.0.conv.weight" in str(error.value)
    assert "decode_head.classifier.bias (5,) (want (4,))" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", None, "needs the config.json"),
        ("config.json", "{", "cannot be read as JSON"),
        ("preprocessor_config.json", '{"image_mean": [0.5, 0.5, 0.5]}', "image_mean"),
        ("config.json", json.dumps(UPERNET | {"id2label": {"1": "a", "2": "b"}}), "id2label"),
    ],
)
def test_what_stands_beside_the_weights(name, text, words, folder, tmp_path):
    (folder / name).unlink(missing_ok=True)
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=words) as error:
        import_weights.import_model(folder, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_other_spellings_of_a_data_sets_names_are_recognised():
    """As mmsegmentation's ADE20K has them: stray blanks, and some synonyms at the same places."""
    ade = TABLES["ade20k"]
    names = {str(i): name for i, name in enumerate(ade.classes)}
    names |= {str(7): f"{names['7']} ", str(89): "television receiver", str(141): "crt screen"}
    assert import_weights.label_table({"id2label": names}, {}) == ade
    other = names | {str(i): f"thing {i}" for i in range(9)}
    table = import_weights.label_table({"id2label": other}, {})
    assert table.name == "imported" and table.classes[89] == "television receiver"


def test_label_tables():
    camvid = TABLES["camvid"]
    given = {"id2label": {i: f"{name.title()}, or so" for i, name in enumerate(camvid.classes)}}
    assert import_weights.label_table(given, {}) == camvid
    table = import_weights.label_table({"id2label": {"0": "a", "1": "b"}}, {"do_reduce_labels": True})
    np.testing.assert_array_equal(table.to_train_ids(np.array([[0, 1, 2, 255]])), [[255, 0, 1, 255]])
    assert import_weights.label_table({}, {}).classes == ("LABEL_0", "LABEL_1")


def test_a_backbones_file_in_another_naming(tmp_path):
    source = random_backbone("convnext_a", "transformers")
    save_file({k: v.astype(np.float16) for k, v in source.items()}, tmp_path / "source.safetensors")

    def run(**options):
        return import_weights.import_backbone(
            "convnext_a", tmp_path / "source.safetensors", tmp_path / "out", **options
        )

    path, report, lost = run(naming="timm")
    assert path == tmp_path / "out" / "convnext_a.safetensors" and report.naming == "transformers"
    assert lost == [f"params/backbone/norm_{n}/{k}" for n in (16, 32, 4, 8) for k in ("bias", "scale")]
    written = load_file(path)
    assert written.keys() == pretrained.find_naming("convnext_a", "timm").targets.keys()
    np.testing.assert_array_equal(
        written["stem.0.weight"],
        source["convnext.embeddings.patch_embeddings.weight"].astype(np.float16).astype(np.float32),
    )
    with pytest.raises(UserError, match="--overwrite"):
        run()
    # Back again: timm's files have no norms of the levels, and none are made up.
    path.replace(tmp_path / "source.safetensors")
    _, report, lost = run(naming="transformers")
    assert len(report.reinitialised) == 8 and lost == []
    assert not any("hidden_states_norms" in name for name in load_file(path))
    with pytest.raises(UserError, match="'mmseg'"):
        run(naming="mmseg", overwrite=True)


def test_the_command(tmp_path, user_env):
    source = random_backbone("resnet18")
    save_file(source | {"fc.bias": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    command = [sys.executable, "-m", "hfgd_jax.tools.import_weights", "--backbone=resnet18"]
    command += [f"--source={tmp_path}/a.safetensors", f"--output={tmp_path}/out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=user_env, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "loaded          bn1.weight -> params/backbone/bn1/scale" in lines
    assert "left out        fc.bias" in lines
    assert lines[-1].startswith(f"wrote {tmp_path}/out/resnet18.safetensors")
