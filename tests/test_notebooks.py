"""The notebooks run from their first cell to their last, and show what they say."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = pathlib.Path(__file__).resolve().parents[1] / "notebooks"


def shown(cell):
    """The html of a cell's outputs."""
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


@pytest.mark.parametrize("name", ["sample.ipynb"])
def test_a_notebook_runs(name):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code[2:]:
        count = shown(cell).count("<video ") + shown(cell).count("<img ")
        assert count >= 1, f"nothing is shown by: {cell.source}"
    assert sum(shown(cell).count("<video ") for cell in code) >= 18
