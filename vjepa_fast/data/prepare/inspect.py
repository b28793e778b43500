"""Inspects one video file: demuxes the whole file and decodes a few frames.

Headers are not trusted: WebM has no frame count, and a truncated file keeps its header.
"""

from __future__ import annotations

import os
from codecs import getincrementaldecoder
from dataclasses import replace

import av
import numpy as np

from vjepa_fast.data.decode.color import is_full_range, manifest_range, matrix_of
from vjepa_fast.data.decode.rotation import is_mirrored_photograph, rotation_of
from vjepa_fast.data.ffmpeg import BadVideo, is_cover, open_video, video_stream
from vjepa_fast.data.frames.addressing import find_addressing
from vjepa_fast.data.frames.packets import Packets, read_packets
from vjepa_fast.data.manifest.entry import ManifestEntry, Seek
from vjepa_fast.data.manifest.location import file_of, source_url
from vjepa_fast.data.prepare.listing.endings import is_whole, missing_bytes
from vjepa_fast.data.prepare.listing.signatures import is_animated_gif, is_animated_webp

_ROUNDING = 0.001  # seconds: WebM's time stamps are whole milliseconds
_STILL_FORMATS = {"image2", "jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe"}
# FFmpeg's codecs for images -> the manifest's. ("mjpeg" is a video's.)
_STILL_CODECS = {"mjpeg": "jpeg", "png": "png", "webp": "webp", "bmp": "bmp", "gif": "gif"}
_STILL_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"BM")
_CONTAINER_MAGIC = (b"\x1aE\xdf\xa3", b"RIFF", b"OggS", b"FLV", b"\x30\x26\xb2\x75")


def probe_video(
    path: str | os.PathLike,
    min_frames: int = 2,
    member: tuple[int, int] | None = None,
    deep: bool = False,
) -> ManifestEntry:
    """Demux a video file and decode some of it (`find_addressing`).

    Args:
        path: of the file; of a member of a tar archive `archive.tar::member`.
        min_frames: fewer frames are an error, except in an image. An image (JPEG, PNG, WebP, BMP,
            a GIF of one picture) is a video of one frame without a frame rate (fps 0).
        member: (offset, size) in bytes of a member of a tar archive.
        deep: decode every frame, and reject a video in which one is corrupt.

    Returns:
        The manifest entry, without labels; its path is absolute.

    Raises:
        BadVideo: the file is unreadable, empty, text, audio only, truncated, damaged, too short,
            mirrored, rotated by other than a multiple of 90 degrees, or changes its picture size.
    """
    path = os.path.abspath(path)
    try:
        with open(file_of(path), "rb") as file:
            status = os.fstat(file.fileno())
            offset, size = member or (None, status.st_size)
            file.seek(offset or 0)
            head = file.read(min(1024, size))
            file.seek(offset or 0)
            one_picture = head.startswith(b"GIF8") and not is_animated_gif(file)
            whole = is_whole(file, offset or 0, size)
    except OSError as error:
        raise BadVideo(f"unreadable ({error.strerror})") from None
    if not head:
        raise BadVideo("empty (0 bytes)")
    if _is_text(head):
        raise BadVideo("a text file, not a video")
    if is_animated_webp(head):
        raise BadVideo("an animated WebP, which FFmpeg does not decode; convert it")
    if missing := missing_bytes(head, size):
        raise BadVideo(f"truncated ({size} of {size + missing} bytes)")
    try:
        url = source_url(path, offset, size)
        with open_video(url) as container:
            still = one_picture or container.format.name in _STILL_FORMATS
            entry = _inspect_still(container, path, head) if still else None
        entry = entry or _inspect(path, url, deep, whole)
    except (av.error.FFmpegError, EOFError) as error:
        known = head.startswith(_CONTAINER_MAGIC + _STILL_MAGIC) or head[4:8] == b"ftyp"
        what = "truncated or damaged" if known else "not a video"
        raise BadVideo(f"{what} (FFmpeg: {error.strerror})") from None
    except BadVideo:
        raise
    except Exception as error:  # one odd file must not end a scan
        raise BadVideo(f"not understood ({type(error).__name__}: {error})") from error
    if entry.frames < min_frames and not still:
        plural = "" if entry.frames == 1 else "s"
        raise BadVideo(f"only {entry.frames} frame{plural}, at least {min_frames} are needed")
    return replace(entry, size_bytes=size, mtime_ns=status.st_mtime_ns, offset=offset)


def _is_text(head: bytes) -> bool:
    try:
        text = getincrementaldecoder("utf-8")().decode(head)  # the last character may be truncated
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _inspect(path: str, url: str, deep: bool, whole: bool) -> ManifestEntry:
    index, several, packets = _read_video_packets(url, whole)
    try:
        found = find_addressing(url, index, packets, deep)
    except av.error.FFmpegError as error:
        raise BadVideo(f"damaged (decoding fails: {error.strerror})") from None
    frame = found.first
    width, height = frame.width, frame.height
    if width < 1 or height < 1:
        raise BadVideo("frames without a size")
    rotation = checked_rotation(frame)
    if rotation in (90, 270):
        width, height = height, width
    fps, duration, variable = _timing(found.times, found.frames, packets.fps)
    return ManifestEntry(
        path=path,
        frames=found.frames,
        fps=round(fps, 6),
        width=width,
        height=height,
        codec=packets.codec,
        size_bytes=0,
        mtime_ns=0,
        duration=round(duration, 6),
        gop=packets.gop,
        vfr=variable,
        rotation=rotation,
        stream=index if several else None,
        seek=found.seek,
        matrix=matrix_of(frame, packets.matrix),
        full_range=manifest_range(frame, packets.codec, url, index),
        longest_frame=_longest_frame(found.times),
    )


def _longest_frame(times: np.ndarray | None) -> float | None:
    if times is None or len(times) < 2:
        return None
    return round(float(np.diff(times).max()), 6)


def _read_video_packets(url: str, whole: bool) -> tuple[int, bool, Packets]:
    """The stream that is the video, whether there are several, and its packets."""
    index: int | None = None
    while True:
        with open_video(url) as container:
            stream = video_stream(container, index)
            if stream is None:
                raise BadVideo("audio only" if container.streams.audio else "no video stream")
            packets = read_packets(container, stream)
            others = [s.index for s in container.streams.video if not is_cover(s)]
            longest = max(others, key=lambda other: packets.of_stream.get(other, 0))
            # A still picture may come before the film, as a stream of its own.
            if index is None and packets.total < 2 <= packets.of_stream.get(longest, 0):
                index = longest
                continue
            if packets.corrupt:
                raise BadVideo(f"truncated or damaged ({packets.corrupt} corrupt packets)")
            if not whole:
                _check_length(container, stream, packets)
            return stream.index, len(container.streams.video) > 1, packets


def _inspect_still(container: av.container.InputContainer, path: str, head: bytes) -> ManifestEntry:
    stream = video_stream(container)
    codec = _STILL_CODECS.get(stream.codec_context.name)
    if codec is None:
        raise BadVideo(f"an image of another kind ({stream.codec_context.name})")
    stream.codec_context.options = {"err_detect": "explode"}
    frame = next(container.decode(stream), None)
    if frame is None or frame.is_corrupt:
        raise BadVideo("damaged (the image cannot be decoded)")
    rotation = checked_rotation(frame, mirrored=is_mirrored_photograph(head))
    turned = rotation in (90, 270)
    return ManifestEntry(
        path=path,
        frames=1,
        fps=0.0,
        width=frame.height if turned else frame.width,
        height=frame.width if turned else frame.height,
        codec=codec,
        size_bytes=0,
        mtime_ns=0,
        gop=1,
        vfr=False,
        rotation=rotation,
        seek=Seek.NEVER,
        matrix=matrix_of(frame),
        full_range=is_full_range(frame),
    )


def _timing(times: np.ndarray | None, frames: int, fps: float) -> tuple[float, float, bool]:
    """The rate in frames per second, the duration in seconds, and whether the rate is variable.

    The container's rate `fps` is kept unless it puts the last frame more than half a frame off its
    time stamp.
    """
    if times is None or times[-1] <= 0:
        return fps, frames / fps if fps else 0.0, False
    if not abs(times[-1] * fps - (frames - 1)) <= 0.5:
        fps = (frames - 1) / float(times[-1])
    off = np.abs(times * fps - np.arange(frames)).max()
    return fps, float(times[-1]) + 1 / fps, bool(off > 0.5 + _ROUNDING * fps)


def _check_length(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: Packets,
) -> None:
    # The frame count of an MP4 includes frames that an edit list removes; its duration does not.
    total = packets.total
    if container.format.name == "avi":  # it also counts empty chunks, which repeat a frame
        total = max(total, packets.last_dts + packets.step)
    if "mp4" not in container.format.name and stream.frames > total:
        raise BadVideo(f"truncated ({total} of {stream.frames} frames)")
    if container.duration is None:
        return
    duration = container.duration / av.time_base
    start = (container.start_time or 0) / av.time_base
    end = max(packets.end, packets.end - start)
    # Rounding, audio padding, variable frame rates. A file may lack this much at its end.
    slack = max(0.1, 0.05 * duration, 2 / packets.fps if packets.fps else 0)
    if end < duration - slack:
        raise BadVideo(f"truncated (ends at {end:.2f} s of {duration:.2f} s)")


def checked_rotation(frame: av.VideoFrame, mirrored: bool = False) -> int:
    """The rotation of a frame, 0, 90, 180 or 270. Raises BadVideo for any other orientation."""
    rotation = rotation_of(frame)
    if rotation is None or mirrored:
        raise BadVideo("to be shown mirrored, or rotated by other than a multiple of 90 degrees")
    return rotation
