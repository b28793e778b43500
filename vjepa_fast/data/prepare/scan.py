"""Probing many files at once, in processes: a file on which FFmpeg crashes is rejected, no more."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

import av

from vjepa_fast.data.ffmpeg import BadVideo, open_video, video_stream
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.location import entry_url
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.scan_journal import ScannedFile, ScanResult
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.data.workers.thread_pool import WorkerError

_SECONDS = 60.0  # time limit for a file, without the time for its size
_BYTES_PER_SECOND = 10_000_000
_DEEP_FRAMES = 8  # that --deep decodes at each position


def probe_file(file: ScannedFile, deep: bool = False) -> ScanResult:
    """Probe one file; with `deep`, decode a few of its frames as well (`decode_a_little`)."""
    try:
        member = None if file.offset is None else (file.offset, file.size_bytes)
        entry = probe_video(file.path, member=member)
        if deep:
            decode_a_little(entry)
    except BadVideo as reason:
        return ScanResult(file, reason=str(reason))
    return ScanResult(file, entry)


def scan(
    files: Iterable[ScannedFile],
    workers: int,
    probe: Callable[[ScannedFile], ScanResult] = probe_file,
    seconds: float = _SECONDS,
    chunk_size: int = 8,
    modules: Sequence[str] = (__name__,),
) -> Generator[ScanResult, None, None]:
    """Call `probe` for every file in `workers` processes; yields the results as they come.

    A file on which its process ends, or takes too long, is probed once more and then rejected.
    Closing the generator kills what is running.

    Args:
        probe: an importable function, or a `functools.partial` of one.
        seconds: time limit for a file; it gets one second more for every 10 MB.
        chunk_size: files that a process gets at once.
        modules: to import before the processes are forked: that of `probe`.
    """

    def limit(file: ScannedFile) -> float:
        return seconds + file.size_bytes / _BYTES_PER_SECOND

    lost = []
    with ProcessPool(workers, "vjepa-scan", modules=modules) as pool:
        for file, result in pool.imap(probe, files, limit, chunk_size):
            if isinstance(result, WorkerError):
                lost.append(file)
            else:
                yield result
    # One at a time, without the others: memory may have run out, or somebody killed the process.
    with ProcessPool(1, "vjepa-scan", modules=modules) as pool:
        for file, result in pool.imap(probe, lost, limit):
            if isinstance(result, WorkerError):
                result = ScanResult(file, reason="damaged (FFmpeg crashes or hangs)")
            yield result


def decode_a_little(entry: ManifestEntry) -> None:
    """Decode a few frames at the start, in the middle and at the end.

    Raises:
        BadVideo: that fails, or a frame is corrupt or not of the size of the entry.
    """
    if entry.frames == 1:  # an image, which probing has decoded
        return
    try:
        with open_video(entry_url(entry)) as container:
            stream = video_stream(container)
            if stream is None:
                raise BadVideo("no video stream")
            stream.codec_context.options = {"err_detect": "explode"}
            for position in (0.0, 0.5, 0.95):
                start = (container.start_time or 0) / av.time_base
                seconds = start + position * (entry.duration or 0)
                container.seek(int(seconds * av.time_base))
                _check_frames(container, stream, entry)
    except (av.error.FFmpegError, EOFError) as error:
        raise BadVideo(f"damaged (decoding fails: {error.strerror})") from None


def _check_frames(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    entry: ManifestEntry,
) -> None:
    count = 0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise BadVideo("damaged (a frame is corrupt)")
        width, height = entry.stored_size
        if (frame.width, frame.height) != (width, height):
            raise BadVideo(f"changes its size ({width}x{height}, {frame.width}x{frame.height})")
        count += 1
        if count == _DEEP_FRAMES:
            return
    if not count:
        raise BadVideo("damaged (no frame can be decoded)")
