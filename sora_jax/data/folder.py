"""A folder of clips becomes a TFDS dataset in ArrayRecord, which `clips` reads.

python -m sora_jax.data.folder --clips=FOLDER --output=FOLDER [--name=NAME] [--held_out=SHARE]
    [--max_megabytes=N] [--overwrite]

Takes videos (mp4 mkv mov webm avi gif) and images (png jpg jpeg webp) in any depth, with captions
as `captions` describes and a split `validation` as `splits` describes. A record keeps the encoded
bytes: `video`, `frames`, `fps`, `duration` (seconds), `height` and `width` (as displayed),
`captions` (`short` and `detailed`, empty where there is none), `file_name`, `group` and `metadata`
(the other columns of the clip's metadata row, as JSON). Beside the records are index.jsonl, a line
a record in their order, and report.json, which says what was skipped, noted and left unused.

`tfds.builder_from_directory(FOLDER).as_data_source(SPLIT)` reads it too. TensorFlow is not needed.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from sora_jax import command
from sora_jax.data.captions import SUFFIXES, Report, find_clips
from sora_jax.data.decodable import Decodable, check_clips
from sora_jax.data.records import write
from sora_jax.data.splits import group_clips, held_out_groups

_LARGEST_MEGABYTES = 2000  # a record is a protocol buffer, and these end at 2 GiB
_PRINTED = 20  # lines of each list of the report that are printed too


def build(
    clips: str | Path,
    output: str | Path,
    *,
    name: str = "clips",
    held_out: float = 0.05,
    max_megabytes: int = 1024,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the clips of a folder as a dataset, which appears whole or not at all.

    Args:
      clips: the folder, searched in depth and in sorted order.
      output: the folder of the dataset.
      name: the dataset's name for TFDS, in snake_case.
      held_out: the share of the clips for the split `validation`; 0 makes none.
      max_megabytes: larger files are skipped.
      overwrite: replaces the dataset that `output` is.

    Returns:
      The content of report.json.

    Raises:
      ValueError, OSError: arguments that cannot work, or a folder without a usable clip.
    """
    clips, output = Path(clips), Path(output).resolve()
    _check_arguments(clips, output, name, held_out, max_megabytes, overwrite)
    report = Report()
    found = find_clips(clips, report)
    usable = check_clips(found, max_megabytes, report)
    if not usable:
        _print_report(report)
        raise ValueError(
            f"no usable clip in {clips} ({len(report.skipped)} skipped): give --clips a folder "
            f"with files that decode ({' '.join(SUFFIXES)})"
        )
    report.notes += [(c.clip.file_name, "no caption") for c in usable if not c.clip.captions]
    groups = group_clips([c.clip for c in usable], {c.clip.file_name: c.digest for c in usable})
    held = held_out_groups(groups, held_out)
    splits = {"train": [], "validation": []}
    for each in usable:
        splits["validation" if groups[each.clip.file_name] in held else "train"].append(each)
    if not held:
        del splits["validation"]
        if held_out:
            report.notes.append((".", "nothing is held out: the clips are related (see `group`)"))
    content = {
        "clips": str(clips.resolve()),
        "name": name,
        "splits": {split: _totals(chosen) for split, chosen in splits.items()},
        "groups": len(set(groups.values())),
        **{
            part: [{"file": file, "reason": reason} for file, reason in entries]
            for part, entries in vars(report).items()
        },
    }
    write(output, name, splits, groups, content)
    _print_report(report)
    return content


def _check_arguments(
    clips: Path, output: Path, name: str, held_out: float, max_megabytes: int, overwrite: bool
) -> None:
    if not clips.is_dir():
        raise FileNotFoundError(f"no folder of clips at {clips}: give --clips an existing folder")
    if output.is_relative_to(clips.resolve()) or clips.resolve().is_relative_to(output):
        raise ValueError(f"--output={output} and --clips={clips} overlap: write the dataset apart")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"--name={name!r}: lower-case letters, digits and _, a letter first")
    if not 0 <= held_out < 1:
        raise ValueError(f"--held_out={held_out}: a share of the clips, at least 0 and less than 1")
    if not 1 <= max_megabytes <= _LARGEST_MEGABYTES:
        raise ValueError(
            f"--max_megabytes={max_megabytes}: at least 1 and at most {_LARGEST_MEGABYTES}, the "
            "largest record; cut longer videos into clips"
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists: add --overwrite to replace it, or rename one")
    if not (output / "dataset_info.json").is_file():
        raise FileExistsError(f"{output} is no dataset, so it is not replaced: name another folder")


def _totals(chosen: Sequence[Decodable]) -> dict[str, float]:
    return {
        "clips": len(chosen),
        "images": sum(each.info.is_image for each in chosen),
        "frames": sum(each.info.frames for each in chosen),
        "seconds": round(sum(each.info.duration for each in chosen if not each.info.is_image), 1),
        "megabytes": round(sum(each.size for each in chosen) / 1e6, 1),
        "captioned": sum(bool(each.clip.captions) for each in chosen),
    }


def _print_report(report: Report) -> None:
    for part, entries in vars(report).items():
        if entries:
            print(f"{part} ({len(entries)}):")
        for file, reason in entries[:_PRINTED]:
            print(f"  {_printable(file)}: {_printable(reason)}")
        if len(entries) > _PRINTED:
            print(f"  and {len(entries) - _PRINTED} more")


def _printable(text: str) -> str:
    """The text with escapes for what a terminal would obey or could not show."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text.encode(encoding, errors="backslashreplace").decode(encoding)


def main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # TFDS announces every step
    if len(argv) > 1:
        command.fail(f"{argv[1]!r} belongs to no flag")
    names = ("clips", "output", "name", "held_out", "max_megabytes", "overwrite")
    try:
        report = build(**{name: flags.FLAGS[name].value for name in names})
    except (OSError, ValueError) as error:
        command.fail(error)
    for split, totals in report["splits"].items():
        print(f"{split}: " + ", ".join(f"{value} {name}" for name, value in totals.items()))


def _define_flags() -> None:
    flags.DEFINE_string("clips", None, "Folder of videos, images and captions.", required=True)
    flags.DEFINE_string("output", None, "Folder of the dataset.", required=True)
    flags.DEFINE_string("name", "clips", "Name of the dataset.")
    flags.DEFINE_float("held_out", 0.05, "Share of the clips for the split `validation`.")
    flags.DEFINE_integer("max_megabytes", 1024, "Skip files larger than this, in MiB.")
    flags.DEFINE_bool("overwrite", False, "Replace the dataset at --output.")


if __name__ == "__main__":
    _define_flags()  # not on import: other commands have flags of the same names
    command.run(main)
