"""docs/notebook.ipynb runs from top to bottom, at a tiny size, and was committed with what its cells show."""

import nbformat
from run_notebook import LARGEST, NOTEBOOK, executed

# Only how large it is differs from what a reader runs.
TINY = 'PICTURES, STEPS = 12, 2\nSETTINGS = {"tiny": True, "method": "fcn"}'


def test_the_cells_run(tmp_path, user_env):
    """A cell that raises, or a command in one that fails, ends the run with the cell and its traceback."""
    notebook = executed(tmp_path, user_env, TINY)
    assert len(list((tmp_path / "photos" / "images").iterdir())) == 12
    assert {path.stem for path in (tmp_path / "out" / "masks").iterdir()} == {
        path.stem for path in (tmp_path / "new").iterdir()
    }
    assert (tmp_path / "report" / "index.html").is_file()
    assert kinds(notebook) == kinds(nbformat.read(NOTEBOOK, as_version=4)), "make notebook"


def kinds(notebook):
    """Of each cell of code: whether something is printed, and the types of what is shown."""
    return [
        (
            any(output.get("name") == "stdout" for output in cell.outputs),
            [set(output.data) for output in cell.outputs if "data" in output],
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_it_is_small_and_stands_as_it_was_run():
    """GitHub shows no notebook that is too large; the counts tell that all cells were run, in their order."""
    assert NOTEBOOK.stat().st_size <= LARGEST
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
