"""hfgd_jax.tools.scores, score_tables and records: runs over seeds side by side, records, tables of pages."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import records
from hfgd_jax.tools import score_tables, scores, tables

DOCS = Path(__file__).resolve().parents[2] / "docs"
SETTINGS = {"split": "val", "scales": [1.0], "flip": False, "details": False}


def record(name, seed, miou, per_class, *, settings=SETTINGS, curve=None, steps=4, more=None, **fields):
    config = {key.replace("__", "."): value for key, value in fields.items()} | {"train.seed": seed}
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "config": config,
        "settings": settings,
        "evaluation": {"step": steps, "mIoU": miou, "per_class": per_class} | (more or {}),
        "curve": curve or {},
        "training": {"seconds": None, "from": ""},
        "date": "2026-11-25",
    }


def text(found, selected=(), form="text", labels=(), curve=False):
    groups = score_tables.group(found, labels)
    return score_tables.report(groups, score_tables.rows(groups, selected, curve=curve), form)


def cells(line):
    """Title and the rest of a line; between two columns are two blanks."""
    return [cell.strip() for cell in line.split("  ") if cell]


def workdir(folder, *, seed=0, evaluation=None, lines=(), evaluations=(), **fields):
    """A finished run's folder, without checkpoints."""
    config = configuration.default()
    config.data.data_dir = "/home/me/data"
    config.model.backbone.weights = "/home/me/r18.safetensors"
    config.train.seed = seed
    config.update_from_flattened_dict(fields)
    folder.mkdir()
    (folder / "config.json").write_text(configuration.to_json(config))
    evaluation = evaluation or {"step": 4, "mIoU": 0.5, "per_class": {"road": 0.5}}
    (folder / "metrics.json").write_text(json.dumps(evaluation))
    for name, found in (("metrics.jsonl", lines), ("evaluations.jsonl", evaluations)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in found))
    return folder


def test_two_runs_and_their_difference():
    one = record("one", 0, 0.5, {"road": 0.4, "thin pole": 0.6, "sky": None}, train__steps=1)
    two = record("two", 0, 0.45, {"road": 0.5, "thin pole": 0.4, "sky": 0.1})
    lines = text([one, two]).splitlines()
    assert lines[0].split() == ["IoU", "%", "one", "two", "difference"]
    assert lines[2].split() == ["road", "40.00", "50.00", "-10.00"]
    assert lines[3].split() == ["thin", "pole", "60.00", "40.00", "+20.00"]
    assert lines[4].split() == ["sky", "n/a", "10.00", "n/a"]
    assert lines[6].split() == ["mIoU", "50.00", "45.00", "+5.00"]
    assert lines[-3:] == [
        "one: one run, seed 0; step 4",
        "two: one run, seed 0; step 4",
        "difference: one - two, between runs of the same seed",
    ]


def test_seeds_are_averaged_and_compared_in_pairs():
    found = [
        record("a", s, m, {"pole": p, "sign": 0.2})
        for s, m, p in ((2, 0.53, None), (0, 0.5, 0.1), (1, 0.56, 0.3))
    ]
    found += [
        record("b", s, m, {"pole": 0.1, "sign": 0.1}, train__steps=9)
        for s, m in ((1, 0.5), (0, 0.52), (5, 0.1))
    ]
    table, notes, pairs = text(found, ["pole", "sign"]).split("\n\n")
    rows = {cells(line)[0]: cells(line)[1:] for line in table.splitlines()}
    # Of 50, 56 and 53 the deviation with n - 1 is 3; of the differences -2 and +6 it is 8 / sqrt(2).
    assert rows["mIoU"] == ["53.00 ± 3.00", "37.33 ± 23.69", "+2.00 ± 5.66"]
    assert rows["pole"] == ["20.00 ± 14.14 (n = 2)", "10.00 ± 0.00", "+10.00 ± 14.14"]
    assert rows["mean of pole, sign"][0] == "20.00 ± 5.00"
    assert notes.splitlines()[:2] == ["a: n = 3, seeds 0, 1, 2; step 4", "b: n = 3, seeds 0, 1, 5; step 4"]
    rows = {cells(line)[0]: cells(line)[1:] for line in pairs.splitlines()}
    assert rows["a - b"] == ["seed 0", "seed 1", "positive"]
    assert rows["mIoU"] == ["-2.00", "+6.00", "1 of 2"]
    assert rows["pole"] == ["+0.00", "+20.00", "1 of 2"]


def test_boundary_scores_are_shown_where_all_runs_have_them_in_markdown():
    one = record(
        "a|b",
        3,
        0.5,
        {"road": 0.5},
        curve={"2": 0.25, "4": 0.5},
        more={"pixel_accuracy": 0.9, "boundary_IoU": 0.4},
    )
    two = record("c", 4, None, {"road": None}, train__steps=1)
    assert text([one, two], form="markdown", curve=True).splitlines() == [
        r"| IoU % | a\|b | c |",
        "| --- | ---: | ---: |",
        "| road | 50.00 | n/a |",
        "| mIoU | 50.00 | n/a |",
        "| pixel accuracy | 90.00 | n/a |",
        "| boundary IoU | 40.00 | n/a |",
        "| mIoU at step 2 | 25.00 | n/a |",
        "",
        "- a|b: one run, seed 3; step 4",
        "- c: one run, seed 4; step 4",
        "- no difference: a|b and c have no seed in common",
    ]


def test_runs_that_differ_in_the_seed_alone_are_a_group():
    """Speed, place and reporting do not tell runs apart; the weights and the evaluation do."""
    base = record("run", 0, 0.5, {}, model__channels=96)
    same = record("other", 1, 0.5, {}, model__channels=96, train__log_every=1, eval__every=5)
    details = record("third", 2, 0.5, {}, model__channels=96, settings=SETTINGS | {"details": True})
    assert [list(one.runs) for one in score_tables.group([base, same, details])] == [[0, 1, 2]]
    different = [
        record("wide", 0, 0.5, {}, model__channels=128),
        record("flip", 0, 0.5, {}, model__channels=96, settings=SETTINGS | {"flip": True}),
        record("early", 0, 0.5, {}, model__channels=96, steps=2),
    ]
    assert [one.label for one in score_tables.group([base, *different])] == ["run", "wide", "flip", "early"]
    assert [one.label for one in score_tables.group([base, different[0]], ["x", "y"])] == ["x", "y"]


@pytest.mark.parametrize(
    ("other", "labels", "says"),
    [
        (record("b", 0, 0.5, {}), (), r"a: seed 0 twice, with the same config \(a, b\); leave one out"),
        (
            record("a", 0, 0.5, {}, model__channels=9),
            (),
            "two groups are called 'a', and differ in model.channels",
        ),
        (record("b", 1, 0.5, {}), ("x", "y"), "--labels=x,y: 2, but the groups are a$"),
    ],
)
def test_unusable_groups_are_user_errors(other, labels, says):
    with pytest.raises(UserError, match=says):
        score_tables.group([record("a", 0, 0.5, {}), other], labels)


def test_unknown_names_are_user_errors():
    one = record("a", 0, 0.5, {"road": 0.5})
    with pytest.raises(UserError, match="--classes: no pole; the runs' classes are road"):
        text([one], ["pole"])
    with pytest.raises(UserError, match="--names: no b; the names are a"):
        scores.choose([one], ["b"])
    two = record("b", 0, 0.5, {})
    assert scores.choose([one, two], ["b", "a"]) == [two, one]


def test_a_run_becomes_a_record(tmp_path):
    lines = [
        {"step": 2, "images_per_second": 8.0},
        {"step": 2, "mIoU": 0.25},
        {"step": 3, "images_per_second": 4.0},
        {"step": 4, "mIoU": 0.5},
    ]
    run = workdir(
        tmp_path / "hfgd_os2_seed7", seed=7, lines=lines, **{"train.batch_size": 8, "optim.name": "sgd"}
    )
    found = records.of_run(run)
    assert (found["name"], found["seed"], found["steps"]) == ("hfgd_os2", 7, 4)
    assert found["config"] == {
        "model.backbone.weights": "r18.safetensors",
        "optim.name": "sgd",
        "train.batch_size": 8,
        "train.seed": 7,
    }
    assert found["curve"] == {"2": 0.25, "4": 0.5} and found["evaluation"]["per_class"] == {"road": 0.5}
    assert found["training"]["seconds"] == 2 * 8 / 8.0 + 8 / 4.0
    assert found["settings"]["split"] == "val" and found["settings"]["flip"] is False
    (path,) = scores.write_records([found], str(tmp_path / "out"), "train --seed={seed}", "", overwrite=False)
    assert path == str(tmp_path / "out" / "hfgd_os2_seed7.json") and "/home" not in Path(path).read_text()
    (read,) = records.read(tmp_path / "out")
    assert read["command"] == "train --seed=7" and read["recording"]["cores"] >= 1
    assert read["recording"]["devices"].endswith(" x cpu")
    assert {key: read[key] for key in records.FIELDS} == json.loads(json.dumps(found))


def test_the_settings_are_those_of_the_last_evaluation(tmp_path):
    """`--mode eval` writes metrics.json, too, with settings of its own."""
    last = {"step": 4, "mIoU": 0.6, "per_class": {"road": 0.6}}
    evaluations = [{"step": 4, "flip": True} | last, {"step": 4, "mIoU": 0.5, "flip": False}]
    run = workdir(tmp_path / "run", evaluation=last, evaluations=evaluations)
    assert records.of_run(run)["settings"] == {"flip": True}


def test_unwritable_and_unreadable_records_are_user_errors(tmp_path):
    one = record("a", 0, 0.5, {})
    with pytest.raises(UserError, match="command='run --data=/home/me' holds an absolute path"):
        scores.write_records([one], str(tmp_path), "run --data=/home/me", "", overwrite=False)
    with pytest.raises(UserError, match="a of seed 0 twice; tell them apart with --name"):
        scores.write_records([one, one], str(tmp_path), "", "", overwrite=True)
    with pytest.raises(UserError, match="holds no records; --workdirs=A,B --record="):
        records.read(tmp_path)
    path = records.write(one, tmp_path, overwrite=False)
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        records.write(one, tmp_path, overwrite=False)
    records.write(one | {"steps": 5}, tmp_path, overwrite=True)
    assert records.read(tmp_path)[0]["steps"] == 5
    path.write_text('{"name": "a"}')
    with pytest.raises(UserError, match=r"a_seed0\.json: is no record of a run .lacks seed"):
        records.read(tmp_path)
    with pytest.raises(UserError, match=r"holds no evaluation .* --mode eval makes one"):
        records.of_run(tmp_path)


def test_the_commit_is_that_of_the_checkout(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=me", "-c", "user.email=me@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert records.commit(package) is None  # outside of git
    git("init")
    assert records.commit(package) is None  # in a repository that it is no part of
    git("add", ".")
    git("commit", "-m", "first")
    clean = records.commit(package)
    assert len(clean) == 40
    (tmp_path / "beside").write_text("")
    (package / "__init__.py").write_text("a = 1\n")
    assert records.commit(package) == f"{clean}-dirty"


def test_update_replaces_the_tables_of_a_page(tmp_path):
    folder = tmp_path / "results" / "small"
    for one in (record("b", 0, 0.25, {"road": 0.5}), record("a", 0, 0.5, {"road": 0.5}, train__steps=1)):
        records.write(one, folder, overwrite=False)
    page = tmp_path / "page.md"
    block = "<!-- scores: results/small --names=b,a --labels=B,A -->\n{}<!-- end scores -->\n"
    page.write_text("# Page\n\n" + block.format("old\n") + "\nbetween\n\n" + block.format("") + "end\n")
    new = scores.update_file(page)
    table = text([*records.read(folder)[::-1]], form="markdown", labels=["B", "A"])
    assert "| mIoU | 25.00 | 50.00 | -25.00 |" in table
    filled = block.format("\n" + table + "\n\n")
    assert new == f"# Page\n\n{filled}\nbetween\n\n{filled}end\n"
    page.write_text(new)
    assert scores.update_file(page) == new


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("nothing", "want <!-- scores: FOLDER"),
        ("<!-- scores: a -->\n<!-- scores: a -->\n<!-- end scores -->\n", "want <!-- scores: FOLDER"),
        ("<!-- scores: a --classs=x -->\n<!-- end scores -->\n", "Unknown command line flag 'classs'"),
        ("<!-- scores: missing -->\n<!-- end scores -->\n", "missing: holds no records"),
    ],
)
def test_pages_with_bad_markers_are_user_errors(page, says, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(UserError, match=says) as caught:
        scores.update_file(path)
    assert str(caught.value).startswith(f"--update={path}: ")


def test_the_tables_of_the_documentation_are_current():
    for page in sorted(DOCS.rglob("*.md")):
        if re.search("^<!-- scores:", page.read_text(), re.MULTILINE):  # in a line's middle it is a mention
            assert scores.update_file(page) == page.read_text(), f"run scores --update {page.name}"


def test_text_tables_line_up():
    assert tables.render([["a", "head"], ["row", "1"], ["b", "22"]], "text", {2}) == (
        "a    head\n---------\nrow     1\n---------\nb      22"
    )


def test_command(user_env, tmp_path):
    run = workdir(tmp_path / "mine")

    def command(*arguments):
        line = [sys.executable, "-m", "hfgd_jax.tools.scores", *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, env=user_env)

    done = command(f"--workdirs={run}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == text([records.of_run(run)]) + "\n"
    done = command(f"--workdirs={run}", "--update=page.md")
    assert done.returncode == 2
    assert done.stderr == "error: want --workdirs or --records (or both), or --update\n"
