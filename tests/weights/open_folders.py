"""Folders of open models for tests: the golden one, copies of it, and files that take no space."""

import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = pathlib.Path(__file__).parent / "golden"
PIPELINE = GOLDEN / "pipeline"
PROMPT = "A red circle moves &amp; turns  right."
STEPS, GUIDANCE = 20, 5.0


def copy_pipeline(folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(PIPELINE, folder))


def copy_image_pipeline(folder: pathlib.Path) -> pathlib.Path:
    """That of golden/image, whole: what it shares with PIPELINE is there only."""
    shutil.copytree(GOLDEN / "image", folder)
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(PIPELINE / name, folder / name)
    return folder


def edit_json(file: pathlib.Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def copy_ti2v(folder: pathlib.Path) -> pathlib.Path:
    """The golden pipeline as one of TI2V 5B's kind."""
    copy_pipeline(folder)
    shutil.rmtree(folder / "vae")
    shutil.copytree(GOLDEN / "vae_2.2", folder / "vae")
    edit_json(folder / "model_index.json", expand_timesteps=True)
    return folder


def copy_experts(folder: pathlib.Path) -> pathlib.Path:
    """The golden pipeline with a second transformer: its own with each tensor turned round."""
    copy_pipeline(folder)
    add_second(
        folder, lambda tensors: tensors.update({k: x[::-1] for k, x in tensors.items()}), 0.875
    )
    edit_json(folder / "scheduler" / "scheduler_config.json", flow_shift=12.0)
    return folder


def add_second(folder: pathlib.Path, edit: Callable[[dict], None], boundary: float) -> None:
    """Gives a pipeline a second transformer, the first one's tensors after `edit`, in one file."""
    tensors = {}
    for file in (folder / "transformer").glob("*.safetensors"):
        tensors |= load_file(file)
    edit(tensors)
    second = folder / "transformer_2"
    second.mkdir()
    shutil.copy(folder / "transformer" / "config.json", second)
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(tensors, second / "diffusion_pytorch_model.safetensors")
    kind = ["diffusers", "WanTransformer3DModel"]
    edit_json(folder / "model_index.json", transformer_2=kind, boundary_ratio=boundary)


def load_layout(part: str) -> tuple[dict, dict[str, tuple[int, ...]]]:
    """Configuration and shapes of a published model or part, by its name in layouts.json."""
    stored = json.loads((GOLDEN / "layouts.json").read_text())[part]
    shapes = {}
    for pattern, (shape, count) in stored["tensors"].items():
        names = [pattern.format(i) for i in range(count)] if "{}" in pattern else [pattern]
        shapes |= {name: tuple(shape) for name in names}
    return stored["config"], shapes


def write_sparse(file: pathlib.Path, shapes: dict[str, tuple[int, ...]], dtype="BF16") -> None:
    """A safetensors file of zeros that takes no space on disk, only its header does."""
    header, end, width = {}, 0, {"BF16": 2, "F32": 4}[dtype]
    for name, shape in shapes.items():
        start, end = end, end + width * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def write_published(folder: pathlib.Path, size: str) -> pathlib.Path:
    """A diffusers folder of a published model in sparse files, with the golden tokenizer.

    `size` is "1.3b", "14b", "5b", "i2v-14b", or "a14b" and "i2v-a14b" for two experts.
    """
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(PIPELINE / name, folder / name)
    network = "14b" if size == "a14b" else size
    config, two = load_layout(network)[0], size.endswith("a14b")
    sees = config["in_channels"] > config["out_channels"]
    shutil.copy((GOLDEN / "image" if sees else PIPELINE) / "model_index.json", folder)
    parts = {
        "transformer": (network, "WanTransformer3DModel"),
        "vae": ("vae_2.2" if size == "5b" else "vae", "AutoencoderKLWan"),
        "text_encoder": ("text", None),
    }
    if two:
        parts["transformer_2"] = parts["transformer"]
        second = ["diffusers", "WanTransformer3DModel"]
        boundary = 0.9 if sees else 0.875
        edit_json(folder / "model_index.json", transformer_2=second, boundary_ratio=boundary)
    if size == "5b":
        edit_json(folder / "model_index.json", expand_timesteps=True)
    if config.get("image_dim") is not None:
        parts["image_encoder"] = ("image", None)
        shutil.copytree(GOLDEN / "image" / "image_processor", folder / "image_processor")
        sides = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
        edit_json(folder / "image_processor" / "preprocessor_config.json", **sides)
    for name, (part, kind) in parts.items():
        stem = "model" if part in ("text", "image") else "diffusion_pytorch_model"
        config, shapes = load_layout(part)
        (folder / name).mkdir()
        named = {"_class_name": kind} if kind else {}
        (folder / name / "config.json").write_text(json.dumps({**config, **named}))
        if name == "vae":
            write_sparse(folder / name / f"{stem}.safetensors", shapes, "F32")
            continue
        places = {
            key: f"{stem}-{i % 3 + 1:05}-of-00003.safetensors" for i, key in enumerate(shapes)
        }
        for file in set(places.values()):
            inside = {key: shapes[key] for key, place in places.items() if place == file}
            write_sparse(folder / name / file, inside)
        index = folder / name / f"{stem}.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
