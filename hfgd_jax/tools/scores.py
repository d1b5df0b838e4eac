"""Prints finished runs' scores class by class, over their seeds; writes records of runs, and tables in pages.

    python -m hfgd_jax.tools.scores --workdirs runs/demo,runs/demo-fcn
    python -m hfgd_jax.tools.scores --workdirs runs/a_seed0,runs/a_seed1 --record docs/results/camvid/small
    python -m hfgd_jax.tools.scores --records docs/results/camvid/small --classes pole,sign --format markdown
    python -m hfgd_jax.tools.scores --update docs/camvid.md

Runs that differ in `train.seed` alone (and in where and how fast they ran) are one group, a column.
`--update` replaces the tables of a Markdown page, which stand between lines such as these; the folder is
relative to the page:

    <!-- scores: results/camvid/small --names=hfgd,sfpn --classes=pole,sign -->
    <!-- end scores -->
"""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import records
from hfgd_jax.evaluation.records import Record
from hfgd_jax.runtime import shell, storage
from hfgd_jax.tools import score_tables, tables

_BLOCK = re.compile(r"^(<!-- scores: (.*) -->\n)(?:.*\n)*?(<!-- end scores -->)$", re.MULTILINE)
_OPEN = re.compile(r"^<!-- scores:", re.MULTILINE)


def choose(found: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """The records of these names, in the order of the names; all where there are none.

    Raises:
        UserError: a name that no record has.
    """
    known = dict.fromkeys(record["name"] for record in found)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--names: no {', '.join(unknown)}; the names are {', '.join(known)}")
    return [record for name in names or known for record in found if record["name"] == name]


def report(found: Sequence[Record], values: Any, form: str) -> str:
    """The tables of records, with the options of `define_table_flags`."""
    groups = score_tables.group(choose(found, values.names), values.labels)
    return score_tables.report(groups, score_tables.rows(groups, values.classes, curve=values.curve), form)


def update(page: str, read: Callable[[str], list[Record]]) -> str:
    """A Markdown page with the tables of its blocks made anew.

    Args:
        page: its text.
        read: gives the records of a folder that a block names.

    Raises:
        UserError: a block without an end, or with wrong options; no block at all.
    """

    def table(match: re.Match[str]) -> str:
        values = flags.FlagValues()
        values.set_gnu_getopt(True)
        define_table_flags(values)
        try:
            _, *folders = values(["scores", *shlex.split(match[2])])
        except (flags.Error, ValueError) as error:
            raise UserError(f"scores: {match[2]}: {error}") from error
        found = [record for folder in folders for record in read(folder)]
        return f"{match[1]}\n{report(found, values, 'markdown')}\n\n{match[3]}"

    opened = len(_OPEN.findall(page))
    if not opened or opened != len(_BLOCK.findall(page)):
        raise UserError("want <!-- scores: FOLDER [options] --> and <!-- end scores -->, a line each")
    return _BLOCK.sub(table, page)


def update_file(path: Path) -> str:
    """The new text of a page; its blocks name folders relative to its own.

    Raises:
        UserError: the page or a folder cannot be read, or what `update` raises.
    """
    try:
        return update(path.read_text(), lambda folder: records.read(path.parent / folder))
    except (OSError, ValueError) as error:  # UserError is a ValueError, and so is text that is none
        raise UserError(f"--update={path}: {error}") from error


def write_records(
    found: Sequence[Record], folder: str, command: str, checkout: str, *, overwrite: bool
) -> list[str]:
    """Writes the records of runs; returns their paths.

    Args:
        found: of `records.of_run`.
        folder: where to.
        command: what trained them; `{seed}` stands for each one's own. Empty: not known.
        checkout: the folder of the checkout that trained them; empty: of this package.
        overwrite: replace records that are there.

    Raises:
        UserError: two would be the same file, or what `records.write` raises.
    """
    keys = [(record["name"], record["seed"]) for record in found]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"--record: {twice[0][0]} of seed {twice[0][1]} twice; tell them apart with --name")
    now = records.recording(Path(checkout) if checkout else None)
    paths = []
    for record in found:
        said = {"command": command.replace("{seed}", str(record["seed"])) or None, "recording": now}
        paths.append(str(records.write(record | said, folder, overwrite=overwrite)))
    return paths


def define_table_flags(values: flags.FlagValues) -> None:
    """The options of tables: the command's, and those of a block in a page."""
    flags.DEFINE_list("names", [], "The runs of these names alone, in this order.", values)
    flags.DEFINE_list("labels", [], "What the groups are called, in their order; else their names.", values)
    flags.DEFINE_list("classes", [], "Classes whose mean IoU is a row of its own.", values)
    flags.DEFINE_bool("curve", False, "The mIoU at the evaluations before the last, too.", values)


def define_flags() -> None:
    """The command's flags."""
    define_table_flags(flags.FLAGS)
    flags.DEFINE_list("workdirs", [], "Folders of finished runs, joined by commas.")
    flags.DEFINE_list("records", [], "Folders of records, joined by commas.")
    flags.DEFINE_list("update", [], "Markdown pages whose tables are made anew, joined by commas.")
    flags.DEFINE_enum("format", "text", tables.FORMATS, "How the tables are written.")
    flags.DEFINE_string("record", "", "Folder to write a record of each of --workdirs to.")
    flags.DEFINE_string(
        "name", "", "--workdirs: their name; empty: each folder's, without a seed at its end."
    )
    flags.DEFINE_string("command", "", "--record: what trained the runs; {seed} stands for each one's seed.")
    flags.DEFINE_string(
        "checkout", "", "--record: folder of the checkout that trained them; empty: this one."
    )
    flags.DEFINE_bool("overwrite", False, "--record: replace records that are there.")


def main(_: Sequence[str]) -> int:
    """Prints tables, writes records or updates pages; returns the exit code."""
    v = flags.FLAGS
    if bool(v.update) == bool(v.workdirs or v.records):
        raise UserError("want --workdirs or --records (or both), or --update")
    if v.record and (v.records or not v.workdirs):
        raise UserError(f"--record={v.record}: wants --workdirs, and no --records")
    for page in map(Path, v.update):
        storage.write_atomically(page, update_file(page))
        print(f"updated {page}")
    found = [record for folder in v.records for record in records.read(folder)]
    found += [records.of_run(workdir, v.name) for workdir in v.workdirs]
    if v.record:
        print("\n".join(write_records(found, v.record, v.command, v.checkout, overwrite=v.overwrite)))
    elif found:
        print(report(found, v, v.format))
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
