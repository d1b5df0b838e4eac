"""Checkpoints of small trees: checksums, damage of every kind, other meshes, slow and failing disks."""

import json
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hfgd_jax import config as configuration
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.runs.checkpoint_files import DamagedError
from hfgd_jax.runs.checkpoints import Checkpoints, meta
from hfgd_jax.runs.checksums import checksum, checksums
from hfgd_jax.runtime import collectives, sharding, stall


def mesh(data, fsdp):
    config = configuration.default().mesh
    config.update({"data": data, "fsdp": fsdp})
    return sharding.make_mesh(config)


def trees(step=0):
    """A model and the rest of a state, as numpy arrays of several types; the kernel is split over fsdp."""
    rng = np.random.default_rng(step)
    kernel = rng.normal(size=(3, 3, 64, 32)).astype(np.float32)
    params = {"conv": {"kernel": kernel, "bias": rng.normal(size=32).astype(np.float32)}}
    model = {"params": params, "batch_stats": {"mean": np.zeros(32, np.float32)}}
    half = jnp.asarray(rng.normal(size=(5, 7)), jnp.bfloat16)
    training = {"step": np.int32(step), "opt_state": ({"conv": {"kernel": kernel * 0.1}}, np.asarray(half))}
    return model, training | {"rng": np.array([7, step], np.uint32)}


def placed(mesh, tree):
    return jax.device_put(tree, sharding.state_shardings(mesh, tree))


def wanted(mesh, step=0):
    return tuple(sharding.placed(sharding.state_shardings(mesh, t), t) for t in trees(step))


def full_meta(step, **more):
    return meta(step, configuration.default(), TABLES["camvid"], **more)


def save(workdir, *steps, on=None):
    saved = Checkpoints(workdir, keep=9)
    for step in steps:
        saved.save(step, *(placed(on or mesh(1, 1), tree) for tree in trees(step)), full_meta(step))
    saved.close()


def assert_same(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b, strict=True), tree, other)


# -- checksums --


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_every_single_bit_changes_the_checksum(dtype):
    values = np.asarray(jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 5)), dtype))
    images = [values]
    size = values.size if dtype == "bool" else values.nbytes * 8
    for bit in range(size):
        if dtype == "bool":
            changed = values.copy()
            changed.flat[bit] ^= True
        else:
            raw = bytearray(values.tobytes())
            raw[bit // 8] ^= 1 << bit % 8
            changed = np.frombuffer(bytes(raw), values.dtype).reshape(values.shape)
        images.append(changed)
    sums = [checksums({"x": image})["x"] for image in images]
    assert len(set(sums)) == len(sums)


def test_changes_that_keep_the_sum_change_the_checksum():
    """Two signs, two places exchanged, another order: 64 bits of the type are 64 bits looked at."""
    x = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    signs, exchanged = x.copy(), x.copy()
    signs[0, :2] *= -1
    exchanged[0, 0], exchanged[3, 5] = x[3, 5], x[0, 0]
    with jax.enable_x64(True):
        wide = x.astype(np.float64)
        low = wide.copy()
        low.view(np.uint64)[1, 1] ^= 1
        assert checksums([wide]) != checksums([low])
    sums = [checksums([y])["0"] for y in (x, signs, exchanged, x[::-1], x.reshape(6, 4).T, np.zeros_like(x))]
    assert len(set(sums)) == 6
    assert all(0 <= s < 2**32 for s in sums)


def test_no_two_words_of_32_bits_have_the_same_checksum():
    words = np.unique(np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32))
    assert len(np.unique(jax.vmap(checksum)(words[:, None]))) == len(words)


def test_checksums_are_the_same_on_any_mesh():
    model, training = trees()
    one = checksums(model) | checksums(training)
    for shape in ((8, 1), (2, 4), (1, 8)):
        on = mesh(*shape)
        assert checksums(placed(on, model)) | checksums(placed(on, training)) == one
    rows = NamedSharding(mesh(1, 8), PartitionSpec(None, None, "fsdp"))
    kernel = model["params"]["conv"]["kernel"]
    assert checksums([jax.device_put(kernel, rows)])["0"] == one["params/conv/kernel"]


# -- other meshes --


def test_a_state_of_eight_devices_is_restored_on_other_meshes_bit_by_bit(tmp_path):
    save(tmp_path, 3, on=mesh(8, 1))
    for shape in ((1, 1), (2, 4), (1, 4)):
        found = Checkpoints(tmp_path).resume(*wanted(mesh(*shape)))
        assert found[0] == 3
        assert_same(found[1:], trees(3))
        kernel = found[1]["params"]["conv"]["kernel"]
        assert len(kernel.sharding.device_set) == shape[0] * shape[1]
        assert kernel.addressable_shards[0].data.size * shape[1] == kernel.size


# -- damage --


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run directory with the checkpoints 1, 2 and 3, to copy."""
    workdir = tmp_path_factory.mktemp("three") / "run"
    save(workdir, 1, 2, 3)
    return workdir


@pytest.fixture
def workdir(three, tmp_path):
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run"


def arrays(folder):
    """The files that hold the arrays' bytes."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d" and p.stat().st_size)


def truncate(folder):
    for path in arrays(folder / "model"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_meta(folder):
    path = folder / "meta" / "metadata"
    content = json.loads(path.read_text())
    content["arrays"]["model/params/conv/bias"]["fingerprint"] ^= 1
    path.write_text(json.dumps(content))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "truncated arrays": truncate,
    "an empty folder": empty,
    "no model": lambda folder: shutil.rmtree(folder / "model"),
    "no training": lambda folder: shutil.rmtree(folder / "training"),
    "no meta": lambda folder: shutil.rmtree(folder / "meta"),
    "half of meta": lambda folder: (folder / "meta" / "metadata").write_text('{"step": 3, "arr'),
    "meta that is no object": lambda folder: (folder / "meta" / "metadata").write_text("[]"),
    "meta that was changed": edit_meta,
    "meta that is no text": lambda folder: (folder / "meta" / "metadata").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_moved_and_the_one_before_is_used(what, workdir, capsys):
    DAMAGE[what](workdir / "checkpoints" / "3")
    before = sorted(p.name for p in (workdir / "checkpoints" / "3").iterdir())
    reader = Checkpoints(workdir, read_only=True)
    model, training = wanted(mesh(1, 1))
    if what != "no training":
        step, found, table = reader.restore_model("latest", model)
        assert step == 2 and table.name == "camvid"
        assert_same(found, trees(2)[0])
        assert "3 is damaged" in (said := capsys.readouterr().err) and "taking step 2 instead" in said
        with pytest.raises(DamagedError, match=r"--checkpoint=3: .*3 is damaged.*use another --checkpoint"):
            reader.restore_model("3", model)
    assert not (workdir / "damaged").exists()  # reading moves nothing
    saved = Checkpoints(workdir, keep=9)
    step, *items = saved.resume(model, training)
    assert step == 2
    assert_same(items, list(trees(2)))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "warning: checkpoint" in said and "going on from step 2" in said
    assert sorted(p.name for p in (workdir / "damaged" / "3").iterdir()) == before
    # The step is saved once more when the run comes to it.
    saved.save(3, *(placed(mesh(1, 1), tree) for tree in trees(3)), full_meta(3))
    saved.close()
    assert Checkpoints(workdir).resume(model, training)[0] == 3


def test_flipped_bits_are_noticed(three, tmp_path):
    """Single bits anywhere in the files of the arrays' bytes: noticed, or of no consequence."""
    rng = np.random.default_rng(11)
    model, training = wanted(mesh(1, 1))
    truth, noticed, harmless = trees(3), 0, 0
    for number in range(24):
        folder = tmp_path / str(number)
        shutil.copytree(three / "checkpoints" / "3", folder / "checkpoints" / "3")
        paths = arrays(folder)
        path = paths[
            rng.choice(
                len(paths),
                p=np.array([p.stat().st_size for p in paths]) / sum(p.stat().st_size for p in paths),
            )
        ]
        data = bytearray(path.read_bytes())
        bit = int(rng.integers(len(data) * 8))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = Checkpoints(folder, read_only=True).restore(3, model, training)
        except DamagedError:
            noticed += 1
        else:
            assert_same(list(found), list(truth))
            harmless += 1
    assert noticed >= 20, (noticed, harmless)


def test_a_leaf_that_was_changed_is_named(workdir, monkeypatch):
    """As if the disk gave other bytes without a word."""
    restore = ocp.StandardCheckpointHandler.restore

    def flip(self, directory, args):
        tree = restore(self, directory, args=args)
        if "params" in tree:
            tree["params"]["conv"]["bias"] = tree["params"]["conv"]["bias"].at[3].multiply(-1)
        return tree

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", flip)
    with pytest.raises(DamagedError, match=r"checksums differ\): model/params/conv/bias$"):
        Checkpoints(workdir, read_only=True).restore(3, *wanted(mesh(1, 1)))


def test_if_every_checkpoint_is_damaged_training_refuses_to_start(workdir):
    for step in (1, 2, 3):
        edit_meta(workdir / "checkpoints" / str(step))
    for _ in range(2):  # the same at each restart
        with pytest.raises(UserError, match=r"every checkpoint is damaged .*nothing was changed") as caught:
            Checkpoints(workdir).resume(*wanted(mesh(1, 1)))
        assert not isinstance(caught.value, DamagedError)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2", "3"]
    with pytest.raises(DamagedError, match="--checkpoint=latest"):
        Checkpoints(workdir, read_only=True).restore_model("latest", wanted(mesh(1, 1))[0])


def test_damaged_checkpoints_of_the_same_step_are_all_kept(workdir):
    (workdir / "damaged" / "3").mkdir(parents=True)
    empty(workdir / "checkpoints" / "3")
    assert Checkpoints(workdir).resume(*wanted(mesh(1, 1)))[0] == 2
    assert {p.name for p in (workdir / "damaged").iterdir()} == {"3", "3.1"}


def test_a_damaged_best_checkpoint_is_an_error_to_read_and_moved_by_training(workdir, capsys):
    saved = Checkpoints(workdir, keep=9)
    saved.save_best(2, placed(mesh(1, 1), trees(2)[0]), full_meta(2, mIoU=0.5))
    assert saved.best_mean_iou() == 0.5
    saved.close()
    assert Checkpoints(workdir, read_only=True).best_mean_iou() == 0.5
    edit_meta(workdir / "best" / "2")
    with pytest.raises(DamagedError, match=r"--checkpoint=best.*use --checkpoint=latest"):
        Checkpoints(workdir, read_only=True).restore_model("best", wanted(mesh(1, 1))[0])
    saved = Checkpoints(workdir)
    assert saved.resume(*wanted(mesh(1, 1)))[0] == 3
    assert "moved to" in capsys.readouterr().err and (workdir / "damaged" / "best-2").is_dir()
    assert saved.best_mean_iou() is None


def test_a_half_written_checkpoint_is_ignored(workdir):
    (workdir / "checkpoints" / "3").rename(workdir / "checkpoints" / "3.orbax-checkpoint-tmp")
    assert Checkpoints(workdir, read_only=True).latest_step() == 2
    assert (workdir / "checkpoints" / "3.orbax-checkpoint-tmp").exists()
    saved = Checkpoints(workdir)
    assert saved.resume(*wanted(mesh(1, 1)))[0] == 2
    saved.close()
    assert not (workdir / "checkpoints" / "3.orbax-checkpoint-tmp").exists()  # tidied up
    assert not (workdir / "damaged").exists()


def test_a_checkpoint_of_another_model_is_not_taken_for_damaged(workdir):
    model, training = wanted(mesh(1, 1))
    model["params"]["conv"]["bias"] = jax.ShapeDtypeStruct((8,), np.float32)
    model["params"]["more"] = jax.ShapeDtypeStruct((), np.float32)
    training["rng"] = jax.ShapeDtypeStruct((2,), np.int32)
    with pytest.raises(UserError, match="of another model") as caught:
        Checkpoints(workdir).resume(model, training)
    assert not isinstance(caught.value, DamagedError)
    for line in (
        "params/conv/bias: saved (32,), wanted (8,)",
        "params/more: saved None, wanted ()",
        "rng: saved uint32, wanted int32",
    ):
        assert line in str(caught.value)
    assert not (workdir / "damaged").exists()


def test_a_lack_of_memory_is_not_taken_for_damage(workdir, monkeypatch):
    def restore(self, directory, args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", restore)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        Checkpoints(workdir).resume(*wanted(mesh(1, 1)))
    assert not (workdir / "damaged").exists()


def test_a_read_error_on_one_process_fails_all(workdir, monkeypatch):
    """The other process is a stand-in: it reports damage (1), or another model (2)."""
    trees_wanted = wanted(mesh(1, 1))
    for kind, match in ((1, "process 1 cannot read it"), (2, "process 1 wants another model")):
        monkeypatch.setattr(collectives, "all_gather", lambda mine, kind=kind: [mine, kind])
        with pytest.raises(UserError, match=match) as caught:
            Checkpoints(workdir, read_only=True).restore(3, *trees_wanted)
        assert isinstance(caught.value, DamagedError) == (kind == 1)


# -- saving --


def test_a_save_reports_how_long_it_took(tmp_path):
    saved = Checkpoints(tmp_path)
    assert saved.finished() == []
    saved.save(1, *(placed(mesh(1, 1), tree) for tree in trees(1)), full_meta(1))
    saved.wait()
    (save_record,) = saved.finished()
    assert save_record["saved_step"] == 1
    assert 0 < save_record["save_seconds"] <= save_record["save_total_seconds"] < 60
    assert saved.finished() == []  # once


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # see `leave`
def test_a_save_that_takes_too_long_ends_the_run(tmp_path, monkeypatch, capfd):
    """The disk hangs in the background, while the loop goes on."""
    items = [placed(mesh(1, 1), tree) for tree in trees(1)]
    release, finalize, codes = threading.Event(), ocp.StandardCheckpointHandler.finalize, []

    def hang(self, directory):
        assert release.wait(60)
        finalize(self, directory)

    def leave(code):
        codes.append(code)
        release.set()
        raise SystemExit  # of the watching thread alone

    monkeypatch.setattr(stall.os, "_exit", leave)
    save(tmp_path, 1)
    with stall.StallLimit(2.0, tmp_path) as limit:
        saved = Checkpoints(tmp_path, keep=9, stall=limit)
        monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", hang)
        saved.save(2, *items, full_meta(2))  # returns: the loop does not wait for the disk
        saved.close()
    assert codes == [75]
    assert re.search(
        r"^error: config\.train\.stall_timeout=2: the save of step 2 to .* took longer; .* whole: \[1\]\.",
        capfd.readouterr().err,
        re.MULTILINE,
    )
    assert Checkpoints(tmp_path, read_only=True).latest_step() == 2


def test_a_save_that_fails_with_another_process_is_no_user_error(tmp_path, monkeypatch):
    """Exit code 2 would keep supervisors from starting all again."""
    items = [placed(mesh(1, 1), tree) for tree in trees(1)]
    saved = Checkpoints(tmp_path)

    def save(*_, **__):
        try:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: a task has died")
        except jax.errors.JaxRuntimeError as error:
            raise ValueError("barrier") from error

    monkeypatch.setattr(saved._managers["checkpoints"], "save", save)
    with pytest.raises(UserError, match="could not be written"):
        saved.save(1, *items, full_meta(1))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="barrier") as caught:
        saved.save(1, *items, full_meta(1))
    assert not isinstance(caught.value, UserError)
