"""Inspects one video file: demuxes the whole file and decodes a few frames.

Headers are not trusted: WebM has no frame count, and a truncated file keeps its header.
"""

from __future__ import annotations

import os
from codecs import getincrementaldecoder
from dataclasses import dataclass, field, replace

import av
import numpy as np

from vjepa_fast.data.decode.color import is_full_range, manifest_range, matrix_of
from vjepa_fast.data.decode.rotation import is_mirrored_photograph, rotation_of
from vjepa_fast.data.ffmpeg import (
    BadVideo,
    count_frame,
    open_video,
    seconds_from_first,
    video_stream,
)
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.location import file_of, source_url
from vjepa_fast.data.prepare.listing.signatures import is_animated_gif, is_animated_webp

_ROUNDING = 0.001  # seconds: WebM's time stamps are whole milliseconds
_STILL_FORMATS = {"image2", "jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe"}
# FFmpeg's codecs for images -> the manifest's. ("mjpeg" is a video's.)
_STILL_CODECS = {"mjpeg": "jpeg", "png": "png", "webp": "webp", "bmp": "bmp", "gif": "gif"}
_STILL_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"BM")
_CONTAINER_MAGIC = (b"\x1aE\xdf\xa3", b"RIFF", b"OggS", b"FLV", b"\x30\x26\xb2\x75")


@dataclass
class _Packets:
    """What demuxing found in the video stream; times are in units of its time base.

    Attributes:
        total: packets that are not empty.
        frames: packets that decode to a frame.
        corrupt: packets that FFmpeg marks as corrupt.
        gop: the most frames from one key frame to the next.
        stamps: time stamps of the frames that have one.
        end: when the last packet of any stream ends, in seconds.
        last_key_pts: time stamp of the last key frame.
        tail_frames: frames from the last key frame on.
        last_dts: decoding time stamp of the last packet.
        step: the largest difference between two successive decoding time stamps.
    """

    total: int = 0
    frames: int = 0
    corrupt: int = 0
    gop: int = 0
    stamps: list[int] = field(default_factory=list)
    end: float = 0.0
    last_key_pts: int | None = None
    tail_frames: int = 0
    last_dts: int = 0
    step: int = 1


def probe_video(
    path: str | os.PathLike, min_frames: int = 2, member: tuple[int, int] | None = None
) -> ManifestEntry:
    """Demux a video file, decode its first frame and everything from its last key frame on.

    Args:
        path: of the file; of a member of a tar archive `archive.tar::member`.
        min_frames: fewer frames are an error, except in an image. An image (JPEG, PNG, WebP, BMP,
            a GIF of one picture) is a video of one frame without a frame rate (fps 0).
        member: (offset, size) in bytes of a member of a tar archive.

    Returns:
        The manifest entry, without labels; its path is absolute.

    Raises:
        BadVideo: the file is unreadable, empty, text, audio only, truncated, damaged, too short,
            mirrored, or rotated by other than a multiple of 90 degrees.
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
    except OSError as error:
        raise BadVideo(f"unreadable ({error.strerror})") from None
    if not head:
        raise BadVideo("empty (0 bytes)")
    if _is_text(head):
        raise BadVideo("a text file, not a video")
    if is_animated_webp(head):
        raise BadVideo("an animated WebP, which FFmpeg does not decode; convert it")
    try:
        with open_video(source_url(path, offset, size)) as container:
            still = one_picture or container.format.name in _STILL_FORMATS
            entry = _inspect_still(container, path, head) if still else _inspect(container, path)
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


def _inspect(container: av.container.InputContainer, path: str) -> ManifestEntry:
    stream = video_stream(container)
    if stream is None:
        raise BadVideo("audio only" if container.streams.audio else "no video stream")
    codec = stream.codec_context.codec.canonical_name
    matrix, full_range = stream.codec_context.colorspace, None  # the container's
    packets = _demux(container, stream, codec)
    if packets.corrupt:
        raise BadVideo(f"truncated or damaged ({packets.corrupt} corrupt packets)")
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    _check_length(container, stream, packets, fps)
    frames, rotation = packets.frames, 0
    if packets.frames:
        try:
            first = _decode_first(container, stream)
            rotation, matrix = checked_rotation(first), matrix_of(first, matrix)
            full_range = manifest_range(first, codec, container.name)
            if _decode_end(container, stream, packets) != packets.tail_frames:
                container.seek(0)
                frames = sum(1 for _ in container.decode(stream))
        except av.error.FFmpegError as error:
            raise BadVideo(f"damaged (decoding fails: {error.strerror})") from None
    width, height = stream.codec_context.width, stream.codec_context.height
    if frames and (width < 1 or height < 1):
        raise BadVideo("frames without a size")
    if rotation in (90, 270):
        width, height = height, width
    times = seconds_from_first(packets.stamps, stream.time_base, frames)
    fps, duration, variable = _timing(times, frames, fps)
    return ManifestEntry(
        path=path,
        frames=frames,
        fps=round(fps, 6),
        width=width,
        height=height,
        codec=codec,
        size_bytes=0,
        mtime_ns=0,
        duration=round(duration, 6),
        gop=packets.gop,
        vfr=variable,
        rotation=rotation,
        seekable=True,
        matrix=matrix,
        full_range=full_range,
        longest_frame=None if times is None or frames < 2 else round(np.diff(times).max(), 6),
    )


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
        seekable=False,
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


def _demux(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, codec: str
) -> _Packets:
    found, since_key = _Packets(), 0
    for packet in container.demux():
        if packet.pts is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            found.end = max(found.end, end)
        if packet.stream is not stream:
            continue
        found.total += packet.size > 0
        if packet.dts is not None and packet.size:
            found.step = max(found.step, packet.dts - found.last_dts)
            found.last_dts = packet.dts
        found.corrupt += packet.is_corrupt
        if not count_frame(packet, codec):
            continue
        found.frames += 1
        if packet.pts is not None:
            found.stamps.append(packet.pts)
        if packet.is_keyframe:
            since_key = 0
            if packet.pts is not None:
                found.last_key_pts, found.tail_frames = packet.pts, 0
        since_key += 1
        found.gop = max(found.gop, since_key)
        found.tail_frames += 1
    return found


def _check_length(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: _Packets,
    fps: float,
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
    slack = max(0.1, 0.05 * duration, 2 / fps if fps else 0)
    if end < duration - slack:
        raise BadVideo(f"truncated (ends at {end:.2f} s of {duration:.2f} s)")


def _decode_first(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> av.VideoFrame:
    container.seek(0)
    frame = next(container.decode(stream), None)
    if frame is None:
        raise BadVideo("damaged (no frame can be decoded)")
    return frame


def checked_rotation(frame: av.VideoFrame, mirrored: bool = False) -> int:
    """The rotation of a frame, 0, 90, 180 or 270. Raises BadVideo for any other orientation."""
    rotation = rotation_of(frame)
    if rotation is None or mirrored:
        raise BadVideo("to be shown mirrored, or rotated by other than a multiple of 90 degrees")
    return rotation


def _decode_end(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    packets: _Packets,
) -> int:
    """Count the frames decoded from the last key frame on; -1 if it has no time stamp."""
    if packets.last_key_pts is None:
        return -1
    container.seek(packets.last_key_pts, stream=stream)
    return sum(
        frame.pts is not None and frame.pts >= packets.last_key_pts
        for frame in container.decode(stream)
    )
