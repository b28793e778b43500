"""Files with several video streams: index, both loaders and copies show the same one."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.data.loading import CPU, DECODERS, Fixed
from tests.helpers import videos
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.transcode import transcode_manifest

FRAMES = 60


@dataclass(frozen=True)
class Track:
    """A stream of numbered pictures; the film shows numbers from 0, others from 128 on."""

    codec: str = "vp9"
    frames: int = FRAMES
    first: int = 0
    disposition: int = 0


OTHER = Track(first=128)
COVER = Track("mjpeg", 1, 128, int(Disposition.attached_pic))
STILL = Track("mjpeg", 1, 128)
CASES = {  # extension, tracks, place of the film
    "the first": ("webm", [Track(), OTHER], 0),
    "the default one": ("mkv", [OTHER, Track(disposition=int(Disposition.default))], 1),
    "beside a cover": ("mp4", [COVER, Track("h264")], 0),  # the muxer puts covers at the end
    "after a still": ("mp4", [STILL, Track("h264")], 1),
    "after a still in MKV": ("mkv", [STILL, Track("h264")], 1),
}


def write_tracks(path: Path, tracks: list[Track]) -> Path:
    """A file with these streams, 25 frames a second, a key frame every 12."""
    with av.open(str(path), "w") as container:
        streams = []
        for track in tracks:
            encoder, _, pixels = videos.CODECS[track.codec]
            stream = container.add_stream(encoder, 25, options=videos.FAST.get(encoder, {}))
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            stream.codec_context.gop_size = 12
            stream.disposition = Disposition(track.disposition)
            streams.append(stream)
        packets = []
        for track, stream in zip(tracks, streams, strict=True):
            for i in range(track.frames):
                picture = videos.numbered(track.first + i)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            container.mux(packet)
    return path


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """The manifest of a file, and the film's place in the file."""
    extension, tracks, film = CASES[request.param]
    entry = probe_video(write_tracks(tmp_path / f"video.{extension}", tracks))
    write_manifest(tmp_path / "m.csv", [entry])
    return tmp_path / "m.csv", film


def shown(manifest: Path, backend: str, first: int) -> list[int]:
    planner = Fixed(manifest, range(first, first + 4))
    decoder = DECODERS[backend](planner.entries, 48, CPU, 1, 60.0)
    try:
        plans = planner.plan([0])
        video, failures = decoder.collect(plans, decoder.submit(plans))
    finally:
        decoder.close()
    assert failures == {}
    return videos.read_numbers(np.asarray(video[0]))


def test_the_film_is_shown_by_both_loaders(case):
    manifest, film = case
    (entry,) = read_manifest(manifest)
    assert (entry.frames, entry.stream) == (FRAMES, film)
    for first in (0, 40):
        for backend in DECODERS:
            assert shown(manifest, backend, first) == list(range(first, first + 4)), backend


def test_the_film_is_copied(case, tmp_path):
    manifest, _ = case
    copies, rejected = transcode_manifest(manifest, tmp_path / "copies", workers=1)
    assert rejected == []
    (entry,) = read_manifest(copies)
    assert (entry.frames, entry.stream) == (FRAMES, None)
    assert shown(copies, "pyav", 40) == [40, 41, 42, 43]
