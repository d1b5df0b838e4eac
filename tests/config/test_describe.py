"""What help and --print_config say of a config's fields."""

from hfgd_jax import config as configuration
from hfgd_jax.config import describe, fields


def test_every_field_has_a_meaning():
    assert list(describe.meanings()) and set(describe.meanings()) == set(fields.flat(configuration.default()))
    assert describe.meanings()["model.backbone.remat"].startswith("compute each block again")
    text = describe.options()
    assert "  --config.train.steps=30000\n      optimizer steps" in text


def test_values_tell_where_they_come_from():
    config = configuration.default()
    config.train.steps = 7
    config.optim.name = "sgd"
    lines = describe.values(config, {"train.steps"}).splitlines()
    assert len(lines) == len(fields.flat(config))
    for line in (
        "config.train.steps = 7  (command line)",
        "config.optim.name = 'sgd'  (config file)",
        "config.train.batch_size = 16  (default)",
    ):
        assert line in lines
