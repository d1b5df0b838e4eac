"""Inputs are hostile: no code in them is run, none exhausts memory, and no file of others is touched."""

import ast
import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from etils import epath
from PIL import Image
from safetensors.numpy import save_file

from hfgd_jax.data import builders, prepared
from hfgd_jax.data.builders import base, class_lists, files
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError, escaped, printable
from hfgd_jax.inference import predict, render
from hfgd_jax.runs import log, saved_config
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runtime import storage
from hfgd_jax.tools import import_weights, sample_images
from hfgd_jax.weights import files as weight_files

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "hfgd_jax").rglob("*.py"))
TABLE = LabelTable("two", ("dark", "bright"), [(10, 0, 0), (0, 0, 250)], {0: 0, 1: 1})


def quiet(line):
    """A report that says nothing."""


class Dark:
    """All of class 0."""

    def plan(self, sizes):
        self.sizes = list(sizes)

    def __call__(self, picture):
        return np.zeros(picture.shape[:2], np.uint8), 1


def _picture(path, size=(8, 9), value=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def _tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- nothing in a file is run --

MODULES_THAT_RUN_DATA = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "torch"),
}


def test_nothing_that_runs_data_is_imported_or_called():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                found = {name.split(".")[0] for name in names} & MODULES_THAT_RUN_DATA
                assert not found, f"{path}: imports {found}"
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert name not in ("eval", "exec", "compile", "os.system", "os.popen"), f"{path}: {name}"
                assert options.get("shell", "False") == "False", f"{path}: {name} with shell"
                assert options.get("allow_pickle", "False") == "False", f"{path}: {name}"
                if name in ("np.load", "numpy.load", "jnp.load"):
                    assert "allow_pickle" in options, f"{path}: {name} without allow_pickle=False"


def test_a_saved_config_is_data(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("__import__('os').mkdir('made')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"config.json"):
        saved_config.get_config(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_objects_in_a_matlab_file_are_refused(tmp_path):
    cell = np.empty((2, 2), object)
    cell[:] = "x"
    scipy.io.savemat(tmp_path / "cell.mat", {"S": cell})
    scipy.io.savemat(tmp_path / "struct.mat", {"S": {"a": 1}})
    for name in ("cell", "struct"):
        with pytest.raises(UserError, match=r"'S' is .*; want a map of whole numbers"):
            files.read_mat(tmp_path / f"{name}.mat", "S")


# -- files that claim too much --


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2**31) + b"{}",
        struct.pack("<Q", 90)
        + b'{"a":{"dtype":"F32","shape":[99999999999,99999999],"data_offsets":[0,8]}}'.ljust(90)
        + b"\0" * 8,
    ],
)
def test_weights_that_claim_too_much(data, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read as \.safetensors"):
        weight_files.read(tmp_path / "w.safetensors")


# -- names that lead elsewhere --


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "..", "sub/x.safetensors"])
def test_shards_lie_beside_their_index(shard, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "secret.safetensors")
    (folder / weight_files.INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError, match=r"its shard .* is not beside it"):
        weight_files.read(folder)


@pytest.mark.parametrize("name", ["../../outside/a", "/etc/passwd", "../images/a", "a\0b"])
def test_lists_name_files_of_their_folder_only(name, tmp_path):
    _picture(tmp_path / "outside" / "a.png")
    raw = tmp_path / "raw"
    for i in range(2):
        _picture(raw / "images" / f"{i}.png")
        Image.fromarray(np.zeros((8, 9), np.uint8)).save(_picture(raw / "masks" / f"{i}.png"))
    (raw / "classes.txt").write_text("dark\nbright\n")
    (raw / "train.txt").write_text(f"0\n{name}\n")
    (raw / "val.txt").write_text("1\n")
    with pytest.raises(UserError, match="neither image nor mask of"):
        builders.prepare("folder", raw, tmp_path / "data", report=quiet)
    with pytest.raises(UserError, match="neither image nor label"):
        base.listed(raw / "train.txt", raw / "images", raw / "masks", ".png")
    assert not (tmp_path / "data").exists()


def test_pipes_and_devices_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png: is no file but a pipe or device"):
        files.by_key(tmp_path, (".png",))
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"a.png: is no file but a pipe or device"):
        files.by_key(tmp_path, (".png",))


HOSTILE_IDS = [
    "../../up",
    "/etc/passwd",
    "a\0b",
    "..",
    "",
    "x" * 400,
    "con",
    "NUL.txt",
    "a\x1b[2J",
    "a\nb",
    ".hid",
]


def test_records_ids_make_plain_file_names():
    names = [storage.file_name(text) for text in HOSTILE_IDS]
    for name in names:
        assert re.fullmatch(r"[\w-][\w.-]*", name) and len(name) <= storage.LONGEST + 1, name
    assert not {"con", "NUL.txt"} & set(names)
    assert storage.file_name("berlin_000000_000019") == "berlin_000000_000019"
    assert storage.file_name("x" * 400) != storage.file_name("x" * 401)


def test_predictions_of_hostile_ids_stay_in_the_output(camvid_dir, tmp_path, monkeypatch):
    split = prepared.open_split(camvid_dir, "camvid", "val")
    monkeypatch.setattr(split, "record_id", lambda index: HOSTILE_IDS[index])
    out, lines = tmp_path / "deep" / "out", []
    report = predict.run(Dark(), split, out, table=split.table, log=lines.append)
    assert len(report.masks) == len(split) == len({str(path) for path in report.masks})
    assert {Path(path).parent for path in report.masks} == {out / "masks"}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert all(line.isprintable() for line in lines)


def test_what_a_terminal_would_obey_is_escaped(tmp_path):
    assert escaped("a\x1b[31m\n\u202eb \xa0c") == "a\\x1b[31m\\n\\u202eb \xa0c"
    assert printable("two\n  lines \x07") == "two lines \\x07"
    name = _picture(tmp_path / "in" / "a\x1b[2J\n.png").name
    lines = []
    predict.run(Dark(), str(tmp_path / "in"), tmp_path / "out", table=TABLE, log=lines.append)
    assert len(lines) == 1 and lines[0].isprintable() and name not in lines[0]


@pytest.mark.parametrize("name", ["a\x1b[2J", "two\nlines", "\u202eback", "", "x" * 501])
def test_class_names_are_plain_text(name, tmp_path):
    table = json.loads(TABLE.to_json()) | {"classes": [name, "bright"]}
    with pytest.raises(UserError, match=r"class name .*want a line of 1 to 500 characters") as caught:
        LabelTable.from_json(json.dumps(table))
    assert str(caught.value).isprintable()
    if name and "\n" not in name:
        (tmp_path / "classes.csv").write_text(f"name,r,g,b\n{name},0,0,0\nb,1,1,1\n")
        with pytest.raises(UserError, match="class name"):
            class_lists.read(tmp_path)


# -- nothing of others is deleted or replaced --


def test_predict_replaces_nothing_unasked(tmp_path):
    _picture(tmp_path / "in" / "a.png")
    legend = _picture(tmp_path / "out" / "overlays" / "legend.png")
    notes = tmp_path / "out" / "masks" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    before = _tree(tmp_path)
    with pytest.raises(UserError, match=r"legend.png exists and is of other classes"):
        predict.run(Dark(), str(tmp_path / "in"), tmp_path / "out", table=TABLE, log=quiet)
    assert _tree(tmp_path) == before
    legend.unlink()
    predict.run(Dark(), str(tmp_path / "in"), tmp_path / "out", table=TABLE, overwrite=True, log=quiet)
    _picture(tmp_path / "in" / "b.png")
    predict.run(Dark(), str(tmp_path / "in" / "b.png"), tmp_path / "out", table=TABLE, log=quiet)
    assert notes.read_text() == "mine" and legend.exists()


def test_an_output_that_links_to_the_inputs(tmp_path):
    _picture(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    for name in ("masks", "overlays"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "photos")
    before = _tree(tmp_path / "photos")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="choose another"):
            predict.run(
                Dark(),
                str(tmp_path / "photos"),
                tmp_path / "out",
                table=TABLE,
                overwrite=overwrite,
                log=quiet,
            )
    assert _tree(tmp_path / "photos") == before


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "a.png").symlink_to(tmp_path / "secret")
    render.write_image(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert (tmp_path / "secret").read_text() == "mine" and not (tmp_path / "a.png").is_symlink()


@pytest.mark.parametrize("where", ["notes.txt", "1.0.0/notes.txt", "0.9.0/mine/a.png", ""])
def test_prepare_replaces_prepared_sets_only(where, camvid_raw, tmp_path):
    data = tmp_path / "data"
    if where:
        builders.prepare("camvid", camvid_raw, data, allow_partial=True, report=quiet)
    foreign = data / "camvid" / where if where else data / "camvid"
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("mine")
    before = _tree(data)
    with pytest.raises(UserError, match=rf"{foreign.name}: is no part of a prepared data set"):
        builders.prepare("camvid", camvid_raw, data, overwrite=True, allow_partial=True, report=quiet)
    assert _tree(data) == before


def test_prepare_tidies_up_its_own_leftovers_only(camvid_raw, tmp_path):
    mine = tmp_path / "data" / ".camvid.incomplete-notes" / "a.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    os.utime(mine.parent, (0, 0))
    builders.prepare("camvid", camvid_raw, tmp_path / "data", allow_partial=True, report=quiet)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.json"])
def test_a_folder_with_metrics_of_others_is_no_workdir(name, tmp_path):
    (tmp_path / name).write_text('{"step": 5}\nnotes\n')
    with pytest.raises(UserError, match=rf"holds no run, but a {name}"):
        log.RunLog(epath.Path(tmp_path), 10)
    assert _tree(tmp_path) == {name: b'{"step": 5}\nnotes\n'}


def test_a_log_keeps_lines_that_are_not_its_own(tmp_path):
    path = epath.Path(tmp_path) / "metrics.jsonl"
    path.write_text('{"step": 1}\nnotes\n[1]\n{"step": 5}\n{"other": 1}\n{"step": 2, "lo')
    lines = storage.Lines(path, lambda record: record["step"] <= 2)
    lines.add({"step": 2})
    assert path.read_text() == '{"step": 1}\nnotes\n[1]\n{"other": 1}\n{"step": 2}\n'
    assert storage.records(path) == [{"step": 1}, {"step": 2}]
    (tmp_path / "metrics.jsonl.tmp").write_text("mine")
    storage.write_atomically(path, "")
    assert (tmp_path / "metrics.jsonl.tmp").read_text() == "mine"
    assert {item.name for item in tmp_path.iterdir()} == {"metrics.jsonl", "metrics.jsonl.tmp"}


def test_checkpoints_remove_their_own_folders_only(tmp_path):
    for name in ("checkpoints/notes/a.txt", "checkpoints/a.txt", "best/notes/a.txt", "damaged/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = _tree(tmp_path)
    saved = Checkpoints(epath.Path(tmp_path), keep=1)
    model = {"params": {"w": np.ones(3, np.float32)}, "batch_stats": {}}
    for step in (1, 2, 3):
        saved.save(step, model, {"step": np.int32(step)}, {"mIoU": 0.5})
    saved.save_best(3, model, {"mIoU": 0.5})
    saved.close()
    after = _tree(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not (tmp_path / "checkpoints" / "1").exists() and (tmp_path / "checkpoints" / "3").exists()


def test_an_import_replaces_an_import_only(tmp_path):
    (tmp_path / "checkpoints" / "mine").mkdir(parents=True)
    for overwrite, says in ((False, "holds a run"), (True, r"checkpoints/mine, which is not an import's")):
        with pytest.raises(UserError, match=says):
            import_weights.refuse_a_run(epath.Path(tmp_path), overwrite)
    assert (tmp_path / "checkpoints" / "mine").exists()


def test_sample_pictures_replace_nothing(camvid_dir, tmp_path):
    split = prepared.open_split(camvid_dir, "camvid", "val")
    out = epath.Path(tmp_path)
    written = sample_images.sample(split, 2, out)
    assert sample_images.sample(split, 2, out) == written
    Path(written[0]).write_bytes(b"mine")
    with pytest.raises(UserError, match="holds another"):
        sample_images.sample(split, 2, out)
    assert Path(written[0]).read_bytes() == b"mine"
