"""Pictures of video files: sizes, colours, upright, transparency."""

import fractions
import io
import struct

import av
import numpy as np
import pytest
from video_samples import (
    COLORS,
    CORNERS,
    difference,
    flat,
    jpeg,
    make,
    numbered,
)

from sora_jax import video_io


def test_shrinking_averages_areas():
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    source = make(picture[None], "image2pipe", "png", "rgb24")
    small = video_io.decode(source, size=(12, 16))[0]
    assert difference(small, picture.reshape(12, 4, 16, 4, 3).mean((1, 3))) <= 1


def test_growing_keeps_a_ramp_straight():
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None], (16, 24, 3))
    source = make(ramp[None], "image2pipe", "png", "rgb24")
    large = video_io.decode(source, size=(64, 96))[0, 32, 12:-12, 0]
    assert (
        difference(large, np.interp(np.arange(12, 84), 4 * np.arange(24) + 1.5, ramp[0, :, 0])) <= 2
    )


def test_the_picture_covers_the_size_and_the_crop_says_which_part():
    rows = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8)[:, None, None], (48, 64, 3))
    columns = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[:, None], (48, 64, 3))
    for at in (0.0, 0.25, 1.0):
        wide = video_io.decode(
            make(rows[None], "image2pipe", "png", "rgb24"), size=(24, 64), crop=(at, 0.7)
        )[0]
        assert np.array_equal(wide, rows[round(24 * at) :][:24])
        tall = video_io.decode(
            make(columns[None], "image2pipe", "png", "rgb24"), size=(48, 24), crop=(0.7, at)
        )[0]
        assert np.array_equal(tall, columns[:, round(40 * at) :][:, :24])
    halved = video_io.decode(make(rows[None], "image2pipe", "png", "rgb24"), size=(24, 24))
    assert halved.shape == (1, 24, 24, 3)


@pytest.mark.parametrize("matrix", [1, 5, 9], ids=["BT.709", "BT.601", "BT.2020"])
@pytest.mark.parametrize("full", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_colors_follow_the_stated_matrix_and_range(matrix, full, pixels):
    for color in COLORS:
        options = {"crf": "1"}
        source = make(
            flat(color),
            "mp4",
            "libx264",
            pixels,
            options=options,
            colorspace=matrix,
            color_range=full,
        )
        assert difference(video_io.decode(source), color) <= 3
        assert difference(video_io.decode(source, size=(20, 20)), color) <= 3


@pytest.mark.parametrize(("height", "matrix"), [(240, 5), (720, 1)])
def test_unstated_matrix_goes_by_size(height, matrix):
    frames = np.broadcast_to(np.uint8((200, 30, 60)), (1, height, 320, 3))
    plain = av.VideoFrame.from_ndarray(frames[0]).reformat(format="yuv420p", dst_colorspace=matrix)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=1, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = height, 320, "yuv420p"
        plain.colorspace, plain.pts = 2, 0
        output.mux(stream.encode(plain))
        output.mux(stream.encode(None))
    assert difference(video_io.decode(file.getvalue()), (200, 30, 60)) <= 3


def test_grey_keeps_its_levels():
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[:, None], (1, 48, 64, 3))
    png = make(ramp, "image2pipe", "png", "gray")
    assert difference(video_io.decode(png), ramp) == 0
    limited = np.uint8(np.rint(16 + ramp * (219 / 255)))
    video = make(limited, "matroska", "ffv1", "gray", color_range=1)
    assert difference(video_io.decode(video), ramp) <= 1


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_and_mirrored_video_is_shown_upright(degrees, mirror):
    source = make(
        CORNERS.repeat(30, 0),
        "mp4",
        "libx264",
        "yuv444p",
        options={"crf": "1", "g": "5"},
        setup=lambda stream: stream.set_display_rotation(degrees, hflip=mirror),
    )
    upright = np.rot90(CORNERS[0], degrees // 90)
    upright = upright[:, ::-1] if mirror else upright
    info = video_io.probe(source)
    assert (info.height, info.width) == upright.shape[:2]
    shown = video_io.decode(source, start=0.5, frames=1)[0]  # also after a seek
    assert difference(shown, upright) <= 4
    right = video_io.decode(source, frames=1, size=(16, 16), crop=(1.0, 1.0))[0]
    assert difference(right[8, 8], upright[-upright.shape[0] // 4, -upright.shape[1] // 4]) <= 4


@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_photographs_are_turned_as_exif_says(orientation, quarters):
    tag = struct.pack(">HHIHHI", 0x112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + tag
    plain = jpeg(CORNERS)
    photo = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    upright = np.rot90(CORNERS[0], quarters)
    assert difference(video_io.decode(photo)[0], upright) <= 4
    info = video_io.probe(photo)
    assert (info.height, info.width, info.is_image, info.frames) == (*upright.shape[:2], True, 1)


def test_pixels_are_made_square():
    def anamorphic(stream):
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(3, 2)

    source = make(numbered(3), "mp4", "libx264", "yuv420p", setup=anamorphic)
    assert (video_io.probe(source).height, video_io.probe(source).width) == (48, 96)
    assert video_io.decode(source).shape == (3, 48, 96, 3)


def test_transparency_lies_on_black_and_hidden_colors_do_not_bleed():
    picture = np.zeros((1, 48, 64, 4), np.uint8)
    picture[..., :32, :] = (200, 100, 50, 255)
    picture[..., 32:, :] = (0, 255, 0, 0)  # invisible green
    picture[:, :24, :16, 3] = 128
    source = make(picture, "image2pipe", "png", "rgba")
    shown = video_io.decode(source)[0]
    assert np.array_equal(shown[40, 10], (200, 100, 50)) and np.array_equal(
        shown[4, 4], (100, 50, 25)
    )
    assert not shown[:, 32:].any()
    edge = video_io.decode(source, size=(9, 12))[0].astype(int)
    assert (edge[..., 1] <= edge[..., 0] // 2 + 1).all()


def test_webp_animation_with_partial_transparent_frames():
    frames = np.zeros((4, 48, 64, 4), np.uint8)
    frames[:, 4:12, 4:12] = (250, 0, 0, 255)
    for index in range(1, 4):
        frames[index, 20:30, 10 * index : 10 * index + 12] = (0, 0, 200, 255)
    source = make(frames, "webp", "libwebp_anim", "bgra", options={"lossless": "1"})
    assert source.count(b"ANMF") == 4
    shown = video_io.decode(source)
    assert np.array_equal(shown, frames[..., :3])
    info = video_io.probe(source)
    assert (info.frames, info.fps, info.height, info.width) == (4, 25.0, 48, 64)
    assert np.array_equal(video_io.decode(source, start=0.08, frames=1)[0], frames[2, ..., :3])
