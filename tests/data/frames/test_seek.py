"""PyAV starts at a key frame near the clip, and every frame keeps its index."""

import numpy as np
import pytest

from tests.helpers import videos
from vjepa_fast.data.ffmpeg import open_video, video_stream
from vjepa_fast.data.frames import seek
from vjepa_fast.data.frames.seek import numbered_frames
from vjepa_fast.data.manifest.entry import Seek
from vjepa_fast.data.prepare.inspect import probe_video

FRAMES = 150
KINDS = {
    "plain": ("h264", "mp4", {"preset": "ultrafast"}),
    "reordered": ("h264", "mp4", {"preset": "ultrafast", "bf": "3"}),
    "open": ("h264", "mp4", {"preset": "ultrafast", "bf": "3", "x264-params": "open-gop=1"}),
    "mov": ("mpeg4", "mov", {"bf": "2"}),
    "vp9": ("vp9", "mp4", videos.FAST["libvpx-vp9"]),
    "webm": ("vp9", "webm", videos.FAST["libvpx-vp9"]),
}


@pytest.fixture(scope="module", params=KINDS)
def video(request, tmp_path_factory):
    """The kind and the file: 150 numbered frames, key frames every 20."""
    codec, extension, options = KINDS[request.param]
    path = tmp_path_factory.mktemp("seek") / f"video.{extension}"
    pictures = (videos.numbered(i) for i in range(FRAMES))
    return request.param, videos.write_video(path, pictures, codec, gop=20, options=options)


def test_every_frame_keeps_its_index(video):
    _, path = video
    entry = probe_video(path)
    assert (entry.frames, entry.seek) == (FRAMES, Seek.BY_STAMP)
    for first in range(0, FRAMES, 7):
        with open_video(str(path)) as container:
            stream = video_stream(container)
            numbered = list(numbered_frames(container, stream, first, FRAMES, Seek.BY_STAMP))
        shown = [
            (index, frame.to_ndarray(format="rgb24")) for index, frame in numbered if index >= first
        ]
        indices = [index for index, _ in shown]
        assert indices == list(range(first, FRAMES))
        assert videos.read_numbers(np.stack([picture for _, picture in shown])) == indices
        # From a key frame nearby: frames of two groups and what is reordered, at most.
        assert len(numbered) - len(shown) <= 2 * 20 + 16


def test_where_the_container_lists_its_frames_none_before_is_read(video, monkeypatch):
    kind, path = video
    counted = []
    original = seek.count_frame
    monkeypatch.setattr(seek, "count_frame", lambda *a: counted.append(a) or original(*a))
    with open_video(str(path)) as container:
        stream = video_stream(container)
        index, _ = next(numbered_frames(container, stream, 130, FRAMES, Seek.BY_STAMP))
    assert 80 <= index <= 130
    assert len(counted) >= FRAMES if kind == "webm" else len(counted) < FRAMES / 2


def test_a_list_that_counts_otherwise_is_not_believed(video):
    """Then the packets are counted; with the manifest's number of frames all is well either way."""
    _, path = video
    with open_video(str(path)) as container:
        stream = video_stream(container)
        numbered = numbered_frames(container, stream, 100, FRAMES + 1, Seek.BY_STAMP)
        found = [
            (index, videos.read_numbers(frame.to_ndarray(format="rgb24")[None])[0])
            for index, frame in numbered
        ]
    assert all(index == number for index, number in found if index >= 100)
    assert found[-1][0] == FRAMES - 1
