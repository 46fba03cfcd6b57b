"""A work folder in a bucket: checkpoints go there directly, other files by way of a local folder.

Model folders, videos and event files are written by libraries that know only local files.
"""

import contextlib
import importlib.util
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

Folder = pathlib.Path | epath.Path


def is_remote(folder: Folder | str) -> bool:
    """Whether a folder is in a bucket, not on a file system."""
    return "://" in str(folder)


def remote_folder(url: str) -> epath.Path:
    """The folder of a bucket.

    Raises:
      ValueError: not one of Google Cloud Storage, or what reads those is not installed.
    """
    if not url.startswith("gs://") or not url.removeprefix("gs://").strip("/"):
        raise ValueError(
            f"--workdir={url} is neither a folder nor in a bucket of Google Cloud Storage: give "
            "gs://BUCKET/FOLDER, or mount the storage and give a folder"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"--workdir={url} needs the package gcsfs: pip install gcsfs")
    return epath.Path(url)


def upload(local: pathlib.Path, folder: Folder) -> None:
    """Copies the files of a local folder; `model.json`, which says that all is there, is last.

    One that is there already goes first: it would vouch for files of two models.
    """
    files = [file for file in local.rglob("*") if file.is_file()]
    if any(file.name == "model.json" for file in files):
        (folder / "model.json").unlink(missing_ok=True)
    for file in sorted(files, key=lambda file: file.name == "model.json"):
        target = folder / file.relative_to(local).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 2**24)


@contextlib.contextmanager
def local_folder(folder: Folder) -> Iterator[pathlib.Path]:
    """The folder itself if it is local, else one whose files are uploaded to it at the end."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = pathlib.Path(scratch) / folder.name
        yield local
        upload(local, folder)


@contextlib.contextmanager
def local_file(file: Folder) -> Iterator[pathlib.Path]:
    """The file itself if it is local, else a copy."""
    if not is_remote(file):
        yield file
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = pathlib.Path(scratch) / file.name
        local.write_bytes(file.read_bytes())
        yield local
