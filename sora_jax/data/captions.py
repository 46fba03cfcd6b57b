"""The clips of a folder and what is written about them: sidecar texts and metadata files.

A caption is "short" (one clause) or "detailed" (some sentences). For `dance.mp4` they come from

- a row of `metadata.jsonl` or `metadata.csv` whose `file_name` (relative to the metadata file's own
  folder, `/` between its parts) is that clip's, as in Hugging Face's folder builders. Column
  `short` is the short caption; the detailed one is the first filled of `detailed`, `caption` and
  `text`. `group` and `source` decide the split (see `splits`); every other column is kept as it is;
- `dance.short.txt`, and `dance.detailed.txt` or `dance.txt`, each one caption, lines joined.

Metadata comes before sidecars and outer folders before inner ones. Texts are UTF-8.
"""

import csv
import dataclasses
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg", ".webp")
KINDS = ("short", "detailed")
_METADATA = ("metadata.jsonl", "metadata.csv")
_COLUMNS = {"short": ("short",), "detailed": ("detailed", "caption", "text")}
_USED = {"file_name", *_COLUMNS["short"], *_COLUMNS["detailed"]}
_SIDECARS = {"short": (".short.txt",), "detailed": (".detailed.txt", ".txt")}


@dataclasses.dataclass
class Clip:
    """One media file: its name relative to the folder, captions by kind, the rest of its row."""

    file_name: str
    path: Path
    captions: dict[str, str] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Report:
    """What became of every file that is not simply a clip with its captions.

    Attributes:
      skipped: clips that are not in the dataset, each with its reason.
      notes: what to know about clips that are.
      unused: other files and entries of metadata files, each with its reason.
    """

    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    notes: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    unused: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def find_clips(folder: Path, report: Report) -> list[Clip]:
    """Every clip under `folder` with its captions, sorted by name; what is odd goes to `report`."""
    clips, texts, tables = {}, {}, []
    for path in _walk(folder, report):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in SUFFIXES:
            if _is_utf8(name):
                clips[name] = Clip(name, path)
            else:
                report.skipped.append((name, "its name is not UTF-8; rename it"))
        elif path.name in _METADATA:
            tables.append(path)
        elif path.suffix == ".txt":
            texts[name] = path
        else:
            known = " ".join(suffix[1:] for suffix in SUFFIXES)
            report.unused.append((name, f"not a clip: the suffix is none of {known}"))
    named = set()
    for path in sorted(tables, key=lambda path: (len(path.parts), path)):
        _take_table(path, folder, clips, named, report)
    _take_sidecars(texts, clips, report)
    return [clips[name] for name in sorted(clips)]


def stored_captions(record: Mapping[str, Any]) -> dict[str, str]:
    """Captions by kind of a dataset's record, which holds an empty text where there is none."""
    return {kind: text.decode() for kind, text in record["captions"].items() if text}


def _walk(folder: Path, report: Report) -> Iterator[Path]:
    """The regular files under `folder`, none of them hidden or reached through a link outwards."""

    def _name(path: str | Path) -> str:
        return Path(path).relative_to(folder).as_posix()

    def unreadable(error: OSError) -> None:
        report.unused.append((_name(error.filename), f"folder not readable: {error.strerror}"))

    root = folder.resolve()
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        for name in sorted(folders):
            path = Path(parent, name)
            if name.startswith("."):
                report.unused.append((_name(path) + "/", "hidden folder"))
            elif path.is_symlink():
                report.unused.append((_name(path) + "/", "links to folders are not followed"))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            fault = "hidden file" if name.startswith(".") else _fault(path, root)
            if fault is None:
                yield path
            elif path.suffix.lower() in SUFFIXES and not name.startswith("."):
                report.skipped.append((_name(path), fault))
            else:
                report.unused.append((_name(path), fault))


def _fault(path: Path, root: Path) -> str | None:
    """Why a file must not be opened, or None."""
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(root):
            return "links to a file outside the folder; copy it in"
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        return f"cannot be opened: {getattr(error, 'strerror', None) or error}"
    return None


def _is_utf8(text: str) -> bool:
    """False where bytes that are not UTF-8 were smuggled into the text as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig", errors="surrogateescape")


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of a metadata file; an unreadable row is the error that says why."""
    try:
        text = _read(path)
    except OSError as error:
        yield 0, error
        return
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                yield reader.line_num, {key: value for key, value in row.items() if key and value}
        except csv.Error as error:
            yield reader.line_num, error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"not JSON: {error}")


def _take_table(
    path: Path, folder: Path, clips: dict[str, Clip], named: set[str], report: Report
) -> None:
    """Gives each clip that a metadata file names its row and captions, unless `named` before."""
    table = path.relative_to(folder)
    for number, row in _rows(path):
        where = f"{table.as_posix()}:{number}"
        clip = _find(row, table.parent.as_posix(), clips, report)
        if isinstance(clip, str):
            report.unused.append((where, clip))
        elif clip is not None and clip.file_name in named:
            report.unused.append((where, f"{clip.file_name} has a metadata row already"))
        elif clip is not None:
            named.add(clip.file_name)
            _take_columns(row, clip, where, report)
            clip.metadata = {key: value for key, value in row.items() if key not in _USED}


def _find(row: Any, base: str, clips: dict[str, Clip], report: Report) -> Clip | str | None:
    """The clip of a metadata row, or why there is none, or None where that is reported already."""
    if isinstance(row, Exception):
        return str(row)
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        return "no `file_name`"
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        return f"file_name {name!r} leads out of the folder; name a file inside it"
    full = PurePosixPath(base, relative).as_posix()
    if full in clips:
        return clips[full]
    if any(full == skipped for skipped, _ in report.skipped):
        return None
    return f"file_name {name!r} names no clip in the folder"


def _take_columns(row: dict[str, Any], clip: Clip, where: str, report: Report) -> None:
    for kind, columns in _COLUMNS.items():
        for column in columns:
            value = row.get(column)
            if value is None or value == "":
                continue
            if not isinstance(value, str):
                report.unused.append((where, f"`{column}` is not a text"))
            else:
                _take_caption(clip, kind, value, where, report)


def _take_sidecars(texts: dict[str, Path], clips: dict[str, Clip], report: Report) -> None:
    stems = {os.path.splitext(name)[0] for name in clips}
    used = set()
    for name, clip in clips.items():
        stem = os.path.splitext(name)[0]
        for kind, endings in _SIDECARS.items():
            for ending in endings:
                # `a.short.txt` is the sidecar of `a.short.mp4` where there is one, else of `a.mp4`.
                sidecar = stem + ending
                if sidecar not in texts or (ending != ".txt" and sidecar[:-4] in stems):
                    continue
                used.add(sidecar)
                try:
                    text = _read(texts[sidecar])
                except OSError as error:
                    report.unused.append((sidecar, f"cannot be read: {error.strerror}"))
                else:
                    _take_caption(clip, kind, text, sidecar, report)
    for name in sorted(set(texts) - used):
        report.unused.append((name, "the caption of no clip (STEM.txt, STEM.short.txt)"))


def _take_caption(clip: Clip, kind: str, text: str, where: str, report: Report) -> None:
    text = " ".join(text.split())
    if not text:
        report.unused.append((where, f"the {kind} caption is empty"))
    elif not _is_utf8(text):
        report.unused.append((where, f"the {kind} caption is not UTF-8; save it as UTF-8"))
    elif kind in clip.captions:
        if clip.captions[kind] != text:
            report.unused.append((where, f"{clip.file_name} has a {kind} caption already"))
    else:
        clip.captions[kind] = text
