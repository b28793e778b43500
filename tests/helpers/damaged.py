"""Damaged and odd video files, the same ones every time; functions that crash or hang."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.helpers import videos
from vjepa_fast.data.decode.pyav import decode_pixels
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.scan import probe_file
from vjepa_fast.data.prepare.scan_journal import ScannedFile, ScanResult

FRAMES = 40
# Pixel formats and what the encoder needs for them. (libvpx is mostly built without 10 bits.)
ODD_PIXELS = {
    "vp9": {"yuv444p": {"profile": "1"}, "yuva420p": {"auto-alt-ref": "0"}},
    "h264": {"yuv444p": {}, "yuv420p10le": {}},
}


@dataclass(frozen=True)
class Case:
    """A file, and its manifest entry from before the file was damaged.

    Attributes:
        kind: of damage or oddity.
        valid: the file is not damaged, only unusual: it must be decoded.
    """

    kind: str
    path: Path
    entry: ManifestEntry
    valid: bool = False


def crash_or_hang(file: ScannedFile) -> ScanResult:
    """Probe a file: its name tells whether the process crashes, hangs or returns a result."""
    if "crash" in os.path.basename(file.path):
        os.abort()
    if "hang" in os.path.basename(file.path):
        threading.Event().wait()
    return ScanResult(file, reason="probed")


def crash_or_probe(file: ScannedFile) -> ScanResult:
    """The same, but other files are really probed."""
    crash_or_hang(file)
    return probe_file(file)


def crash_once(file: ScannedFile) -> ScanResult:
    """Probe a file: one named "once" crashes the first process that probes it."""
    if file.path.endswith("once") and not os.path.exists(file.path):
        Path(file.path).touch()
        os.abort()
    return ScanResult(file, reason="probed")


def crash_or_decode(plan: ClipPlan, entry: ManifestEntry, crop_size: int) -> np.ndarray:
    """Decode a clip, but crash on a video whose name has "crash" in it."""
    if "crash" in os.path.basename(entry.path):
        os.abort()
    return decode_pixels(plan, entry, crop_size)


def make_cases(folder: Path, count: int) -> list[Case]:
    """`count` cases, VP9 and H.264 alternating: each odd file once, then damage drawn by number."""
    bases = {
        "webm": videos.write_numbered(folder, "vp9", FRAMES, "base"),
        "mp4": videos.write_numbered(folder, "h264", FRAMES, "base"),
    }
    pictures = [videos.numbered(i) for i in range(FRAMES)]
    bases["front.mp4"] = videos.write_video(folder / "front.mp4", pictures, "h264", faststart=True)
    entries = {name: probe_video(path) for name, path in bases.items()}
    cases = list(_odd_files(folder, bases, entries))
    kinds = list(_DAMAGE)
    for number in range(count - len(cases)):
        name = list(bases)[number % len(bases)]
        kind = kinds[number // len(bases) % len(kinds)]
        data = _DAMAGE[kind](bytearray(bases[name].read_bytes()), np.random.default_rng(number))
        path = folder / f"{number:03d}_{kind}.{name}"
        path.write_bytes(data)
        cases.append(Case(kind, path, pinned(entries[name], path)))
    return cases


def pinned(entry: ManifestEntry, path: Path) -> ManifestEntry:
    """The entry with the path, size and time of a file, which then counts as unchanged."""
    status = path.stat()
    return replace(
        entry, path=str(path), size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, labels={}
    )


def _truncated(data: bytearray, random: np.random.Generator) -> bytearray:
    return data[: random.integers(1, len(data))]


def _flipped(data: bytearray, random: np.random.Generator, first: int = 0) -> bytearray:
    for offset in random.integers(first, len(data), random.integers(1, 20)):
        data[offset] ^= 1 << random.integers(8)
    return data


def _flipped_header(data: bytearray, random: np.random.Generator) -> bytearray:
    return _flipped(data[:400], random) + data[400:]


def _flipped_end(data: bytearray, random: np.random.Generator) -> bytearray:
    return _flipped(data, random, len(data) * 2 // 3)


def _zeroed(data: bytearray, random: np.random.Generator) -> bytearray:
    first, last = sorted(random.integers(0, len(data), 2))
    data[first:last] = bytes(last - first)
    return data


def _missing(data: bytearray, random: np.random.Generator) -> bytearray:
    first = random.integers(0, len(data))
    del data[first : first + random.integers(1, 500)]
    return data


def _inserted(data: bytearray, random: np.random.Generator) -> bytearray:
    first = random.integers(0, len(data))
    data[first:first] = random.bytes(random.integers(1, 500))
    return data


def _noise(data: bytearray, random: np.random.Generator) -> bytearray:
    first = random.integers(0, len(data) // 2)
    data[first : first + len(data) // 3] = random.bytes(len(data) // 3)
    return data


_DAMAGE: dict[str, Callable[[bytearray, np.random.Generator], bytearray]] = {
    "truncated": _truncated,
    "flipped": _flipped,
    "flipped_header": _flipped_header,
    "flipped_end": _flipped_end,
    "zeroed": _zeroed,
    "missing": _missing,
    "inserted": _inserted,
    "noise": _noise,
}


def _odd_files(
    folder: Path, bases: dict[str, Path], entries: dict[str, ManifestEntry]
) -> Iterator[Case]:
    def case(kind: str, path: Path, base: str) -> Case:
        return Case(kind, path, pinned(entries[base], path))

    def valid(kind: str, path: Path) -> Case:
        return Case(kind, path, probe_video(path), valid=True)

    webm, mp4 = bases["webm"], bases["mp4"]
    for name, data, base in [
        ("wrong_extension.mp4", webm.read_bytes(), "webm"),
        ("wrong_extension.webm", mp4.read_bytes(), "mp4"),
    ]:
        (folder / name).write_bytes(data)
        yield Case("wrong_extension", folder / name, pinned(entries[base], folder / name), True)
    for base in ("webm", "mp4"):
        path = folder / f"zero_length.{base}"
        path.touch()
        yield case("zero_length", path, base)
        path = folder / f"text.{base}"
        path.write_text("no video\n" * 100)
        yield case("text", path, base)
    yield case("audio_only", videos.write_audio(folder / "audio_only.webm"), "webm")
    for codec in ("vp9", "h264"):
        base = videos.CODECS[codec][1]
        yield case("one_frame", videos.write_numbered(folder, codec, 1, "one_frame"), base)
        for pixels in ODD_PIXELS[codec]:
            yield valid(pixels, write_as(folder / f"{pixels}.{base}", codec, pixels))
        path = write_sizes(folder / f"changing_size.{base}", codec)
        yield case("changing_size", path, base)
    path = folder / "rotated.mp4"
    path.write_bytes(videos.with_matrix(mp4.read_bytes(), (0, 1, -1, 0)))
    yield valid("rotated", path)
    path = folder / "8k_header.mp4"
    path.write_bytes(huge_header(mp4.read_bytes()))
    yield case("8k_header", path, "mp4")
    path = folder / "8k_frames.webm"
    path.write_bytes(huge_frames(webm.read_bytes()))
    yield case("8k_frames", path, "webm")


def write_as(path: Path, codec: str, pixels: str) -> Path:
    """The numbered frames in another pixel format."""
    encoder = videos.CODECS[codec][0]
    with av.open(str(path), "w") as container:
        options = videos.FAST[encoder] | ODD_PIXELS[codec][pixels]
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.pix_fmt = pixels
        stream.width, stream.height = 64, 48
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(videos.numbered(i), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sizes(path: Path, codec: str) -> Path:
    """Half of the frames, then half of them twice as large, in one stream."""
    encoder = videos.CODECS[codec][0]
    options = videos.FAST[encoder] | ({"bf": "0"} if codec == "h264" else {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.pix_fmt, stream.width, stream.height = "yuv420p", 64, 48
        shown = 0
        for scale in (1, 2):
            context = av.CodecContext.create(encoder, "w")
            context.pix_fmt, context.options = "yuv420p", options
            context.width, context.height = 64 * scale, 48 * scale
            context.time_base, context.framerate = Fraction(1, 25), 25
            pictures = range(shown, shown + FRAMES // 2)
            for i in [*pictures, None]:
                frame = None
                if i is not None:
                    picture = videos.numbered(i, 48 * scale, 64 * scale)
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = i, context.time_base
                for packet in context.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
            shown += FRAMES // 2
    return path


def huge_frames(webm: bytes) -> bytes:
    """A WebM whose VP9 key frames claim 7680 x 4320 pixels (VP9 bitstream, section 6.2)."""
    start = webm.index(b"\x49\x83\x42") + 3  # the frame sync code; 4 bits later the size
    bits = int.from_bytes(webm[start : start + 5]) >> 36 << 36 | 7679 << 20 | 4319 << 4
    return webm[:start] + bits.to_bytes(5) + webm[start + 5 :]


def huge_header(mp4: bytes) -> bytes:
    """An MP4 whose sample description claims 7680 x 4320 pixels."""
    start = mp4.index(b"avc1", mp4.index(b"stsd")) + 4 + 24
    return mp4[:start] + np.array([7680, 4320], ">u2").tobytes() + mp4[start + 4 :]
