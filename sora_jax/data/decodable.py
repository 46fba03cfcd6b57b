"""Which clips of a folder can be decoded: measures each, decodes its ends, says what is wrong."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool

from sora_jax import video_io
from sora_jax.data.captions import Clip, Report
from sora_jax.digests import file_sha256
from sora_jax.progress import watched

# (offset, the bytes there, suffixes of files that begin so)
_SIGNATURES = (
    (4, b"ftyp", (".mp4", ".mov")),
    (4, b"moov", (".mov", ".mp4")),
    (4, b"mdat", (".mov", ".mp4")),
    (4, b"wide", (".mov", ".mp4")),
    (4, b"free", (".mov", ".mp4")),
    (0, b"\x1aE\xdf\xa3", (".mkv", ".webm")),
    (8, b"AVI ", (".avi",)),
    (8, b"WEBP", (".webp",)),
    (0, b"GIF8", (".gif",)),
    (0, b"\x89PNG", (".png",)),
    (0, b"\xff\xd8\xff", (".jpg", ".jpeg")),
)


@dataclasses.dataclass(frozen=True)
class Decodable:
    """A clip that decodes: what it holds, its size and SHA-256, and what is odd about it."""

    clip: Clip
    info: video_io.VideoInfo
    size: int
    digest: str
    note: str


def check_clips(clips: Sequence[Clip], max_megabytes: int, report: Report) -> list[Decodable]:
    """The clips that decode, in the same order; the others go to the report.

    Args:
      clips: what to check.
      max_megabytes: larger files are not opened.
      report: receives what is skipped or odd.
    """
    usable, first_of = [], {}
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        results = pool.imap(functools.partial(_check, max_megabytes=max_megabytes), clips)
        for clip, result in zip(clips, watched(results, len(clips), "checked", "clip")):
            if isinstance(result, str):
                report.skipped.append((clip.file_name, result))
                continue
            usable.append(result)
            if result.note:
                report.notes.append((clip.file_name, result.note))
            first = first_of.setdefault(result.digest, clip.file_name)
            if first != clip.file_name:
                report.notes.append((clip.file_name, f"has the same bytes as {first}"))
    return usable


def _check(clip: Clip, *, max_megabytes: int) -> Decodable | str:
    """Measures a clip and decodes its first and last frame, or says why that fails."""
    try:
        size = clip.path.stat().st_size
        if size > max_megabytes << 20:
            return f"{size / 2**20:.1f} MiB exceed --max_megabytes={max_megabytes}; cut the video"
        info = video_io.probe(clip.path)
        for frame in sorted({0, info.frames - 1}):
            # Whether it decodes is all that matters: the small size spares the memory.
            video_io.decode(clip.path, start=frame / info.fps, frames=1, size=(16, 16))
        with open(clip.path, "rb") as file:
            note = _suffix_note(clip.path.suffix.lower(), file.read(16))
        digest = file_sha256(clip.path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:
        return str(error).removeprefix(f"{clip.path}: ")
    except Exception as error:  # whatever a decoder makes of damaged bytes
        return f"{type(error).__name__}: {error}"
    return Decodable(clip, info, size, digest, note)


def _suffix_note(suffix: str, head: bytes) -> str:
    for offset, signature, suffixes in _SIGNATURES:
        if head[offset:].startswith(signature):
            return "" if suffix in suffixes else f"{suffix} by name, {suffixes[0]} by content"
    return f"{suffix} by name, another format by content"
