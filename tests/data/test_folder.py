"""A folder of clips becomes a dataset: nothing lost silently, nothing leaked, nothing half done."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sora_jax import video_io
from sora_jax.buckets import Bucket
from sora_jax.data import folder, records
from sora_jax.data.clips import ClipDataset
from tests.grey_clips import HEIGHT, WIDTH, moving, write_dataset


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """A folder with every kind of clip and of trouble, and the dataset that is made of it."""
    root = tmp_path_factory.mktemp("messy")
    clips = root / "clips"
    (clips / "deep" / "er").mkdir(parents=True)
    encoded = video_io.encode(moving(20), fps=10)
    for name in ("row.mp4", "deep/er/sidecar.MP4", "bare.mp4", "latin.mp4", "row_copy_of.mov"):
        (clips / name).write_bytes(encoded)
    video_io.write(clips / "still.png", moving(5)[4])
    video_io.write(clips / "moving.gif", moving(6), fps=10)
    (clips / "still_by_content.mp4").write_bytes((clips / "still.png").read_bytes())
    (clips / "truncated.mp4").write_bytes(encoded[: len(encoded) // 2])
    noise = np.random.default_rng(0).integers(0, 256, (9, HEIGHT, WIDTH, 3), dtype=np.uint8)
    damaged = bytearray(video_io.encode(noise, fps=10))
    end = damaged.index(b"moov") - 4  # of the pictures
    damaged[end - 2000 : end] = bytes(2000)
    (clips / "damaged_end.mp4").write_bytes(damaged)
    (clips / "empty.mp4").touch()
    (clips / "text.mp4").write_text("no video")
    with open(clips / "large.mp4", "wb") as file:
        file.truncate(3 << 20)
    os.mkfifo(clips / "pipe.mp4")
    (root / "outside.mp4").write_bytes(encoded)
    (clips / "linked.mp4").symlink_to(root / "outside.mp4")
    (clips / "nowhere.mp4").symlink_to(root / "missing.mp4")
    (clips / ".hidden.mp4").write_bytes(encoded)
    (clips / "README.md").write_text("about")

    (clips / "deep/er/sidecar.txt").write_text("Two\nlines.\n", encoding="utf-8")
    (clips / "deep/er/sidecar.short.txt").write_text("\ufeffkürzer", encoding="utf-8")
    (clips / "latin.txt").write_bytes("grün".encode("latin-1"))
    (clips / "orphan.txt").write_text("a caption of nothing")
    (clips / "row.txt").write_text("the row says otherwise")
    rows = [
        {"file_name": "row.mp4", "short": "s", "text": "d", "licence": "CC0", "source": None},
        {"file_name": "./still.png", "caption": "a still", "short": 5},
        {"file_name": "row.mp4", "short": "again"},
        {"file_name": "gone.mp4", "short": "s"},
        {"file_name": "../outside.mp4", "short": "s"},
        {"file_name": str(root / "outside.mp4"), "short": "s"},
        {"file_name": "linked.mp4", "short": "s"},
        {"short": "of no file"},
    ]
    write_lines(clips / "metadata.jsonl", rows)
    with open(clips / "metadata.jsonl", "a") as file:
        file.write("{not json\n")
    (clips / "deep" / "metadata.csv").write_text(
        'file_name,detailed,mood\ner/sidecar.MP4,,"calm, wide"\n', encoding="utf-8"
    )
    report = folder.build(clips, root / "dataset", held_out=0.2, max_megabytes=1)
    return clips, root / "dataset", report


def by_name(dataset):
    builder = tfds.builder_from_directory(dataset)
    found = {}
    for split in builder.info.splits:
        for record in builder.as_data_source(split):
            found[record["file_name"].decode()] = record
    return found


def test_records_hold_the_files_and_captions(messy):
    clips, dataset, _ = messy
    found = by_name(dataset)
    assert set(found) == {
        *("row.mp4", "deep/er/sidecar.MP4", "bare.mp4", "latin.mp4", "row_copy_of.mov"),
        *("still.png", "moving.gif", "still_by_content.mp4"),
    }
    for name, record in found.items():
        assert record["video"] == (clips / name).read_bytes()
        assert (record["height"], record["width"]) == (HEIGHT, WIDTH)
    assert {n: int(r["frames"]) for n, r in found.items() if r["frames"] != 20} == {
        **{"still.png": 1, "moving.gif": 6, "still_by_content.mp4": 1}
    }
    assert found["row.mp4"]["fps"] == 10
    captions = {
        name: {kind: text.decode() for kind, text in record["captions"].items()}
        for name, record in found.items()
    }
    assert captions["row.mp4"] == {"short": "s", "detailed": "d"}
    assert captions["deep/er/sidecar.MP4"] == {"short": "kürzer", "detailed": "Two lines."}
    assert captions["still.png"] == {"short": "", "detailed": "a still"}
    assert captions["latin.mp4"] == {"short": "", "detailed": ""}
    assert json.loads(found["row.mp4"]["metadata"]) == {"licence": "CC0", "source": None}
    assert json.loads(found["deep/er/sidecar.MP4"]["metadata"]) == {"mood": "calm, wide"}


def test_records_and_index_keep_the_order_across_shards(messy, tmp_path, monkeypatch):
    clips, _, _ = messy
    monkeypatch.setattr(records, "_SHARD_BYTES", 2 * (clips / "bare.mp4").stat().st_size)
    folder.build(clips, tmp_path / "dataset", held_out=0.0, max_megabytes=1)
    builder = tfds.builder_from_directory(tmp_path / "dataset")
    assert builder.info.splits["train"].num_shards > 1
    names = [record["file_name"].decode() for record in builder.as_data_source("train")]
    index = [json.loads(line) for line in (tmp_path / "dataset" / records.INDEX).open()]
    assert names == sorted(names) == [row["file_name"] for row in index]


@pytest.mark.parametrize(
    ("part", "file", "reason"),
    [
        ("skipped", "truncated.mp4", "truncated"),
        ("skipped", "damaged_end.mp4", "damaged"),
        ("skipped", "empty.mp4", "empty"),
        ("skipped", "text.mp4", "not a video"),
        ("skipped", "large.mp4", "--max_megabytes=1"),
        ("skipped", "pipe.mp4", "not a regular file"),
        ("skipped", "linked.mp4", "outside the folder"),
        ("skipped", "nowhere.mp4", "No such file"),
        ("notes", "bare.mp4", "no caption"),
        ("notes", "latin.mp4", "no caption"),
        ("notes", "row_copy_of.mov", "same bytes as"),
        ("notes", "still_by_content.mp4", ".mp4 by name, .png by content"),
        ("unused", ".hidden.mp4", "hidden"),
        ("unused", "README.md", "suffix"),
        ("unused", "latin.txt", "not UTF-8"),
        ("unused", "orphan.txt", "caption of no clip"),
        ("unused", "row.txt", "has a detailed caption already"),
        ("unused", "metadata.jsonl:2", "`short` is not a text"),
        ("unused", "metadata.jsonl:3", "has a metadata row already"),
        ("unused", "metadata.jsonl:4", "'gone.mp4' names no clip"),
        ("unused", "metadata.jsonl:5", "leads out of the folder"),
        ("unused", "metadata.jsonl:6", "leads out of the folder"),
        ("unused", "metadata.jsonl:8", "no `file_name`"),
        ("unused", "metadata.jsonl:9", "not JSON"),
    ],
)
def test_nothing_disappears_unreported(messy, part, file, reason):
    _, dataset, report = messy
    assert report == json.loads((dataset / "report.json").read_text())
    reasons = [entry["reason"] for entry in report[part] if entry["file"] == file]
    assert any(reason in each for each in reasons), reasons


def test_every_file_is_taken_or_reported_once(messy):
    clips, dataset, report = messy
    files = {path.relative_to(clips).as_posix() for path in clips.rglob("*") if not path.is_dir()}
    skipped = [entry["file"] for entry in report["skipped"]]
    unused = [entry["file"] for entry in report["unused"] if ":" not in entry["file"]]
    sources = {"metadata.jsonl", "deep/metadata.csv"}
    sources |= {"deep/er/sidecar.txt", "deep/er/sidecar.short.txt"}
    accounted = [*skipped, *unused, *by_name(dataset), *sources]
    assert sorted(accounted) == sorted(files)
    assert {entry["file"] for entry in report["notes"]} <= set(by_name(dataset))


def test_no_group_is_on_both_sides(messy):
    _, dataset, _ = messy
    builder = tfds.builder_from_directory(dataset)
    train, held = (
        {record["group"] for record in builder.as_data_source(split)}
        for split in ("train", "validation")
    )
    assert train and held and not train & held


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("small"))


def listing(path):
    return sorted(each.relative_to(path).as_posix() for each in path.rglob("*"))


def test_an_existing_dataset_is_replaced_only_when_asked(tmp_path, small):
    clips, output = small.parent / "clips", tmp_path / "dataset"
    folder.build(clips, output, name="first")
    with pytest.raises(FileExistsError, match="--overwrite"):
        folder.build(clips, output)
    folder.build(clips, output, name="second", overwrite=True)
    assert tfds.builder_from_directory(output).name == "second"
    assert listing(tmp_path)[0] == "dataset" and len(list(tmp_path.iterdir())) == 1


def test_what_is_no_dataset_is_never_overwritten(tmp_path, small):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is no dataset"):
        folder.build(small.parent / "clips", tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="overlap"):
        folder.build(small.parent / "clips", small.parent, overwrite=True)
    assert listing(tmp_path) == ["precious.txt"]


def stop_while_writing(monkeypatch):
    def examples(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(records._Builder, "_examples", examples)


def stop_while_moving(monkeypatch):
    def rename(source, target, rename=records.Path.rename):
        if source.name == "1.0.0":
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(records.Path, "rename", rename)


@pytest.mark.parametrize("stop", [stop_while_writing, stop_while_moving])
def test_an_interrupted_build_leaves_the_old_dataset(tmp_path, small, monkeypatch, stop):
    output = tmp_path / "dataset"
    folder.build(small.parent / "clips", output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    stop(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        folder.build(small.parent / "clips", output, overwrite=True)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, small):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written: .*File too large"):
            folder.build(small.parent / "clips", tmp_path / "dataset")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path) == []


def test_no_usable_clip_leaves_nothing(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    with pytest.raises(ValueError, match="no usable clip"):
        folder.build(clips, tmp_path / "dataset")
    (clips / "a.mp4").write_text("no video")
    with pytest.raises(ValueError, match="1 skipped"):
        folder.build(clips, tmp_path / "dataset")
    assert listing(tmp_path) == ["clips", "clips/a.mp4"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "Not Good"}, "--name='Not Good'"),
        ({"held_out": 1.0}, "--held_out=1.0"),
        ({"max_megabytes": 5000}, "--max_megabytes=5000"),
    ],
)
def test_wrong_arguments_name_the_value(tmp_path, small, wrong, message):
    with pytest.raises(ValueError, match=message):
        folder.build(small.parent / "clips", tmp_path / "dataset", **wrong)


def run(*arguments):
    command = [sys.executable, "-m", "sora_jax.data.folder", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_line(tmp_path, small):
    output = tmp_path / "dataset"
    done = run(f"--clips={tmp_path / 'missing'}", f"--output={output}")
    assert (done.returncode, done.stdout) == (1, "")
    assert run("--clips=two\nlines", f"--output={output}").stderr.count("\n") == 1
    assert done.stderr.startswith("error: no folder of clips at") and done.stderr.count("\n") == 1
    done = run(f"--clips={small.parent / 'clips'}", f"--output={output}", "--held_out=0.5")
    assert done.returncode == 0, done.stderr
    assert "train: 1 clips" in done.stdout and "validation: 1 clips" in done.stdout
    assert tfds.builder_from_directory(output).info.splits["train"].num_examples == 1


def test_all_real_clips_are_taken(real_clips, tmp_path):
    report = folder.build(real_clips, tmp_path / "dataset")
    assert report["skipped"] == report["notes"] == []
    assert [entry["file"] for entry in report["unused"]] == ["README.md"]
    stated = {
        row["file_name"]: row
        for row in map(json.loads, (real_clips / "metadata.jsonl").read_text().splitlines())
    }
    index = [json.loads(line) for line in (tmp_path / "dataset" / records.INDEX).open()]
    assert {row["file_name"] for row in index} == set(stated)
    for row in index:
        expected = stated[row["file_name"]]
        for field in ("frames", "height", "width"):
            assert row[field] == expected[field]
        assert expected["frames"] == 1 or row["fps"] == pytest.approx(expected["fps"], abs=0.01)
    assert 0.02 < sum(row["split"] == "validation" for row in index) / len(index) < 0.1
    dataset = ClipDataset(tmp_path / "dataset", "validation", fps=8)
    for number, (frames, height, width) in enumerate(dataset.shapes):
        bucket = Bucket(int(frames), min(height, 64), min(width, 64))
        clip = dataset.read(number, bucket, np.random.default_rng(number))
        assert clip["frames"].shape == (frames, bucket.height, bucket.width, 3)
        assert set(clip["captions"]) == {"short", "detailed"}
