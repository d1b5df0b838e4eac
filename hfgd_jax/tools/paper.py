"""Lists the paper's tables row by row: its figure, the network's cost, our commands and our recorded result.

python -m hfgd_jax.tools.paper                                                 every row of every table
python -m hfgd_jax.tools.paper --table 9 --json                                one table, for programs
python -m hfgd_jax.tools.paper --format markdown --output docs/paper.md        after a change of any of it
python -m hfgd_jax.tools.paper --recount                                       multiply-accumulates anew

For maintainers: it reads and writes files of the project's checkout, and needs one.

Rows that can be run are configs (`configs/paper.py`), other methods' rows references
(`configs/paper_references.toml`). Multiply-accumulates are of one image of the row's crop, counted by tracing
and kept in `docs/paper_macs.json`; results of finished runs are recorded in `docs/results.json`, as a list of
`{row, SS, MF, steps, command, machine, date}`: the mIoU in per cent of one scale without mirror images (SS),
and of scales 0.5 to 1.75 with mirror images (MF; null where that was not run).
"""

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from hfgd_jax import configs
from hfgd_jax.errors import UserError
from hfgd_jax.runtime import shell
from hfgd_jax.tools.macs import inference_macs

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "paper.py"
REFERENCES = ROOT / "configs" / "paper_references.toml"
MACS = ROOT / "docs" / "paper_macs.json"
RESULTS = ROOT / "docs" / "results.json"
RESULT_FIELDS = {"row", "SS", "MF", "steps", "command", "machine", "date"}
FORMATS = ("text", "markdown", "json")
COMMANDS = ("command", "MF evaluation")
HEAD = ("row", "in the paper", "paper", "GMACs", "ours", *COMMANDS)
RIGHT = ("GMACs", "ours")  # columns of numbers

Entry = dict[str, Any]

_PREFACE = """\
# The paper's tables

Written by `python -m hfgd_jax.tools.paper --format markdown --output docs/paper.md`; a test keeps it current.

{runnable} of the {rows} rows of Tables 1-17 are configs, the other {references} are other methods' results,
shown as references. The last {texts} rows are figures of the paper's text.

- **paper**: its mIoU in per cent; SS is single-scale without flip, MF multi-scale (0.5 to 1.75) with flip.
- **GMACs**: multiply-accumulates / 1e9 of the inference of one image of the row's crop, counted by tracing
  what the command would run (`docs/paper_macs.json`).
- **ours**: the mIoU of a recorded run (`docs/results.json`), SS, and MF too where the paper has it; rows that
  have one: {recorded}.
- **command** trains, and scores SS at its end (`metrics.jsonl` in the workdir); **MF evaluation** scores the
  trained run MF (`evaluations.jsonl`).
- A command's `weights=` is a file for the backbone that you provide; rows "from scratch" have none.

What the paper leaves open, and how it is read here, stands at the top of
[`configs/paper.py`](../configs/paper.py).
"""


def load_config_file() -> ModuleType:
    """`configs/paper.py` as a module.

    Raises:
        UserError: outside of a checkout, as in an installed package, whose files are not all there.
    """
    for path in (CONFIG, REFERENCES, RESULTS):
        if not path.is_file():
            raise UserError(f"{path}: no such file; hfgd_jax.tools.paper needs the project's checkout")
    return configs.module(str(CONFIG))


def entries(paper: ModuleType, macs: Mapping[str, int], results: Mapping[str, Entry]) -> list[Entry]:
    """Every row of the paper in its order, the figures of the text last.

    Args:
        paper: `configs/paper.py`.
        macs: multiply-accumulates by row, for every runnable row.
        results: recorded results by row.

    Returns:
        Dictionaries of `table` (1-17; None for a figure of the text), `row`, `label`, `paper` (figures by
        name), `runnable`, and, None for a reference: `command`, `mf_command`, `gmacs`; and `ours`, None
        without a result.

    Raises:
        UserError: a row without its multiply-accumulates.
    """
    references = tomllib.loads(REFERENCES.read_text())
    found = []
    for group in paper.TITLES:
        number = re.fullmatch(r"table(\d+)", group)
        common = {"table": int(number[1]) if number else None}
        found += [common | _reference(group, dict(row)) for row in references.get(group, ())]
        for name, row in paper.ROWS.items():
            if name.partition("/")[0] != group:
                continue
            if name not in macs:
                raise UserError(f"{MACS}: lacks {name}; run python -m hfgd_jax.tools.paper --recount")
            found.append(
                common
                | {"row": name, "label": row.label, "paper": row.paper, "runnable": True}
                | {"command": paper.command(name), "mf_command": paper.mf_command(name)}
                | {"gmacs": round(macs[name] / 1e9, 2), "ours": results.get(name)}
            )
    return found


def _reference(group: str, row: dict[str, Any]) -> Entry:
    method = row.pop("method")
    slug = re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")
    label = ", ".join([method, row.pop("backbone"), row.pop("avenue")])
    entry = {"row": f"{group}/{slug}", "label": label, "paper": row, "runnable": False}
    return entry | dict.fromkeys(("command", "mf_command", "gmacs", "ours"))


def read_results(path: Path, rows: Iterable[str]) -> dict[str, Entry]:
    """Recorded results by row; of several of one row the last in the file.

    Raises:
        UserError: the file is no list of results, names a row that is none, or a score that is no number.
    """
    try:
        records = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: {error}") from error
    for record in records:
        if set(record) != RESULT_FIELDS:
            raise UserError(f"{path}: {record}: want the fields {', '.join(sorted(RESULT_FIELDS))}")
        if record["row"] not in rows:
            raise UserError(
                f"{path}: {record['row']!r}: no such row; python -m hfgd_jax.tools.paper lists them"
            )
        for key, kinds in (("SS", (int, float)), ("MF", (int, float, type(None)))):
            if type(record[key]) not in kinds:
                raise UserError(f"{path}: {record['row']}: {key}={record[key]!r}: want the mIoU in per cent")
    return {record["row"]: {k: v for k, v in record.items() if k != "row"} for record in records}


def count_macs(
    paper: ModuleType, rows: Sequence[str], report: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Multiply-accumulates of each row at its own crop; each distinct network is traced once."""
    counted, found = {}, {}
    for i, name in enumerate(rows):
        config = paper.get_config(name)
        network = _network(config)
        if network not in counted:
            counted[network] = sum(inference_macs(config, tuple(config.data.crop))[0].values())
            report(f"{i + 1}/{len(rows)} {name}: {counted[network] / 1e9:.2f} GMACs")
        found[name] = counted[network]
    return found


def _network(config: ConfigDict) -> str:
    """A key that is equal for networks of equal cost: the model, the classes and the size of the image."""
    return json.dumps([config.model.to_dict(), config.data.num_classes, config.data.crop], sort_keys=True)


def select(found: Sequence[Entry], table: str) -> list[Entry]:
    """The rows of one table: `9`, `table9` or `section5.1`; all of them for the empty string.

    Raises:
        UserError: there is no such table.
    """
    group = f"table{table}" if table.isdecimal() else table
    chosen = [entry for entry in found if not table or _group(entry) == group]
    if not chosen:
        groups = ", ".join(dict.fromkeys(_group(entry).removeprefix("table") for entry in found))
        raise UserError(f"--table={table}: no such table; one of {groups}")
    return chosen


def render(found: Sequence[Entry], titles: Mapping[str, str], form: str) -> str:
    """The rows as `text`, `markdown` or `json`, with a line feed at the end."""
    if form == "json":
        return json.dumps(list(found), indent=2, ensure_ascii=False) + "\n"
    groups = dict.fromkeys(map(_group, found))
    blocks = [_preface(found)] if form == "markdown" and len(groups) == len(titles) else []
    for group in groups:
        rows = [entry for entry in found if _group(entry) == group]
        title = f"{group[:1].upper()}{re.sub('(?<=[a-z])(?=[0-9])', ' ', group)[1:]}: {titles[group]}"
        cells = [HEAD, *(_cells(entry, _decimals(rows)) for entry in rows)]
        blocks.append(
            f"## {title}\n\n{_markdown(cells)}" if form == "markdown" else f"{title}\n{_text(cells)}"
        )
    return "\n".join(blocks)


def _preface(found: Sequence[Entry]) -> str:
    tables = [entry for entry in found if entry["table"] is not None]
    in_tables = sum(entry["runnable"] for entry in tables)
    return _PREFACE.format(
        rows=len(tables),
        runnable=in_tables,
        references=len(tables) - in_tables,
        texts=len(found) - len(tables),
        recorded=sum(entry["ours"] is not None for entry in found),
    )


def _group(entry: Entry) -> str:
    return entry["row"].partition("/")[0]


def _decimals(rows: Sequence[Entry]) -> int:
    """The paper gives comparisons with other methods to one decimal, ablations to two."""
    return 2 if all(entry["runnable"] for entry in rows) else 1


def _cells(entry: Entry, decimals: int) -> tuple[str, ...]:
    figures = ", ".join(f"{key} {value:.{decimals}f}" for key, value in entry["paper"].items())
    if not entry["runnable"]:
        return entry["row"], entry["label"], figures, "", "", "reference", ""
    macs, commands = f"{entry['gmacs']:.2f}", (entry["command"], entry["mf_command"])
    return entry["row"], entry["label"], figures, macs, _ours(entry), *commands


def _ours(entry: Entry) -> str:
    """The recorded SS, and MF beside it where the paper has both."""
    if entry["ours"] is None:
        return "not run"
    if "MF" not in entry["paper"]:
        return f"{entry['ours']['SS']:.2f}"
    return ", ".join(
        f"{key} {'not run' if entry['ours'][key] is None else format(entry['ours'][key], '.2f')}"
        for key in ("SS", "MF")
    )


def _text(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if head in RIGHT else cell.ljust(width)
            for head, cell, width in zip(HEAD, row, widths, strict=True)
        ]
        lines.append("  " + "  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    rule = ["---:" if head in RIGHT else "---" for head in HEAD]
    code = ("row", *COMMANDS)
    coded = [
        [f"`{cell}`" if head in code and cell not in ("", "reference") else cell for head, cell in pairs]
        for pairs in (tuple(zip(HEAD, row, strict=True)) for row in cells[1:])
    ]
    lines = [cells[0], rule, *coded]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in lines) + "\n"
    )


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("table", "", "One table alone: 1 to 17, section5.1 or section5.2.")
    flags.DEFINE_enum("format", "text", FORMATS, "How the rows are written.")
    flags.DEFINE_bool("json", False, "The same as --format=json.")
    flags.DEFINE_string("output", "", "File to write to; empty: the terminal.")
    flags.DEFINE_bool("recount", False, "Count the multiply-accumulates anew and keep them; takes minutes.")


def main(_: Sequence[str]) -> int:
    """Lists the rows; returns the exit code."""
    values = flags.FLAGS
    if values.json and values["format"].present and values.format != "json":
        raise UserError(f"--json and --format={values.format}: choose one")
    paper = load_config_file()
    if values.recount:
        recount(paper)
    macs = _read_macs()
    found = select(entries(paper, macs, read_results(RESULTS, paper.ROWS)), values.table)
    text = render(found, paper.TITLES, "json" if values.json else values.format)
    if not values.output:
        print(text, end="")
        return 0
    try:
        Path(values.output).write_text(text)
    except OSError as error:
        raise UserError(f"--output={values.output}: {error}") from error
    print(f"{len(found)} rows: {values.output}")
    return 0


def recount(paper: ModuleType) -> None:
    """Counts all rows' multiply-accumulates and writes `docs/paper_macs.json`; progress goes to stderr."""
    counted = count_macs(paper, list(paper.ROWS), lambda line: print(line, file=sys.stderr, flush=True))
    MACS.write_text(json.dumps(counted, indent=2) + "\n")


def _read_macs() -> dict[str, int]:
    try:
        return json.loads(MACS.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{MACS}: {error}; run python -m hfgd_jax.tools.paper --recount") from error


if __name__ == "__main__":
    define_flags()
    shell.run(main)
