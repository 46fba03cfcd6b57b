"""The notebooks run from their first cell to their last, and show what they say."""

import pathlib

import nbformat
from nbclient import NotebookClient

from sora_jax.video_io import probe
from tests.weights.open_folders import PIPELINE

NOTEBOOKS = pathlib.Path(__file__).resolve().parents[1] / "notebooks"


def shown(cell):
    """The html of a cell's outputs."""
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


def read(name):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    return notebook


def run(notebook):
    """The notebook's cells of code, after all have run."""
    resources = {"metadata": {"path": NOTEBOOKS}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_kind_of_prompt_is_shown():
    code = run(read("sample.ipynb"))
    for cell in code[2:]:
        count = shown(cell).count("<video ") + shown(cell).count("<img ")
        assert count >= 1, f"nothing is shown by: {cell.source}"
    assert sum(shown(cell).count("<video ") for cell in code) >= 18


def test_open_weights_become_videos(tmp_path):
    """With a tiny random model in the same layout in place of the download, and tiny sizes."""
    video = tmp_path / "video.mp4"
    settings = f"T2V, VIDEO = {str(PIPELINE)!r}, {str(video)!r}"
    notebook = read("open_weights.ipynb")
    for cell in notebook.cells:
        if "settings" in cell.metadata.get("tags", []):
            cell.source = f"{settings}\nSIZE, FRAMES, STEPS = (32, 16), 5, 2"
    code = run(notebook)
    assert sum(shown(cell).count("<video ") for cell in code) == 1
    info = probe(video)
    assert (info.frames, info.width, info.height, info.fps) == (5, 32, 16, 16)
