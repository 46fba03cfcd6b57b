"""The notebooks run from their first cell to their last, and show what they say."""

import pathlib

import nbformat
from nbclient import NotebookClient

from sora_jax.video_io import probe
from tests.weights.open_folders import PIPELINE, copy_experts, copy_image_pipeline, copy_ti2v

# The same programs, run through fewer times than in the model's own settings.
FEW_STEPS = """
import dataclasses
model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, steps=2))
"""
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
    notebook = read("sample.ipynb")
    (load,) = (cell for cell in notebook.cells if "model = sora_jax.load()" in cell.source)
    load.source += FEW_STEPS
    code = run(notebook)
    for cell in code[2:]:
        count = shown(cell).count("<video ") + shown(cell).count("<img ")
        assert count >= 1, f"nothing is shown by: {cell.source}"
    assert sum(shown(cell).count("<video ") for cell in code) >= 18


def test_open_weights_become_videos(tmp_path):
    """With tiny random models in the same layouts in place of the downloads, and tiny sizes."""
    models = {
        "T2V": PIPELINE,
        "I2V": copy_image_pipeline(tmp_path / "i2v"),
        "TI2V": copy_ti2v(tmp_path / "ti2v"),
        "EXPERTS": copy_experts(tmp_path / "experts"),
    }
    settings = [f"{name} = {str(folder)!r}" for name, folder in models.items()]
    settings += [f"FOLDER = pathlib.Path({str(tmp_path)!r})"]
    settings += ["SIZE, LARGE, FRAMES, STEPS = (32, 16), (64, 32), 5, 2"]
    notebook = read("open_weights.ipynb")
    for cell in notebook.cells:
        if "settings" in cell.metadata.get("tags", []):
            cell.source = "\n".join(settings)
    code = run(notebook)
    assert sum(shown(cell).count("<video ") for cell in code) == len(models)
    for name, size in (("text_to", (32, 16)), ("text_and_image_to", (64, 32))):
        info = probe(tmp_path / f"{name}_video.mp4")
        assert (info.frames, info.width, info.height) == (5, *size)
