"""The configs of the data sets: valid, and with the crops, classes and steps of the paper."""

import pytest

from hfgd_jax import config as configuration
from hfgd_jax import configs
from hfgd_jax.data import builders
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError


def get_config(name, arguments=""):
    return configs.load(name, arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "dataset", "crop", "steps", "eval_split"),
    [
        ("pascal_context", "", "pascal_context", (513, 513), 30_000, "val"),
        ("pascal_context", "backbone=swin_l", "pascal_context", (512, 512), 40_000, "val"),
        ("coco_stuff", "", "coco_stuff164k", (513, 513), 40_000, "val"),
        ("coco_stuff", "size=10k,backbone=convnext_t", "coco_stuff10k", (512, 512), 40_000, "test"),
        ("cityscapes", "", "cityscapes", (513, 1025), 60_000, "val"),
        ("cityscapes", "method=hfgd_os2,backbone=swin_t", "cityscapes", (512, 1024), 80_000, "val"),
        ("ade20k", "method=fcn", "ade20k", (641, 641), 40_000, "val"),
        ("ade20k", "backbone=convnext_l", "ade20k", (640, 640), 40_000, "val"),
        ("folder", "classes=7,weights=x.safetensors", "folder", (513, 513), 4000, "val"),
    ],
)
def test_crop_steps_and_classes_of_each_config(name, arguments, dataset, crop, steps, eval_split):
    config = get_config(name, arguments)
    configuration.validate(config)
    assert config.data.dataset == dataset and dataset in builders.BUILDERS
    assert config.data.num_classes == (7 if name == "folder" else TABLES[dataset].num_classes)
    assert tuple(config.data.crop) == crop and config.train.steps == steps
    assert config.data.eval_split == eval_split
    assert config.train.batch_size == (8 if name == "folder" else 16)
    assert config.model.geometry == ("align_corners" if crop[0] % 2 else "half_pixel")
    assert config.model.backbone.weights == ("x.safetensors" if "weights" in arguments else "")


@pytest.mark.parametrize("name", ["pascal_context", "coco_stuff", "cityscapes", "ade20k", "folder"])
def test_tiny_keeps_the_data_and_without_data_takes_the_embedded_data_set(name):
    whole, tiny, without = (get_config(name, text) for text in ("", "tiny", "without_data"))
    for config in (tiny, without):
        configuration.validate(config)
        assert config.train.steps == 4 and tuple(config.data.crop) == (65, 65)
    for field in ("dataset", "num_classes", "data_dir", "train_split", "eval_split", "input_scale"):
        assert tiny.data[field] == whole.data[field]
    assert without.data.dataset == "shapes" and without.data.eval_split == "val"


@pytest.mark.parametrize("more", ["classes=3", "weights=pip:efficientnet_lite0", "images=480x360"])
def test_without_data_is_refused_beside_what_belongs_to_the_data(more):
    with pytest.raises(UserError, match=f"'without_data': .*leave out {more.split('=')[0]}"):
        get_config("folder", f"{more},without_data")


def test_an_unknown_size_of_coco_stuff_is_an_error():
    with pytest.raises(UserError, match=r"size='20k'.*164k.*10k"):
        get_config("coco_stuff", "size=20k")


@pytest.mark.parametrize(
    ("arguments", "crop", "scale"),
    [
        ("", (513, 513), 1.0),
        ("images=480x360", (353, 481), 1.0),
        ("images=480x360,backbone=swin_t", (352, 480), 1.0),
        ("images=4000x3000", (513, 513), 0.256),
        ("images=600x2000", (513, 289), 0.512),
        ("images=480x360,small", (161, 225), 0.5),
        ("images=3000x4000,small", (225, 161), 0.06),
        ("images=40x30,small", (65, 65), 1.0),
    ],
)
def test_crops_of_a_folder_fit_its_images(arguments, crop, scale):
    config = get_config("folder", arguments)
    configuration.validate(config)
    assert tuple(config.data.crop) == crop and config.data.input_scale == scale


@pytest.mark.parametrize("images", ["480", "480x", "0x360", "480X360", "480x360x3"])
def test_bad_image_sizes_are_errors(images):
    with pytest.raises(UserError, match=rf"images={images}': want WIDTHxHEIGHT"):
        get_config("folder", f"images={images}")


def test_small_folder_configs_train_with_and_without_weights():
    config = get_config("folder", "small")
    assert config.model.backbone.name == "resnet18" and not config.model.backbone.weights
    assert config.train.dtype == "float32" and config.train.steps <= 300
    config = get_config("folder", "small,weights=x.safetensors,backbone=convnext_a")
    assert config.model.backbone.name == "convnext_a" and config.data.crop == (224, 224)
    assert config.model.backbone.weights == "x.safetensors"
