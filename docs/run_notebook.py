"""Runs docs/notebook.ipynb from top to bottom, in an empty folder, and keeps what its cells print and show.

python docs/run_notebook.py
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent / "notebook.ipynb"
LARGEST = 400_000  # bytes of the file, which is committed


def executed(folder: Path, environment: Mapping[str, str], parameters: str = "") -> nbformat.NotebookNode:
    """The notebook with fresh outputs.

    Args:
        folder: an empty one, where the cells run and write.
        environment: of the kernel; the commands of this Python's environment are found besides.
        parameters: code in place of the cell with the tag `parameters`; empty: the cell as it stands.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised, or a command in it failed.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source = parameters or cell.source
    paths = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    client = NotebookClient(
        notebook, resources={"metadata": {"path": str(folder)}}, record_timing=False, coalesce_streams=True
    )
    client.execute(env={**environment, "PATH": paths})
    notebook.metadata["language_info"] = {"name": "python"}  # without versions, which would change
    return notebook


def main() -> int:
    """Writes the notebook anew; returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        text = nbformat.writes(executed(Path(folder), os.environ))
        private = [path for path in (folder, str(NOTEBOOK.parent.parent), str(Path.home())) if path in text]
    if private or len(text) > LARGEST:
        print(f"not written: {len(text)} bytes, at most {LARGEST}; paths of this machine: {private}")
        return 1
    NOTEBOOK.write_text(text + "\n")
    print(f"wrote {NOTEBOOK}, {len(text)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
