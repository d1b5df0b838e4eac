"""The paper's rows as configs: all there, valid, and what the paper says."""

import collections

import pytest

from hfgd_jax import config as configuration
from hfgd_jax.data.builders import BUILDERS
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.tools.paper import load_config_file

paper = load_config_file()

# Counted in the paper by hand: figures of HFGD and of what its authors trained themselves. Tables 2 and 17
# have two lines with four figures.
COUNTS = {1: 15, 2: 4, 3: 4, 4: 6, 5: 4, 6: 4, 7: 9, 8: 8, 9: 4}
COUNTS |= {10: 2, 11: 1, 12: 3, 13: 2, 14: 1, 15: 1, 16: 1, 17: 4}

# row: backbone, its OS, context, upsampler, OS, tokens, protect, axial attention
MODELS = {
    "table1/aspp_d8": ("resnet50", 8, "aspp", "none", 8, False, False, False),
    "table1/ocr_sfpn": ("resnet50", 32, "ocr", "sfpn", 4, False, False, False),
    "table2/scratch_180k": ("resnet50", 32, "identity", "none", 32, False, False, False),
    "table3/guidance": ("resnet50", 32, "identity", "sfpn", 4, True, True, False),
    "table3/full": ("resnet50", 32, "identity", "sfpn", 4, True, True, True),
    "table4/full_sa_car": ("resnet50", 32, "sa_car", "sfpn", 4, True, True, True),
    "table5/axial_attention": ("resnet50", 32, "cae", "sfpn", 4, False, False, True),
    "table6/swin_l_sfpn": ("swin_l", 32, "cae", "sfpn", 4, True, True, True),
    "table7/swin_l_identity_u_sfpn": ("swin_l", 32, "identity", "u_sfpn", 4, False, False, False),
    "table8/fapn_full": ("resnet50", 32, "identity", "fapn", 4, True, True, True),
    "table8/upernet": ("resnet50", 32, "ppm", "upernet", 4, False, False, False),
    "table8/deeplabv3plus_full": ("resnet50", 8, "aspp", "deeplabv3plus", 4, True, True, True),
    "table9/hfgd_os2": ("resnet50", 32, "cae", "u_sfpn", 2, True, True, True),
    "table13/hfgd_os2": ("convnext_l", 32, "cae", "u_sfpn", 2, True, True, True),
    "section5.2/no_stop_gradients": ("resnet50", 32, "identity", "sfpn", 4, True, False, True),
}

# row: data set, classes, crop, steps, batch, optimizer, rate
RUNS = {
    "table1/identity_os32": ("pascal_context", 59, (513, 513), 30_000, 16, "sgd", 0.01),
    "table2/scratch_90k": ("pascal_context", 59, (513, 513), 90_000, 16, "sgd", 0.01),
    "table6/swin_l_u_sfpn": ("pascal_context", 59, (513, 513), 40_000, 16, "sgd", 0.01),
    "table10/hfgd_os4": ("pascal_context", 59, (513, 513), 40_000, 16, "adamw", 4e-5),
    "table11/hfgd_os4": ("coco_stuff164k", 171, (513, 513), 40_000, 16, "adamw", 4e-5),
    "table12/hfgd_os2": ("cityscapes", 19, (513, 1025), 30_000, 16, "sgd", 0.01),
    "table13/hfgd_os4": ("cityscapes", 19, (513, 1025), 60_000, 16, "adamw", 4e-5),
    "table14/hfgd_os2": ("cityscapes", 19, (513, 1025), 80_000, 32, "adamw", 4e-5),
    "table15/hfgd": ("ade20k", 150, (641, 641), 40_000, 16, "adamw", 4e-5),
    "table16/hfgd": ("coco_stuff10k", 171, (513, 513), 40_000, 16, "adamw", 4e-5),
    "table17/scratch_180k": ("coco_stuff10k", 171, (513, 513), 180_000, 16, "sgd", 0.01),
}


@pytest.mark.parametrize("row", paper.ROWS)
@pytest.mark.parametrize("more", ["", ",tiny", ",without_data"])
def test_rows_are_valid_and_survive_json(row, more):
    config = paper.get_config(row + more)
    configuration.validate(config)
    saved = configuration.from_json(configuration.to_json(config))
    assert configuration.differences(config, saved) == []


def test_every_row_of_every_table_has_a_config():
    counts = collections.Counter(name.partition("/")[0] for name in paper.ROWS)
    assert {f"table{number}": count for number, count in COUNTS.items()} == {
        group: count for group, count in counts.items() if group.startswith("table")
    }
    assert {name for name in paper.ROWS if name.startswith("section")} == {
        "section5.1/probe",
        "section5.1/probe_stop",
        "section5.2/no_stop_gradients",
    }
    assert list(paper.TITLES) == list(counts), "the titles are in the order of the rows"


@pytest.mark.parametrize("row", MODELS)
def test_rows_have_the_models_of_the_paper(row):
    m = paper.get_config(row).model
    switches = (m.guidance.tokens, m.guidance.protect, m.guidance.axial_attention)
    found = (m.backbone.name, m.backbone.output_stride, m.context, m.upsampler, m.output_stride, *switches)
    assert found == MODELS[row]
    assert m.geometry == ("align_corners" if m.backbone.name == "resnet50" else "half_pixel")
    assert m.guidance.stop_gradient == (row != "section5.2/no_stop_gradients")


@pytest.mark.parametrize("row", RUNS)
def test_rows_have_the_training_settings_of_the_paper(row):
    config = paper.get_config(row)
    data, train, optim = config.data, config.train, config.optim
    found = (data.dataset, data.num_classes, tuple(data.crop), train.steps, train.batch_size)
    assert (*found, optim.name, optim.learning_rate) == RUNS[row]
    plain = optim.name == "sgd"
    assert (data.photometric, optim.weight_decay) == (("plain", 2e-4) if plain else ("public", 0.05))
    assert config.loss.divisor == "all" and config.model.context_attention_bias
    large = config.model.backbone.name == "convnext_l"
    assert config.model.backbone.drop_path == (0.3 if large else -1.0)
    assert (config.loss.focal_gamma, config.loss.dice) == (0, 0)


def test_the_data_sets_of_rows_can_be_prepared():
    for data in {row.data for row in paper.ROWS.values()}:
        assert TABLES[data.name].num_classes == data.num_classes
        assert {"train", data.eval_split} <= BUILDERS[data.name].COUNTS.keys()


def test_equal_scores_of_the_paper_have_equal_configs():
    """The text of the tables has lost check marks; a score that is printed twice identifies its row."""
    by_figure = collections.defaultdict(list)
    for name, row in paper.ROWS.items():
        if row.data == paper.PASCAL and "mIoU" in row.paper:
            by_figure[row.paper["mIoU"]].append(name)
    for names in by_figure.values():
        for name in names[1:]:
            assert configuration.differences(paper.get_config(names[0]), paper.get_config(name)) == [], name
    shared = {figure: len(names) for figure, names in by_figure.items() if len(names) > 1}
    assert shared == {
        **{45.87: 2, 47.14: 4, 47.18: 2, 48.51: 2, 50.50: 2},
        **{48.76: 3, 48.67: 2, 50.28: 3, 50.76: 4, 60.46: 2},
    }


def test_different_scores_of_the_paper_have_different_configs():
    """No two rows of one table have the same config, but for what a weight file adds."""
    for group in paper.TITLES:
        configs = {}
        for name in (name for name in paper.ROWS if name.startswith(f"{group}/")):
            text = configuration.to_json(paper.get_config(name)) + str(paper.ROWS[name].pretrained)
            assert configs.setdefault(text, name) == name


def test_the_starred_row_has_the_stronger_losses():
    loss = paper.get_config("table10/hfgd_os4_stronger").loss
    assert (loss.focal_gamma, loss.dice) == (2.0, 1.0)
    assert configuration.differences(
        paper.get_config("table10/hfgd_os4"), paper.get_config("table10/hfgd_os4_stronger")
    ) == ["loss.dice: 0.0 -> 1.0", "loss.focal_gamma: 0.0 -> 2.0"]


def test_the_probe_rows_have_a_probe():
    configs = [paper.get_config(f"section5.1/{row}") for row in ("probe", "probe_stop")]
    assert [config.eval.branch for config in configs] == ["probe", "probe"]
    guidance = [config.model.guidance for config in configs]
    assert [(g.probe, g.probe_stop_gradient, g.tokens) for g in guidance] == [
        (True, False, False),
        (True, True, False),
    ]


def test_weights_and_setting_are_config_arguments():
    config = paper.get_config("table6/swin_l_u_sfpn,weights=some/file.safetensors,setting=advanced")
    assert config.model.backbone.weights == "some/file.safetensors"
    assert (config.optim.name, config.data.photometric) == ("adamw", "public")
    assert paper.get_config("table2/scratch_30k").model.backbone.weights == ""


def test_without_a_row_the_config_is_hfgd():
    assert configuration.differences(paper.get_config(), paper.get_config("table9/hfgd_os4")) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            "table3/fool",
            "unknown row; one of table3/sfpn, table3/guidance, table3/axial_attention, table3/full",
        ),
        ("tabel9/hfgd_os4", "table9/hfgd_os4"),
        ("zzz", "python -m hfgd_jax.tools.paper lists them"),
        ("table2/scratch_30k,weights=a.safetensors", "this row trains from scratch"),
        ("table9/sfpn,setting=hard", "setting=hard: unknown; one of plain, advanced, stronger"),
    ],
)
def test_bad_arguments_raise_one_line(arguments, says):
    with pytest.raises(UserError) as caught:
        paper.get_config(arguments)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_commands_ask_for_weights_unless_from_scratch():
    for name, row in paper.ROWS.items():
        words = paper.command(name).split()
        assert words[:4] == ["python", "-m", "hfgd_jax.main", "--config"]
        config = paper.get_config(words[4].partition(":")[2])
        assert bool(config.model.backbone.weights) == row.pretrained, name
    assert len({paper.command(name).split()[-1] for name in paper.ROWS}) == len(paper.ROWS), "workdirs"
