"""A part cut out of a video decodes to the same frames as the whole video, or is not cut out."""

import io
import tarfile
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.helpers import videos
from vjepa_fast.data.decode.cut_clip import cut_clip
from vjepa_fast.data.ffmpeg import open_video
from vjepa_fast.data.prepare.inspect import probe_video

FRAMES, GOP = 90, 20
NO_LIMIT = 2**30
ULTRAFAST = {"preset": "ultrafast"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=0:bframes=3"}
CUT = {  # a codec, a container and how it is encoded
    "vp9 webm": ("vp9", "webm", None),
    "vp9 mp4": ("vp9", "mp4", None),
    "vp8 hidden frames": ("vp8", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "h264 mp4": ("h264", "mp4", ULTRAFAST),
    "h264 reordered mp4": ("h264", "mp4", ULTRAFAST | {"bf": "3"}),
    "h264 reordered mkv": ("h264", "mkv", ULTRAFAST | {"bf": "3"}),
    "h264 reordered mov": ("h264", "mov", ULTRAFAST | {"bf": "2"}),
    "hevc reordered mp4": ("hevc", "mp4", X265),
    "hevc reordered mkv": ("hevc", "mkv", X265),
    "av1 mp4": ("av1", "mp4", None),
    "av1 mkv": ("av1", "mkv", None),
    "mpeg4 mov": ("mpeg4", "mov", {"bf": "0"}),
}
OPEN = ULTRAFAST | {"bf": "3", "x264-params": "open-gop=1"}
REFRESH = ULTRAFAST | {"x264-params": "intra-refresh=1"}
UNCUT = {
    "open mp4": ("h264", "mp4", OPEN),
    "open mkv": ("h264", "mkv", OPEN),
    "refreshed bit by bit": ("h264", "mp4", REFRESH),
    "open mpeg4": ("mpeg4", "mov", {"bf": "2"}),
    "ts": ("h264", "ts", ULTRAFAST),
    "avi": ("mjpeg", "avi", None),
}


def write(folder, kind):
    codec, extension, options = kind
    pictures = (videos.numbered(i) for i in range(FRAMES))
    return videos.write_video(folder / f"video.{extension}", pictures, codec, GOP, options)


def decode(file):
    with open_video(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module", params=CUT)
def video(request, tmp_path_factory):
    """The entry of a video and its frames, all decoded from the start."""
    path = write(tmp_path_factory.mktemp("part"), CUT[request.param])
    return probe_video(path), decode(str(path))


def shown(part):
    return decode(io.BytesIO(part.content))[part.frames]


def test_a_part_shows_the_frames_of_the_whole(video):
    entry, whole = video
    assert entry.frames == FRAMES
    for first in (0, 19, 20, 57, 60, 74):
        wanted = np.array([first, first + 1, first + 4, first + 4, first + 15])
        part = cut_clip(entry, wanted, NO_LIMIT)
        assert part.content.dtype == np.uint8
        assert np.array_equal(shown(part), whole[wanted]), first


def test_what_comes_before_and_after_stays_out(video):
    entry, _ = video
    for first in (0, 45, 70):
        part = cut_clip(entry, np.arange(first, first + 10), NO_LIMIT)
        assert part.frames[0] < max(entry.gop, GOP)
        # What is reordered at the end comes along.
        assert len(decode(io.BytesIO(part.content))) <= part.frames[-1] + 1 + 4
        assert len(part.content) < entry.size_bytes * 2 / 3


@pytest.mark.parametrize("kind", UNCUT)
def test_parts_that_build_on_others_or_cannot_be_numbered_are_rejected(tmp_path, kind):
    entry = probe_video(write(tmp_path, UNCUT[kind]))
    parts = [cut_clip(entry, np.arange(i, i + 8), NO_LIMIT) for i in range(GOP, 80, 13)]
    assert not any(parts)


def test_no_part_is_larger_than_the_limit(tmp_path):
    entry, wanted = probe_video(write(tmp_path, CUT["vp9 mp4"])), np.arange(45, 50)
    with open_video(io.BytesIO(cut_clip(entry, wanted, NO_LIMIT).content)) as container:
        size = sum(packet.size for packet in container.demux())
    assert numbers(entry, 45, size) == [45, 47, 49]
    assert numbers(entry, 45, size - 1) is None


def write_stamped(path, stamps, codec="vp9"):
    """Numbered frames at these time stamps, in thousandths of a second."""
    encoder = videos.CODECS[codec][0]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=videos.FAST[encoder])
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = GOP
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(videos.numbered(i), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(entry, first, limit=NO_LIMIT):
    part = cut_clip(entry, np.arange(first, first + 6, 2), limit)
    return part and videos.read_numbers(shown(part))


@pytest.mark.parametrize("rate", [24000 / 1001, 25, 30000 / 1001, 59.94])
def test_rounded_time_stamps_that_begin_late_count_right(tmp_path, rate):
    stamps = [5000 + round(1000 * i / rate) for i in range(FRAMES)]
    entry = probe_video(write_stamped(tmp_path / "a.webm", stamps))
    assert entry.vfr is False
    for first in range(0, FRAMES - 8, 17):
        assert numbers(entry, first) == [first, first + 2, first + 4]


def test_time_stamps_at_a_variable_rate_are_not_counted_by(tmp_path):
    stamps = [40 * i + 400 * (i > 40) for i in range(FRAMES)]
    path = write_stamped(tmp_path / "a.webm", stamps)
    entry = probe_video(path)
    assert entry.vfr is True and numbers(entry, 60) is None
    assert numbers(replace(entry, vfr=None), 60) is None  # of an older manifest
    # Nor are time stamps that fit two positions.
    assert numbers(replace(entry, vfr=False, fps=25.0), 30) == [30, 32, 34]
    shaky = [40 * i + 19 * (i % 40 > 19) for i in range(FRAMES)]
    entry = probe_video(write_stamped(tmp_path / "b.webm", shaky))
    assert entry.vfr is False
    for first in range(0, FRAMES - 8, 17):
        assert numbers(entry, first) in (None, [first, first + 2, first + 4])


def test_mp4_lists_its_frames_whatever_their_rate(tmp_path):
    stamps = [40 * i + 400 * (i > 40) for i in range(FRAMES)]
    entry = probe_video(write_stamped(tmp_path / "a.mp4", stamps))
    assert entry.vfr is True
    for first in range(0, FRAMES - 8, 17):
        assert numbers(entry, first) == [first, first + 2, first + 4]
    # A manifest that counts otherwise knows of an edit list, or of another file.
    assert numbers(replace(entry, frames=FRAMES - 1), 30) is None


def test_sound_is_left_out(tmp_path):
    path = tmp_path / "loud.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=ULTRAFAST)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = GOP
        audio = container.add_stream("pcm_s16le", rate=48000, layout="stereo")
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(videos.numbered(i), format="rgb24")
            container.mux(stream.encode(frame))
            silence = np.zeros((1, 2 * 1920), np.int16)
            sound = av.AudioFrame.from_ndarray(silence, "s16", "stereo")
            sound.rate, sound.pts = 48000, 1920 * i
            container.mux(audio.encode(sound))
        container.mux([*stream.encode(None), *audio.encode(None)])
    entry = probe_video(path)
    part = cut_clip(entry, np.arange(60, 68), NO_LIMIT)
    assert videos.read_numbers(shown(part)) == list(range(60, 68))
    assert len(part.content) < 30 * 1920 * 4  # the sound of its frames alone has more


def test_a_part_of_a_member_of_an_archive(tmp_path):
    path = write(tmp_path, CUT["vp9 webm"])
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(__file__, "text.py")
        tar.add(path, "video.webm")
    with tarfile.open(tmp_path / "a.tar") as tar:
        offset = tar.getmember("video.webm").offset_data
    archived = f"{tmp_path / 'a.tar'}::video.webm"
    entry = probe_video(archived, member=(offset, path.stat().st_size))
    assert numbers(entry, 60) == [60, 62, 64]


@pytest.mark.parametrize("kind", ["vp9 webm", "h264 reordered mp4"])
def test_damage_gives_no_part_or_the_right_frames(tmp_path, kind):
    """Damage to what frames look like is the decoder's; to where they are, it must not mislead."""
    path = write(tmp_path, CUT[kind])
    entry, data = probe_video(path), path.read_bytes()
    uncut = 0
    for number in range(40):
        random = np.random.default_rng(number)
        spoilt = bytearray(data)
        for offset in random.integers(0, len(data), 8):
            spoilt[offset] ^= 1 << random.integers(8)
        end = len(data) if number % 3 else random.integers(len(data) // 2, len(data))
        path.write_bytes(spoilt[:end])
        part = cut_clip(entry, np.arange(60, 68), NO_LIMIT)
        if part is None:
            uncut += 1
            continue
        assert 0 <= part.frames[0] < 60 and np.ptp(part.frames) == 7
    assert 0 < uncut < 40
    path.write_bytes(b"")
    assert cut_clip(entry, np.arange(60, 68), NO_LIMIT) is None
    path.unlink()
    assert cut_clip(entry, np.arange(60, 68), NO_LIMIT) is None
