"""Fixtures of the data tests."""

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest

from tests.helpers import videos


@pytest.fixture(scope="module")
def vp9(tmp_path_factory):
    """A manifest of five VP9 files of 20 to 100 numbered frames; key frames every 12."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [videos.write_numbered(folder, "vp9", 20 * i, f"vp9_{i}") for i in range(1, 6)]
    return videos.manifest_of(folder, paths, "vp9.csv")


@pytest.fixture
def eight_videos(tmp_path):
    """Eight VP9 videos of 24 frames; video i shows i in a column of its own."""
    paths, others = [], threading.enumerate()
    for i in range(8):
        pictures = [videos.numbered(8 * i + k % 8) for k in range(24)]
        paths.append(videos.write_video(tmp_path / f"{i}.webm", pictures, "vp9"))
    yield videos.manifest_of(tmp_path, paths)
    for path in filter(Path.is_fifo, paths):
        while any(
            thread.name.startswith("vjepa-") and thread not in others
            for thread in threading.enumerate()
        ):
            with contextlib.suppress(OSError):  # no reader at this moment
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.01)
