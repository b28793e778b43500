"""The videos of this room are odd on purpose: FFmpeg need not say so."""

import av
import pytest


@pytest.fixture(autouse=True)
def _quiet_ffmpeg():
    level = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)
    yield
    av.logging.set_level(level)
