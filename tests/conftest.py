"""What tests share: eight virtual CPU devices, strict rank promotion, a tiny model, footage."""

import gc
import os
import pathlib
import tempfile

# Before jax is imported anywhere: the sharding tests need more than one device. Compiling is what
# the tests spend their time on; code that is optimised less takes a quarter as long to make, and
# in one piece a sixth less again.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What commands keep compiled between their runs is kept for these tests, and by all workers in one
# folder, not in the user's own.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["XDG_CACHE_HOME"] = _cache.name

import jax
import pytest

import sora_jax
from tests.tiny_model import write_model

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(50_000)  # tracing makes many small objects, little of it garbage

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
LONGEST = {
    *("test_editing.py", "test_finetuning.py", "test_hosts.py", "test_notebooks.py"),
    *("test_pretrained.py", "test_scripts.py", "test_search.py", "test_tasks.py"),
}


def pytest_collection_modifyitems(items):
    """Workers take file by file: the longest first, so that none is left alone with one."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="module", autouse=True)
def _little_to_search_for_garbage():
    """What is imported, traced and kept stays: looking for garbage among it takes longest."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_clips() -> pathlib.Path:
    """The folder of captioned real clips beside the project, where there is one."""
    folder = REPOSITORY.parent / "shared" / "real_clips"
    if not folder.is_dir():
        pytest.skip(f"no real footage at {folder}")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a model of tiny networks."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    """The model of `folder`."""
    return sora_jax.load(folder)
