"""The listing of the paper's tables, and the files that it is made of and makes."""

import collections
import json
import shlex
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import evaluator
from hfgd_jax.tools import paper as tool

paper = tool.load_config_file()
KEPT = json.loads(tool.MACS.read_text())

# Counted in the paper by hand: lines of other methods.
REFERENCES = {10: 10, 11: 5, 13: 12, 14: 5, 15: 8, 16: 5}
ENTRY = ("table", "row", "label", "paper", "runnable", "command", "mf_command", "gmacs", "ours")
RESULT = {
    "SS": 46.5,
    "MF": None,
    "steps": 30_000,
    "command": "python ...",
    "machine": "one",
    "date": "2026-01-02",
}


@pytest.fixture(scope="module")
def found():
    return tool.entries(paper, KEPT, tool.read_results(tool.RESULTS, paper.ROWS))


def command(*arguments, env):
    line = [sys.executable, "-m", "hfgd_jax.tools.paper", *arguments]
    env = env | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(line, cwd=tool.ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_every_table_has_its_references_and_then_our_rows(found):
    references = collections.Counter(entry["table"] for entry in found if not entry["runnable"])
    assert references == REFERENCES
    assert [entry["row"] for entry in found if entry["runnable"]] == list(paper.ROWS)
    assert len({entry["row"] for entry in found}) == len(found)
    ours_last = [entry["runnable"] for entry in found if entry["table"] == 10]
    assert ours_last == [False] * 10 + [True] * 2


def test_entries_have_one_form(found):
    for entry in found:
        assert list(entry) == [*ENTRY]
        assert entry["paper"] and all(isinstance(value, float) for value in entry["paper"].values())
        ours = {entry[key] for key in ("command", "mf_command", "gmacs", "ours")}
        assert (ours == {None}) != entry["runnable"]
    figures = {entry["row"]: entry["paper"] for entry in found}
    assert figures["table10/caa_car"] == {"SS": 62.7, "MF": 63.9}  # of the TOML file


def test_table_9_is_within_two_and_a_half_percent(found):
    rows = [entry for entry in found if entry["table"] == 9]
    assert len(rows) == 4
    for entry in rows:
        assert entry["gmacs"] == pytest.approx(entry["paper"]["GFLOPs"], rel=0.025)


def test_kept_counts_are_what_is_counted():
    """Of a row with each kind of size; `make slow` counts them all."""
    rows = ["table9/hfgd_os4", "table1/identity_os32", "table12/sfpn"]
    assert tool.count_macs(paper, rows) == {row: KEPT[row] for row in rows}
    assert list(KEPT) == list(paper.ROWS)


@pytest.mark.slow
def test_all_kept_counts_are_what_is_counted():
    assert tool.count_macs(paper, list(paper.ROWS)) == KEPT


def test_a_network_is_traced_once(monkeypatch):
    traced = []

    def counts(config, size):
        traced.append((config.model.upsampler, size))
        return {"backbone": 7, "upsampler": 2}, {}

    monkeypatch.setattr(tool, "inference_macs", counts)
    rows = ["table1/identity_sfpn", "table3/sfpn", "table12/sfpn", "table9/sfpn", "table9/hfgd_os4"]
    assert tool.count_macs(paper, rows) == dict.fromkeys(rows, 9)
    assert traced == [("sfpn", (513, 513)), ("sfpn", (513, 1025)), ("u_sfpn", (513, 513))]


def test_document_is_current(found):
    text = tool.render(found, paper.TITLES, "markdown")
    path = tool.ROOT / "docs" / "paper.md"
    again = "python -m hfgd_jax.tools.paper --format markdown --output docs/paper.md"
    assert path.read_text() == text, f"run {again}"
    for line in text.splitlines():
        assert not line.startswith("|") or line.replace(r"\|", "").count("|") == len(tool.HEAD) + 1


def test_text_has_a_line_per_row(found):
    text = tool.render(tool.select(found, "9"), paper.TITLES, "text")
    title, _, *rows = text.splitlines()
    assert title.startswith("Table 9: ") and [row.split()[0] for row in rows] == [
        name for name in paper.ROWS if name.startswith("table9/")
    ]
    assert "GFLOPs 71.63, mIoU 50.76  " in rows[2] and " not run " in rows[2]
    assert paper.command("table9/hfgd_os4") in rows[2]


def test_the_last_result_of_a_row_is_taken(found, tmp_path):
    path = tmp_path / "results.json"
    older = RESULT | {"row": "table3/full", "SS": 12.0}
    path.write_text(json.dumps([older, RESULT | {"row": "table3/full"}]))
    results = tool.read_results(path, paper.ROWS)
    entries = tool.entries(paper, KEPT, results)
    assert {entry["row"]: entry["ours"] for entry in entries if entry["ours"]} == {"table3/full": RESULT}
    assert "have one: 1." in tool.render(entries, paper.TITLES, "markdown")


@pytest.mark.parametrize(
    ("row", "mf", "shown"),
    [
        ("table10/hfgd_os4", 64.25, "| SS 46.50, MF 64.25 |"),
        ("table10/hfgd_os4", None, "| SS 46.50, MF not run |"),
        ("table3/full", 64.25, "| 46.50 |"),  # the paper has one figure alone
    ],
)
def test_both_scores_are_shown_where_the_paper_has_both(row, mf, shown):
    entries = tool.entries(paper, KEPT, {row: RESULT | {"MF": mf}})
    lines = tool.render(entries, paper.TITLES, "markdown").splitlines()
    assert shown in next(line for line in lines if line.startswith(f"| `{row}`"))


def test_the_mf_command_is_what_evaluation_takes(monkeypatch):
    """Its words after a shell, as the front door's flags read them."""
    words = shlex.split(paper.mf_command("table10/hfgd_os4"))
    assert words[:5] == ["python", "-m", "hfgd_jax.main", "--workdir", "runs/table10_hfgd_os4"]
    assert paper.command("table10/hfgd_os4").endswith(" ".join(words[3:5]))
    monkeypatch.setattr(sys, "argv", words[2:])  # where config_flags finds the overrides
    found = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", configuration.default(), flag_values=found)
    flags.DEFINE_string("workdir", "", "", flag_values=found)
    flags.DEFINE_string("mode", "", "", flag_values=found)
    assert found(words[2:]) == ["hfgd_jax.main"]
    config = found["config"].value
    assert evaluator.settings(config)["scales"] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert config.eval.flip is True and found["mode"].value == "eval"
    configuration.validate(config)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "Expecting value"),
        (json.dumps([RESULT]), "want the fields MF, SS, command, date"),
        (json.dumps([RESULT | {"row": "table3/full", "SS": None}]), "table3/full: SS=None: want the mIoU"),
        (json.dumps([RESULT | {"row": "table3/none"}]), "'table3/none': no such row"),
    ],
)
def test_bad_results_are_named(text, says, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        tool.read_results(path, paper.ROWS)
    assert str(caught.value).startswith(str(path)) and says in str(caught.value)


def test_a_row_without_its_count_is_an_error():
    with pytest.raises(UserError, match=r"lacks table9/sfpn; run python -m hfgd_jax.tools.paper --recount"):
        tool.entries(paper, {k: v for k, v in KEPT.items() if k != "table9/sfpn"}, {})


@pytest.mark.parametrize("file", ["CONFIG", "REFERENCES", "RESULTS"])
def test_outside_of_a_checkout_the_command_is_refused(file, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, file, tmp_path / "absent")
    with pytest.raises(UserError, match=r"absent: no such file; .* needs the project's checkout"):
        tool.load_config_file()


def test_an_unknown_table_is_an_error(found):
    with pytest.raises(UserError, match="--table=18: no such table; one of 1, 2, 3"):
        tool.select(found, "18")


def test_command_writes_all_tables(found, user_env, tmp_path):
    done = command("--json", f"--output={tmp_path / 'rows.json'}", env=user_env)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "rows.json").read_text()) == found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--json", "--format=text"], "error: --json and --format=text: choose one"),
        (["--output=/"], "error: --output=/: "),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, says, user_env):
    done = command(*arguments, env=user_env)
    assert done.returncode == 2
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1
