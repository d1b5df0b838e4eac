"""What all tests share: eight CPU devices, parsed flags, and tiny data sets in the real layouts."""

import gc
import os
import socket
from pathlib import Path

# Compiling is most of what the tests do; code that is compiled in a fifth of the time will do.
QUICK = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What was compiled, down to single operations, is kept for the other worker and the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["XLA_FLAGS"] = f"{QUICK} --xla_force_host_platform_device_count=8"

import jaxtyping

# Shapes and types of the packages of array functions are checked at each call. An int is a float (PEP 484).
CHECKED = [
    "hfgd_jax.data.augment",
    "hfgd_jax.data.labels",
    "hfgd_jax.evaluation.boundaries",
    "hfgd_jax.evaluation.metrics",
    "hfgd_jax.figures.comparison",
    "hfgd_jax.figures.features",
    "hfgd_jax.figures.tokens",
    "hfgd_jax.geometry",
    "hfgd_jax.inference",
    "hfgd_jax.losses",
    "hfgd_jax.models",
    "hfgd_jax.report.pictures",
    "hfgd_jax.report.quality",
    "hfgd_jax.weights.layouts",
]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from small_model import light_backbones

from hfgd_jax.data import builders
from hfgd_jax.data.builders import shapes
from hfgd_jax.data.labels import TABLES
from hfgd_jax.models.backbones import convnext, resnet, swin
from hfgd_jax.weights import pretrained

gc.set_threshold(100_000, 30, 100)  # tracing makes objects by the million; looking through them took a tenth
STATM = Path("/proc/self/statm")  # its second number: the resident memory in pages

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read them


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """After a file, where this process has grown large: all that a suite compiles is gigabytes."""
    yield
    if not STATM.exists() or int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 4 * 2**30:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def shallow():
    """The backbones that `tiny` takes have a block a stage: they compile in a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.DEPTHS, "resnet18", (1, 1, 1, 1))
        for table, name, depths in (
            (convnext.VARIANTS, "convnext_a", (1, 1, 1, 1)),
            (swin.VARIANTS, "swin_t", (2, 1, 1, 1)),  # of two blocks one is shifted
        ):
            patch.setitem(table, name, table[name]._replace(depths=depths))
        pretrained.backbone_shapes.cache_clear()
        yield
    pretrained.backbone_shapes.cache_clear()


@pytest.fixture
def light_backbone():
    """For one test."""
    with light_backbones():
        yield


@pytest.fixture(scope="module")
def light_backbone_everywhere():
    """For all of a file."""
    with light_backbones():
        yield


@pytest.fixture
def unchecked(monkeypatch):
    """Annotations are not checked: for tests that pass what is wrong and want our own error."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def quiet(line: str) -> None:
    """A progress report that says nothing."""


@pytest.fixture(scope="session")
def free_port():
    """A function that gives a port of this machine where nothing listens now."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def user_env() -> dict[str, str]:
    """The environment of a user's process: one CPU device."""
    return os.environ | {"XLA_FLAGS": QUICK, "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> Path:
    """A data_dir with the first scenes of `shapes`: 24 for training, 8 for validation."""
    data_dir = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLITS", {"train": 24, "val": 8})
        builders.prepare("shapes", None, data_dir, report=quiet)
    return data_dir


def write_camvid(folder: Path) -> Path:
    """A miniature of CamVid's layout with the quirks of real folders; 6 training and 5 validation images.

    Odd and varying sizes, a grayscale JPEG, a CMYK JPEG, a PNG image, a palette label, an EXIF rotation and
    hidden files. Every class and void occur in both splits. In the images each class has its palette colour.
    """
    table = TABLES["camvid"]
    colors = np.concatenate([table.palette, [[0, 0, 0]]]).astype(np.uint8)
    for split, sizes in {
        "train": [(37, 53), (61, 41), (48, 64), (48, 64), (33, 97), (40, 40)],
        "val": [(37, 53), (80, 41), (48, 64), (48, 64), (48, 64)],
    }.items():
        for part in ("images", "labels"):
            (folder / split / part).mkdir(parents=True)
            (folder / split / part / ".DS_Store").write_bytes(b"\0")
        for i, (height, width) in enumerate(sizes):
            label = (np.arange(height)[:, None] // 6 + np.arange(width) // 6 + i) % 12
            image = Image.fromarray(colors[label])
            stem = folder / split / "images" / f"seq{i:02d}_f{i * 30:05d}"
            if split == "train" and i == 1:
                image = image.convert("L")
            if split == "train" and i == 2:
                image = image.convert("CMYK")
            if split == "train" and i == 3:
                image.save(f"{stem}.png")
            else:
                exif = Image.Exif()
                exif[0x0112] = 6 if i == 4 else 1  # orientation: turned by 90 degrees
                image.save(f"{stem}.jpg", quality=95, subsampling=0, exif=exif)
            mask = Image.fromarray(label.astype(np.uint8))
            if i == 0:
                mask = mask.convert("P")
                mask.putpalette(colors.tobytes())
                mask.putdata(label.ravel().tolist())
            mask.save(folder / split / "labels" / f"{stem.name}.png")
    return folder


@pytest.fixture
def camvid_raw(tmp_path) -> Path:
    """A fresh raw CamVid folder in miniature, to spoil at will."""
    return write_camvid(tmp_path / "raw")


@pytest.fixture(scope="session")
def camvid_folder(tmp_path_factory) -> Path:
    """The raw CamVid folder in miniature, to read alone."""
    return write_camvid(tmp_path_factory.mktemp("camvid") / "raw")


@pytest.fixture(scope="session")
def camvid_dir(camvid_folder) -> Path:
    """A data_dir with the miniature CamVid, prepared."""
    data_dir = camvid_folder.parent / "data"
    builders.prepare("camvid", camvid_folder, data_dir, allow_partial=True, report=quiet)
    return data_dir


@pytest.fixture
def spoilt_dir(camvid_raw, tmp_path, monkeypatch) -> Path:
    """A data_dir whose miniature CamVid has two bad training records.

    Record 2 is a JPEG cut off after its header, record 3 is no image at all.
    """
    for record, keep in ((2, 700), (3, 5)):
        path = sorted((camvid_raw / "train" / "images").glob("seq*"))[record]
        path.write_bytes(path.read_bytes()[:keep])
    with monkeypatch.context() as patch:
        patch.setattr(builders.base, "checked", _unchecked)
        builders.prepare("camvid", camvid_raw, tmp_path / "spoilt", allow_partial=True, report=quiet)
    return tmp_path / "spoilt"


def _unchecked(record, table, labelled):
    del labelled
    return record.image_bytes(), table.to_train_ids(record.raw_label())
