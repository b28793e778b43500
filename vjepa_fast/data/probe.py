"""What a video file really holds, found by demuxing all of it and decoding a little.

Headers are not trusted: WebM gives no frame count at all, and a truncated file keeps the header of
the whole one.
"""

import os
from codecs import getincrementaldecoder
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av
from av.stream import Disposition
from tqdm import tqdm

from vjepa_fast.data.manifest import ManifestEntry

_CONTAINER_MAGIC = (b"\x1aE\xdf\xa3", b"RIFF", b"OggS", b"FLV", b"\x30\x26\xb2\x75")


class BadVideo(Exception):
    """A file that cannot be trained on; the message is the reason, in words for the user."""


@dataclass
class _Packets:
    """What demuxing found: frames to expect in all and from the last key frame on, and where the
    file ends.
    """

    total: int = 0
    frames: int = 0
    corrupt: int = 0
    end: float = 0.0
    last_key_pts: int | None = None
    tail_frames: int = 0


def probe_video(path: str | os.PathLike, min_frames: int = 2) -> ManifestEntry:
    """The manifest entry (without labels) of one video file; its path is made absolute.

    Demuxes the whole file, decodes the first frame and everything after the last key frame. Raises
    BadVideo with the reason for a file that is unreadable, empty, text, audio only, truncated,
    damaged or has fewer than `min_frames`.
    """
    path = os.path.abspath(path)
    try:
        status = os.stat(path)
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise BadVideo(f"unreadable ({error.strerror})") from None
    if not head:
        raise BadVideo("empty (0 bytes)")
    if _is_text(head):
        raise BadVideo("a text file, not a video")
    try:
        with av.open(path) as container:
            entry = _inspect(container, path, status)
    except (av.error.FFmpegError, EOFError) as error:
        known = head.startswith(_CONTAINER_MAGIC) or head[4:8] == b"ftyp"
        what = "truncated or damaged" if known else "not a video"
        raise BadVideo(f"{what} (FFmpeg: {error.strerror})") from None
    if entry.frames < min_frames:
        plural = "" if entry.frames == 1 else "s"
        raise BadVideo(f"only {entry.frames} frame{plural}, at least {min_frames} are needed")
    return entry


def probe_videos(
    paths: Sequence[str | os.PathLike], workers: int | None = None, progress: bool = False
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    """Probe files in `workers` threads (default: one a core): the usable entries, and (path,
    reason) for the others.

    Both lists keep the order of `paths`. FFmpeg works without the interpreter lock, so threads are
    enough.
    """

    def probe(path: str | os.PathLike) -> ManifestEntry | tuple[str, str]:
        try:
            return probe_video(path)
        except BadVideo as reason:
            return str(path), str(reason)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        bar = tqdm(
            pool.map(probe, paths), "indexing", len(paths), unit="video", disable=not progress
        )
        results = list(bar)
    good = [result for result in results if isinstance(result, ManifestEntry)]
    return good, [result for result in results if not isinstance(result, ManifestEntry)]


def video_stream(
    container: av.container.InputContainer,
) -> av.video.stream.VideoStream | None:
    """The first stream of moving pictures (a cover picture is none), set to decode in the calling
    thread.
    """
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            stream.codec_context.thread_count = (
                1  # parallel over videos: threads per video only cost start-up
            )
            return stream
    return None


def count_frame(packet: av.Packet, codec: str) -> bool:
    """Whether a packet of the video stream gives a frame when it is decoded.

    Not so: the empty one at the end, those cut away by an edit list, and VP8's alternative
    reference frames, packets of their own that are never shown (RFC 6386, section 9.1).
    """
    if packet.size == 0 or packet.is_discard:
        return False
    return codec != "vp8" or bool(bytes(packet)[0] >> 4 & 1)


def _is_text(head: bytes) -> bool:
    try:
        text = getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut in two
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _inspect(
    container: av.container.InputContainer, path: str, status: os.stat_result
) -> ManifestEntry:
    stream = video_stream(container)
    if stream is None:
        raise BadVideo("audio only" if container.streams.audio else "no video stream")
    codec = stream.codec_context.codec.canonical_name
    packets = _demux(container, stream, codec)
    if packets.corrupt:
        raise BadVideo(f"truncated or damaged ({packets.corrupt} corrupt packets)")
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    _check_length(container, stream, packets, fps)
    frames = packets.frames
    if packets.frames and _decode_ends(container, stream, packets) != packets.tail_frames:
        frames = _count_by_decoding(container, stream)
    size = stream.codec_context
    if frames and (size.width < 1 or size.height < 1):
        raise BadVideo("frames without a size")
    return ManifestEntry(
        path=path,
        frames=frames,
        fps=round(fps, 6),
        width=size.width,
        height=size.height,
        codec=codec,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _demux(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, codec: str
) -> _Packets:
    found = _Packets()
    for packet in container.demux():
        if packet.pts is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            found.end = max(found.end, end)
        if packet.stream is not stream:
            continue
        found.total += packet.size > 0
        found.corrupt += packet.is_corrupt
        if not count_frame(packet, codec):
            continue
        found.frames += 1
        if packet.is_keyframe and packet.pts is not None:
            found.last_key_pts, found.tail_frames = packet.pts, 0
        found.tail_frames += 1
    return found


def _check_length(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: _Packets,
    fps: float,
) -> None:
    # MP4 counts frames that an edit list cuts away, so its count says nothing; its duration does.
    if "mp4" not in container.format.name and stream.frames > packets.total:
        raise BadVideo(f"truncated ({packets.total} of {stream.frames} frames)")
    if container.duration is None:
        return
    duration = container.duration / av.time_base
    start = (container.start_time or 0) / av.time_base
    end = max(packets.end, packets.end - start)
    # Rounding, audio padding, variable frame rates. What a slightly cut file lacks isn't counted.
    slack = max(0.1, 0.05 * duration, 2 / fps if fps else 0)
    if end < duration - slack:
        raise BadVideo(f"truncated (ends at {end:.2f} s of {duration:.2f} s)")


def _decode_ends(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: _Packets,
) -> int:
    """Decode the first frame, then count the frames decoded from the last key frame on (-1 where
    that is unknown).
    """
    try:
        container.seek(0)
        if next(container.decode(stream), None) is None:
            raise BadVideo("damaged (no frame can be decoded)")
        if packets.last_key_pts is None:
            return -1
        container.seek(packets.last_key_pts, stream=stream)
        return sum(
            frame.pts is not None and frame.pts >= packets.last_key_pts
            for frame in container.decode(stream)
        )
    except av.error.FFmpegError as error:
        raise BadVideo(f"damaged (decoding fails: {error.strerror})") from None


def _count_by_decoding(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> int:
    try:
        container.seek(0)
        return sum(1 for _ in container.decode(stream))
    except av.error.FFmpegError as error:
        raise BadVideo(f"damaged (decoding fails: {error.strerror})") from None
