"""Imports point one way, and what reads data in worker processes leaves jax alone."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "sora_jax"

# What each part of the package may import besides itself; a part is a file or folder of it.
ARROWS = {
    "host_memory": set(),
    "command": {"host_memory"},
    "buckets": set(),
    "digests": set(),
    "progress": set(),
    "sharding": set(),
    "video_picture": set(),
    "video_webp": {"video_picture"},
    "video_reader": {"video_picture", "video_webp"},
    "video_writer": {"video_reader"},
    "video_io": {"video_picture", "video_reader", "video_writer"},
    "models": {"sharding"},
    "diffusion": set(),
    "language": set(),
    "data": {"buckets", "command", "digests", "progress", "seams", "video_io"},
    "weights": {"digests", "language", "models"},
    "generation": {"models", "diffusion"},
    "image_prompt": {"models", "diffusion"},
    "frame_coder": {"generation", "models", "weights"},
    "pipeline": {
        *("models", "diffusion", "generation", "image_prompt", "language", "progress"),
        "frame_coder",
    },
    "loading": {"diffusion", "language", "pipeline", "weights"},
    "sample_flags": {"diffusion", "pipeline", "weights"},
    "endless": {"diffusion", "pipeline", "windows"},
    "windows": {"diffusion", "pipeline", "seams"},
    "passages": {"pipeline", "seams", "windows"},
    "seams": set(),
    "prompting": {"diffusion", "pipeline", "seams", "windows"},
    "evaluation": {
        *(
            "buckets",
            "data",
            "diffusion",
            "models",
            "pipeline",
            "prompting",
            "passages",
            "endless",
            "weights",
        ),
        *("seams", "video_io"),
    },
    "training": {
        *("models", "diffusion", "data", "sharding", "language", "weights", "evaluation"),
        *("buckets", "digests", "video_io"),
    },
    "pod": {
        *("buckets", "diffusion", "generation", "models", "sharding", "training"),
        "weights",
    },
    "__init__": {"endless", "loading", "passages", "pipeline", "prompting", "video_io"},
}

# Commands, which nothing else imports: they may use everything.
SCRIPTS = {*PACKAGE.rglob("__main__.py"), PACKAGE / "data" / "precompute.py"}

# What runs, or may run, in the processes that read data.
WORKERS = [
    *("data.loader", "data.clips", "data.latents", "data.worlds.shapes", "language.tokenizer"),
    "buckets",
    "video_io",
]

FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: pathlib.Path) -> set[str]:
    """Full names of the modules that a file imports, and of what it takes from them."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def module_file(name: str) -> pathlib.Path | None:
    """The file of one of our modules, or None if the name is not that of a module."""
    path = PACKAGE.parent / pathlib.Path(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if name.split(".")[0] == "sora_jax" and file.is_file():
            return file
    return None


def part(file: pathlib.Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_there_is_something_to_check():
    assert {part(file) for file in FILES} == set(ARROWS)
    assert set(FILES) > SCRIPTS
    assert all(module_file(f"sora_jax.{name}") for name in WORKERS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(file):
    if file in SCRIPTS:
        return
    here = part(file)
    files = {module_file(name) for name in imported(file)} - {None, PACKAGE / "__init__.py"}
    for other in files:
        assert other not in SCRIPTS, f"{file} imports the command {other}"
    found = {part(other) for other in files} - {here}
    assert found <= ARROWS[here], f"{file} imports {sorted(found - ARROWS[here])}"


def test_arrows_make_no_circle():
    left = dict(ARROWS)
    while left:
        free = {name for name, needs in left.items() if not needs & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_data_workers_do_not_import_jax():
    waiting = [module_file(f"sora_jax.{name}") for name in WORKERS]
    seen = set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        names = imported(file)
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"jax", "flax", "optax", "orbax"}, file
        # Importing a module imports the packages around it too.
        names |= {name.rpartition(".")[0] for name in names} | {"sora_jax"}
        waiting += [other for other in map(module_file, names) if other]
    assert PACKAGE / "data" / "reader.py" in seen
