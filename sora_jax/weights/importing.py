"""Open weights into a model folder of ours, tensor by tensor."""

import pathlib
import shutil

import numpy as np

from sora_jax.weights.model_folder import check_space, replaced, write_description
from sora_jax.weights.streaming import lay_out, stream
from sora_jax.weights.tensor_files import write_tensors
from sora_jax.weights.wan import OpenModel


def write_model(model: OpenModel, output: pathlib.Path, dtype: np.dtype | None) -> None:
    """Writes a checked open model as a model folder; where that fails, nothing is left.

    Args:
      model: of `open_model`.
      output: folder, made if missing.
      dtype: of the parameters on disk; None for that of the open model's files.

    Raises:
      ValueError: a damaged file, a number that the dtype cannot hold, or too little space.
    """
    layouts = {
        part: lay_out(model.tensors[part], part, config, dtype)
        for part, config in model.configs.items()
    }
    size = sum(
        int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        for layout in layouts.values()
        for shape, kind in layout.values()
    )
    check_space(output, size)
    with replaced(output) as scratch:
        for part, config in model.configs.items():
            tensors = stream(model.tensors[part], part, config, layouts[part])
            write_tensors(scratch / f"{part}.safetensors", layouts[part], tensors)
        shutil.copyfile(model.tokenizer, scratch / "tokenizer.json")
        settings = {part: model.part_settings(part) for part in model.configs}
        write_description(scratch, settings, model.settings)
