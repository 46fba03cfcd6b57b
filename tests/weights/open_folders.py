"""Folders of open models for tests: the golden one, copies of it, and files that take no space."""

import json
import pathlib
import shutil

import numpy as np

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
    """A diffusers folder of a published model in sparse files, with the golden tokenizer."""
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(PIPELINE / name, folder / name)
    sees = load_layout(size)[0].get("image_dim") is not None
    shutil.copy((GOLDEN / "image" if sees else PIPELINE) / "model_index.json", folder)
    kinds = {size: "WanTransformer3DModel", "vae": "AutoencoderKLWan", "text": None}
    if sees:
        kinds["image"] = None
        shutil.copytree(GOLDEN / "image" / "image_processor", folder / "image_processor")
        sides = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
        edit_json(folder / "image_processor" / "preprocessor_config.json", **sides)
    names = {"vae": "vae", "text": "text_encoder", "image": "image_encoder"}
    for part, kind in kinds.items():
        name = names.get(part, "transformer")
        stem = "model" if part in ("text", "image") else "diffusion_pytorch_model"
        config, shapes = load_layout(part)
        (folder / name).mkdir()
        named = {"_class_name": kind} if kind else {}
        (folder / name / "config.json").write_text(json.dumps({**config, **named}))
        if part == "vae":
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
