"""Exports: a bundle's files, its programs run by the loader alone, folding, open sizes, refusals."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax import export as jax_export
from PIL import Image
from safetensors.numpy import load_file
from tiny_exports import ALONE, pictures, random_variables, tiny

from hfgd_jax import config as configuration
from hfgd_jax import main
from hfgd_jax.data import augment
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.export import bundle, exporter, loader, program
from hfgd_jax.export.program import Program, flatten
from hfgd_jax.runs.checkpoints import Checkpoints, meta
from hfgd_jax.tools import export_onnx

pytestmark = pytest.mark.usefixtures("light_backbone_everywhere")
IMAGE = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a checkpoint of step 7, the best with an mIoU, its config and its variables."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny(guidance__tokens=False, guidance__probe=True)
    variables = random_variables(config)
    (workdir / "config.json").write_text(configuration.to_json(config))
    saved = Checkpoints(workdir)
    saved.save(7, variables, {"step": np.int32(7)}, meta(7, config, TABLES["shapes"]))
    saved.save_best(7, variables, meta(7, config, TABLES["shapes"], mIoU=0.25))
    saved.close()
    return workdir, config, variables


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """(bundle, the lines that the export said); its norms are folded."""
    workdir, config, _ = run
    lines = []
    path = tmp_path_factory.mktemp("exported") / "bundle"
    options = {"fold_batch_norm": True, "orbax": True, "log": lines.append}
    code = exporter.run(config, str(workdir), "best", str(path), **options)
    assert code == 0
    return path, lines


@pytest.fixture
def copy(exported, tmp_path):
    """A bundle to spoil."""
    return Path(shutil.copytree(exported[0], tmp_path / "bundle"))


def test_a_bundle_runs_with_jax_and_numpy_alone(run, exported, user_env, tmp_path):
    """Batches of 1 and 3, on the grid and off it, in a process that can import nothing else."""
    _, config, variables = run
    given = {"one": pictures(1, 65, 97), "odd": pictures(3, 50, 70)}
    np.savez(tmp_path / "pictures.npz", **given)
    command = [sys.executable, "-c", ALONE, exported[0], tmp_path / "pictures.npz", tmp_path / "found.npz"]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, env=user_env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "9 (9, 3)\n"
    found, reference = np.load(tmp_path / "found.npz"), exporter.evaluated(config, variables)
    for name, images in given.items():
        wanted = reference(images)
        logits, masks = found[f"float32 {name} logits"], found[f"float32 {name} masks"]
        assert logits.dtype == np.float32 and logits.shape == (*images.shape[:3], 9)
        assert masks.dtype == np.uint8 and masks.shape == images.shape[:3]
        assert np.abs(logits - wanted).max() <= 1e-4 * np.abs(wanted).max()
        np.testing.assert_array_equal(masks, logits.argmax(-1))
        assert np.mean(masks != wanted.argmax(-1)) < 1e-3
        rough = found[f"bfloat16 {name} logits"]
        # Random weights on noise amplify what bfloat16 rounds, here and there.
        assert 1e-4 < np.abs(rough - wanted).mean() / np.abs(wanted).max() < 0.05
        assert np.mean(found[f"bfloat16 {name} masks"] == masks) > 0.8


def test_the_command_line_of_the_loader(exported, user_env, tmp_path):
    """Arrays and image files in, masks and overlays out; one line for what is wrong; nothing is replaced."""
    image, out = pictures(50, 70), tmp_path / "out"
    np.save(tmp_path / "array.npy", image)
    Image.fromarray(image).save(tmp_path / "photo.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")

    def call(*words):
        command = [sys.executable, exported[0] / "loader.py", exported[0], *words]
        again = {"capture_output": True, "text": True, "timeout": 120, "cwd": tmp_path, "env": user_env}
        return subprocess.run([*map(str, command)], **again)

    done = call("array.npy", "photo.png", "--output", "out")
    assert done.returncode == 0, done.stderr
    mask = np.load(out / "array.npy")
    assert mask.shape == (50, 70) and mask.dtype == np.uint8
    largest = np.bincount(mask.ravel()).argmax()
    share = f"{TABLES['shapes'].classes[largest]} {np.mean(mask == largest):.1%}"
    assert all(line.count(share) for line in done.stdout.splitlines())
    with Image.open(out / "photo.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), mask)
        assert picture.getpalette()[:27] == TABLES["shapes"].palette.ravel().tolist()
    mixed = np.asarray(Image.open(out / "photo_overlay.png"), np.int16)
    assert np.abs(mixed - (image / 2 + TABLES["shapes"].palette[mask] / 2)).max() <= 1
    for words, says in (
        (("photo.png", "--output", "out"), "exists"),
        (("broken.jpg",), "cannot identify"),
        (("nothing.png",), "No such file"),
        (("array.npy", "--dtype=float16"), "no float16 variant"),
    ):
        done = call(*words)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and says in done.stderr
        assert done.stderr.count("\n") == 1
    assert "usage: loader.py" in call().stderr


def test_the_readme_of_a_bundle_names_classes_and_score(exported):
    text = (exported[0] / "README.md").read_text()
    assert "Step 7 of a run" in text and "mIoU 0.2500" in text and "float32, bfloat16" in text
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 9 and rows[0].startswith("| 0 | sky | #")


def test_orbax_weights_are_written_on_request(run, tmp_path):
    workdir, config, _ = run
    exporter.run(config, str(workdir), "best", str(tmp_path / "b"), dtypes=["float32"], log=lambda line: None)
    assert not (tmp_path / "b" / "orbax").exists()
    assert "orbax" not in loader.verify(tmp_path / "b")["parity"]


def test_the_manifest_tells_what_was_written(run, exported):
    path, lines = exported
    manifest = loader.verify(path)
    assert manifest["step"] == 7 and manifest["mIoU"] == 0.25 and manifest["fold_batch_norm"]
    assert {*manifest["files"], bundle.MANIFEST} == set(bundle.list_files(path))
    assert manifest["versions"]["jax"] == jax.__version__
    assert configuration.from_json((path / "config.json").read_text()).to_dict() == run[1].to_dict()
    for dtype in exporter.DTYPES:
        found = jax_export.deserialize(
            bytearray((path / manifest["variants"][dtype]["program"]).read_bytes())
        )
        assert found.platforms == tuple(manifest["platforms"]) == ("cpu", "cuda", "tpu")
        assert str(found.in_avals[-3]) == "uint8[b,32*h + 1,32*w + 1,3]"
        assert [str(aval) for aval in found.out_avals] == ["uint8[b,r,c]", "float32[b,r,c,9]"]
    assert manifest["parity"]["orbax"]["max_difference"] <= exporter.BOUND
    assert manifest["parity"]["float32"]["max_difference"] <= exporter.BOUND
    assert manifest["parity"]["batches"] == [1, 3] and len(manifest["parity"]["sizes"]) == 2
    size = {d: (path / d / "weights.safetensors").stat().st_size for d in exporter.DTYPES}
    arrays = {
        d: sum(leaf.nbytes for leaf in load_file(path / d / "weights.safetensors").values()) for d in size
    }
    assert arrays["bfloat16"] < 0.51 * arrays["float32"]  # the files' headers are alike, and weigh here
    for dtype in exporter.DTYPES:
        assert any(line.startswith(f"{dtype}: weights {size[dtype] / 1e6:.1f} MB") for line in lines)
        assert any(line.startswith(f"{dtype}: max |difference|") for line in lines)


def test_orbax_alone_restores_the_parameters(run, tmp_path):
    """Unfolded they are the trained ones, without what only training reads, and the model runs on them."""
    _, config, variables = run
    weights = Program(config, "float32").read(variables, fold_batch_norm=False)
    bundle.write_tree(tmp_path / "orbax", program.unflatten_dict(weights, sep="/"))
    restored = ocp.StandardCheckpointer().restore(tmp_path / "orbax")
    trained, found = flatten(variables), flatten(restored)
    left_out = trained.keys() - found.keys()
    assert found.keys() < trained.keys()
    assert left_out == {name for name in trained if name.split("/")[1] == "probe"}
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, trained[name])
    model = Program(config, "float32").model
    assert jax.eval_shape(lambda v, x: model.apply(v, x, train=False).logits, restored, IMAGE).shape[-1] == 9


def test_changed_files_are_noticed(copy):
    weights = copy / "float32/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"float32/weights\.safetensors is not the file that was exported"):
        loader.load(copy)
    assert loader.load(copy, "bfloat16").classes == list(TABLES["shapes"].classes)
    with pytest.raises(ValueError, match="has no float16 variant"):
        loader.load(copy, "float16")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy.parent / "outside").write_bytes(weights.read_bytes())
    manifest["variants"]["float32"]["weights"] = "../outside"
    manifest["files"]["../outside"] = {"sha256": loader.hashlib.sha256(data).hexdigest()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"\.\./outside"):
        loader.load(copy)


def test_only_a_bundle_is_replaced(exported, copy, tmp_path):
    with pytest.raises(UserError, match="exists; choose another, or pass --overwrite"):
        bundle.target(str(copy), overwrite=False)
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__/loader.cpython-311.pyc").write_bytes(b"")
    assert bundle.target(str(copy), overwrite=True) == copy
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which is not the bundle's"):
        bundle.target(str(copy), overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "link").symlink_to(exported[0])
    for path, says in ((other, "is no bundle of this program"), (tmp_path / "link", "is no folder")):
        with pytest.raises(UserError, match=says):
            bundle.target(str(path), overwrite=True)
    with pytest.raises(UserError, match="writes to a local folder"):
        bundle.target("gs://bucket/bundle", overwrite=True)


def test_a_folder_is_whole_or_not_there(tmp_path):
    path = tmp_path / "bundle"
    for attempt in ("first", "second"):
        with bundle.staged(path) as folder:
            (folder / attempt).write_text("x")
        assert bundle.list_files(path) == [attempt]
    with pytest.raises(UserError, match="No space left"), bundle.staged(path) as folder:
        (folder / "third").write_text("x")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), bundle.staged(path):
        raise KeyboardInterrupt
    assert bundle.list_files(path) == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_wrong_weight_is_noticed_and_nothing_is_left(run, tmp_path, monkeypatch):
    workdir, config, _ = run
    write = bundle.write_variant

    def spoilt(folder, dtype, weights, lowered):
        kernel = "params/axial_attention/out/conv/kernel"
        return write(folder, dtype, weights | {kernel: weights[kernel] * np.float32(1.01)}, lowered)

    monkeypatch.setattr(bundle, "write_variant", spoilt)
    monkeypatch.setattr(exporter, "BATCHES", (1,))
    with pytest.raises(UserError, match=r"float32 is .* away from the model.*nothing was exported"):
        exporter.run(
            config,
            str(workdir),
            "7",
            str(tmp_path / "b"),
            dtypes=("float32",),
            fold_batch_norm=True,  # what the fixture has compiled
            log=lambda _: None,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [0.5, 0.75, 1 / 3, 1.5, 2.0])
def test_the_loader_rescales_as_evaluation_does(scale):
    part = augment.as_fraction(scale)
    for size in ((50, 71), (33, 64)):
        image = pictures(*size)
        found = image[None]
        for axis in (1, 2):
            found = loader._rescale(found, axis, part.numerator, part.denominator)
        wanted = augment.resize_image(image, scale)
        assert found[0].shape == wanted.shape
        assert np.abs(found[0].astype(int) - wanted).max() <= 2  # each axis is rounded here, and in cv2


def test_a_scaled_model_predicts_at_the_pictures_own_pixels(exported, run):
    """A model of half the picture's scale: where its rows lie in the picture's, and what is between them."""
    _, config, variables = run
    model = loader.load(exported[0])
    model.scale = (1, 2)
    small = pictures(1, 65, 97)
    logits = model(small.repeat(2, 1).repeat(2, 2), logits=True)  # which halves to `small` itself
    assert logits.shape == (1, 130, 194, 9)
    wanted = exporter.evaluated(config, variables)(small)
    places = (np.arange(8, 40) + 0.5) / 2 - 0.5
    low, part = np.floor(places).astype(int), (places % 1)[:, None, None]
    # Pixels of both pictures lie within one cell of the output stride, where logits are linear.
    rows = wanted[0, low] * (1 - part) + wanted[0, low + 1] * part
    columns = rows[:, low] * (1 - part[None, :, 0]) + rows[:, low + 1] * part[None, :, 0]
    np.testing.assert_allclose(logits[0, 8:40, 8:40], columns, atol=0.15 * np.abs(wanted).max())
    inside = low % 4 != 3  # both neighbours in one cell: exact
    found = logits[0, 8:40, 8:40][inside][:, inside]
    np.testing.assert_allclose(found, columns[inside][:, inside], atol=1e-4 * np.abs(wanted).max())


def test_the_last_evaluation_tells_the_score_of_its_step(run, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    assert exporter.known_mean_iou(str(workdir), "best", 7) == 0.25
    assert exporter.known_mean_iou(str(workdir), "latest", 7) is None
    (workdir / "metrics.json").write_text(json.dumps({"step": 7, "mIoU": 0.5}))
    assert exporter.known_mean_iou(str(workdir), "latest", 7) == 0.5
    (workdir / "metrics.json").write_text(json.dumps({"step": 6, "mIoU": 0.5}))
    assert exporter.known_mean_iou(str(workdir), "latest", 7) is None


def test_a_nan_is_no_agreement():
    wanted = [(pictures(1, 2, 2), np.ones((1, 2, 2, 3), np.float32))]
    found = exporter.difference(lambda images: np.full((1, 2, 2, 3), np.nan, np.float32), wanted)
    assert not found["max_difference"] <= exporter.BOUND


def test_onnx_says_what_it_needs(exported, tmp_path, monkeypatch):
    """What converts is not installed where the tests run; docs/export.md has the figures."""
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"jax2onnx.*see docs/export\.md"):
        export_onnx.convert(exported[0], (65, 97), 1, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="--size=64x97: not on the model's grid; use 65x97"):
        export_onnx.at_size(exported[0], (64, 97), 1)
    with pytest.raises(UserError, match="cannot be read"):
        export_onnx.at_size(tmp_path, (65, 97), 1)
    function, argument = export_onnx.at_size(exported[0], (65, 97), 2)
    masks, logits = jax.eval_shape(function, argument)
    assert masks.shape == (2, 65, 97) and logits.shape == (2, 65, 97, 9)


DEFAULTS = dict.fromkeys(main.OF_MODES) | {"mode": "export", "output": "b", "ids": "train"}
DEFAULTS |= {"dtypes": list(exporter.DTYPES), "fold_batch_norm": False, "orbax": False, "overwrite": False}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"output": None}, "--output: needed with --mode=export"),
        ({"input": "photos"}, "--input=photos: only with --mode=predict"),
        ({"wandb": "mine"}, "--wandb=mine: only with --mode=train"),
        ({"checkpoint": "watch"}, "--checkpoint=watch: only with --mode=eval"),
        ({"dtypes": ["float16"]}, "--dtypes=float16: want float32 or bfloat16, or both"),
        ({"dtypes": []}, "--dtypes=: want"),
        ({"mode": "eval"}, "--output=b: only with --mode=predict or export"),
        ({"mode": "train", "output": None, "overwrite": True}, "--overwrite: only with"),
        ({"mode": "train", "output": None, "checkpoint": "best"}, "--checkpoint=best: only with --mode=eval"),
        ({"mode": "train", "output": None, "fold_batch_norm": True}, "--fold_batch_norm: only with"),
        ({"mode": "train", "output": None, "dtypes": ["float32"]}, "--dtypes: only with --mode=export"),
    ],
)  # fmt: skip
def test_flags_that_do_not_belong_are_refused(changes, says):
    main.check_mode(DEFAULTS)
    with pytest.raises(UserError, match=says):
        main.check_mode(DEFAULTS | changes)
