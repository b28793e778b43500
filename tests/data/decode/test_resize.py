"""Crops that are scaled before their colors are converted land where planned, with the colors of
crops that are converted first."""

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange

from vjepa_fast.data.decode import resize
from vjepa_fast.data.decode.color import BT601, BT709, RgbConverter
from vjepa_fast.data.decode.resize import Cropper, PixelBox
from vjepa_fast.data.ffmpeg import open_video

ROWS, COLUMNS = 120, 160  # of the stored picture
PIXELS = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuva420p"]
ANY = [*PIXELS, "yuv410p", "yuv411p", "nv12", "gray", "rgb24", "gbrp", "yuv420p16be"]
BOXES = {
    "whole": PixelBox(0, 0, ROWS, COLUMNS),
    "even": PixelBox(20, 30, 60, 80),
    "left": PixelBox(20, 31, 60, 80),
    "top": PixelBox(21, 30, 60, 80),
    "odd": PixelBox(21, 31, 61, 81),
    "last": PixelBox(ROWS - 41, COLUMNS - 51, 41, 51),
    "small": PixelBox(51, 33, 17, 16),
    "tiny": PixelBox(51, 33, 3, 2),
    "pixel": PixelBox(7, 9, 1, 1),
}


def gradient():
    """RGB that changes by one level a pixel, each channel in a direction of its own."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    return np.stack([40 + columns, 40 + rows, 200 - columns], -1).astype(np.uint8)


def as_frame(rgb, pixels, matrix=BT601):
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    frame = frame.reformat(format=pixels, dst_colorspace=matrix)
    frame.colorspace = matrix
    return frame


def cropped(frame, box, size):
    out = np.full((size, size, 3), 255, np.uint8)
    Cropper(box, size, None)(frame, out)
    return out.astype(float)


def by_way_of_rgb(frame, box, size):
    """In fp64 from the picture in RGB on."""
    rgb = RgbConverter()(frame, None)[box.top :, box.left :][: box.height, : box.width]
    video = torch.from_numpy(rgb).double().permute(2, 0, 1)[None]
    video = torch.nn.functional.interpolate(video, (size, size), mode="bilinear", antialias=True)
    return video[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [16, 56, 200])
@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("pixels", PIXELS)
def test_crops_land_where_planned(pixels, name, size):
    box = BOXES[name]
    x = box.left + (np.arange(size) + 0.5) * box.width / size - 0.5
    y = (box.top + (np.arange(size) + 0.5) * box.height / size - 0.5)[:, None]
    expected = np.stack(np.broadcast_arrays(40 + x, 40 + y, 200 - x), -1)
    # At edges there are no more pixels to interpolate. A shift by a pixel would be 1 everywhere.
    pad = int(np.ceil(2 * max(1, size / min(box.height, box.width)))) + 1
    inner = slice(pad, size - pad)
    found = cropped(as_frame(gradient(), pixels), box, size)
    error = np.abs(found - expected)[inner, inner]
    assert error.size == 0 or (error.mean() < 1 and error.max() <= 3.5)


@pytest.mark.parametrize("matrix", [BT601, BT709, 9])
@pytest.mark.parametrize("size", [16, 56, 200])
@pytest.mark.parametrize("pixels", ANY)
def test_colors_are_those_of_crops_that_are_converted_first(pixels, size, matrix):
    """In a picture whose colors change slowly and whose luma has texture."""
    rng = np.random.default_rng(0)
    texture = rng.integers(-30, 31, (ROWS // 3, COLUMNS // 4)).repeat(3, 0).repeat(4, 1)
    picture = np.clip(gradient() * 0.7 + 30 + texture[..., None], 0, 255).astype(np.uint8)
    frame = as_frame(picture, pixels, matrix)
    for name, box in BOXES.items():
        difference = np.abs(cropped(frame, box, size) - by_way_of_rgb(frame, box, size))
        assert difference.mean() < 1.5, name


def test_a_crop_that_needs_no_resizing_is_cut_out_of_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS, 3)).astype(np.uint8)
    frame = as_frame(picture, "yuv420p")
    whole = RgbConverter()(frame, None)
    assert np.array_equal(cropped(frame, PixelBox(21, 33, 32, 32), 32), whole[21:53, 33:65])


def test_full_range_is_not_taken_for_limited():
    frame = as_frame(np.full((ROWS, COLUMNS, 3), 255, np.uint8), "yuv420p")
    assert frame.planes[0].line_size and (cropped(frame, BOXES["even"], 32) >= 253).all()
    frame.color_range = ColorRange.JPEG
    assert (np.abs(cropped(frame, BOXES["even"], 32) - 235) <= 1).all()


@pytest.mark.parametrize(("number", "place"), [(0, (0, 0.5)), (1, (0.5, 0.5)), (2, (0, 0))])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le", "yuvj420p"])
def test_the_place_of_chroma_is_what_the_stream_says(tmp_path, number, place, pixels):
    """Numbers as in H.264, annex E."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        options = {"x264-params": f"chromaloc={number}"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = COLUMNS, ROWS, pixels
        container.mux(stream.encode(as_frame(gradient(), pixels)))
        container.mux(stream.encode(None))
    with open_video(str(path)) as container:
        frame = next(container.decode(video=0))
    assert resize._chroma_place(frame) == place
    before = [bytes(plane) for plane in frame.planes]
    resize._chroma_place(frame)
    assert [bytes(plane) for plane in frame.planes] == before


def test_a_change_of_the_colors_within_a_clip_is_followed():
    crop, out = Cropper(BOXES["even"], 32, None), np.empty((2, 32, 32, 3), np.uint8)
    red = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    red[..., 0] = 200
    for matrix, pixels in ((BT601, "yuv420p"), (BT709, "yuv420p"), (BT709, "yuv444p10le")):
        crop(as_frame(red, pixels, matrix), out[0])
        assert (np.abs(out[0].astype(int) - [200, 0, 0]) <= 2).all()
