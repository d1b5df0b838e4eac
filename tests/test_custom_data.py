"""docs/custom-data.md: what it says of its commands, fields and complaints; test_pages.py runs them."""

import re
from pathlib import Path

from page_commands import commands_of, config_of, override

from hfgd_jax import config as configuration

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "custom-data.md").read_text()
COMMANDS = [command.text for command in commands_of("docs/custom-data.md", TEXT)]
(TRAIN,) = (text for text in COMMANDS if text.endswith("small --workdir runs/mine"))
(LARGE,) = (text for text in COMMANDS if text.endswith("--workdir runs/large"))


def test_what_the_five_commands_train_is_as_the_page_says():
    config = config_of(TRAIN)
    configuration.validate(config)
    assert f", {config.train.steps} steps." in TEXT and f"evaluates every {config.eval.every} steps" in TEXT
    assert not config.model.backbone.weights and config.data.num_classes == 3
    large = config_of(LARGE)
    assert f"{large.train.steps} steps of {large.train.batch_size}" in TEXT


def test_the_fields_of_the_text_are_valid():
    found = [x.replace('"', "") for x in re.findall(r"`(--config\.[\w.]+=[^`]+)`", TEXT)]
    assert len(found) >= 6
    for field in found:
        config = config_of(TRAIN)
        before = configuration.to_json(config)
        override(config, field)
        configuration.validate(config)
        assert configuration.to_json(config) != before, field


def test_complaints_are_those_that_the_check_has():
    sources = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text())  # messages over several lines
        for path in [*(ROOT / "hfgd_jax/data").rglob("*.py"), *(ROOT / "hfgd_jax/tools").glob("*.py")]
    )
    table = TEXT.partition("| it says |")[2].partition("\n\n")[0]
    said = [x for line in table.splitlines()[2:] for x in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert len(said) >= 10
    for phrase in said:
        start, _, end = phrase.partition("in train")  # the split's name is put in
        assert start.strip() in sources and end.strip() in sources, phrase
