"""Which clips are held out: whole groups of related clips, chosen by a hash of their names.

A clip and its crops, sizes or stills show the same pictures, so they must not be on both sides of a
split. Two clips are related when

- the `group` of their metadata is the same; a clip with a group is related by it alone, save for:
- their bytes are the same;
- the `source` of their metadata names overlapping frames of the same thing, as
  "film.mp4, frames 100-250" and "film.mp4, frame 117" do;
- the name of one, without suffix, is the other's plus a separator (`_`, `-`, `.`, space) and
  something with a letter in it, as `shot_7` and `shot_7_tall`;
- their names are the same up to such a last part after a digit, as `shot_7_tall` and
  `shot_7_square`.

Names that hold a digit are compared across folders, others (`video`) only within one.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from sora_jax.data.captions import Clip

_FRAMES = re.compile(r"^(.*?)\W*\bframes?\s+(\d+)(?:\s*(?:-|–|to)\s*(\d+))?", re.IGNORECASE)
_LAST_PART = re.compile(r"(?=[_\-. ][^_\-. ]*$)")
_SEPARATORS = re.compile(r"[_\-. ]+")
_LETTER = r"[^\W\d_]"


def group_clips(clips: Sequence[Clip], digests: Mapping[str, str]) -> dict[str, str]:
    """The group of every clip: {file_name: file_name of the group's first clip, or its `group`}.

    Args:
      clips: the clips, whose metadata may hold `group` and `source`.
      digests: a hash of each clip's bytes, by file name.
    """
    parents = {clip.file_name: clip.file_name for clip in clips}

    def root(name: str) -> str:
        while parents[name] != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    def join(names: Iterable[str]) -> None:
        first, *others = sorted({root(name) for name in names})
        for other in others:
            parents[other] = first

    named = {clip.file_name: _text(clip.metadata.get("group")) for clip in clips}
    related = defaultdict(list)
    for clip in clips:
        related["bytes", digests[clip.file_name]].append(clip.file_name)
        if named[clip.file_name]:
            related["group", named[clip.file_name]].append(clip.file_name)
    free = [clip for clip in clips if not named[clip.file_name]]
    stems = {_key(*_folder_and_stem(clip)) for clip in free}
    for clip in free:
        for stem in _related_stems(*_folder_and_stem(clip), stems):
            related["stem", *stem].append(clip.file_name)
    for names in [*related.values(), *_overlapping(free)]:
        join(names)
    return {name: named[root(name)] or root(name) for name in parents}


def _text(value: object) -> str:
    return "" if value is None else str(value).encode(errors="replace").decode()


def _folder_and_stem(clip: Clip) -> tuple[str, str]:
    path = PurePosixPath(clip.file_name)
    return path.parent.as_posix(), path.stem


def _key(folder: str, stem: str) -> tuple[str, str]:
    """What equal stems share: a stem that holds a digit stands for itself in every folder."""
    return ("" if re.search(r"\d", stem) else folder), stem


def _related_stems(folder: str, stem: str, known: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The keys of the stem itself, of those it extends, and of what it shares with siblings."""
    found = [_key(folder, stem)]
    for separator in _SEPARATORS.finditer(stem):
        extended = _key(folder, stem[: separator.start()])
        if extended in known and re.search(_LETTER, stem[separator.end() :]):
            found.append(extended)
    base, *last = _LAST_PART.split(stem)
    if last and re.search(r"\d$", base) and re.search(_LETTER, last[0]):
        found.append(_key(folder, base))
    return found


def _overlapping(clips: Sequence[Clip]) -> list[list[str]]:
    """Clips cut from overlapping frames of one source, in chains."""
    ranges = defaultdict(list)
    for clip in clips:
        if match := _FRAMES.match(_text(clip.metadata.get("source"))):
            thing, first, last = match.groups()
            ranges[thing].append((int(first), int(last or first), clip.file_name))
    chains = []
    for cuts in ranges.values():
        end = -1
        for first, last, name in sorted(cuts):
            if first > end:
                chains.append([])
            chains[-1].append(name)
            end = max(end, last)
    return chains


def held_out_groups(groups: Mapping[str, str], share: float) -> set[str]:
    """The groups for validation: those whose hash, as a number from 0 to 1, is below `share`.

    A group keeps its side when clips are added or removed. For the sake of small folders, the group
    with the smallest hash is held out in any case, the one with the largest never is, and neither
    is one that holds more than half of the clips.

    Args:
      groups: the group of every clip.
      share: the wanted share of the clips, 0 <= share < 1; 0 holds nothing out.
    """
    sizes = defaultdict(int)
    for group in groups.values():
        sizes[group] += 1
    order = sorted(sizes, key=_hash)
    fitting = [group for group in order[:-1] if sizes[group] <= len(groups) / 2]
    if not fitting or share == 0:
        return set()
    return {fitting[0], *(group for group in fitting if _hash(group) < share)}


def _hash(group: str) -> float:
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
