"""Probing many files at once, in processes: a file on which FFmpeg crashes is rejected, no more."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from vjepa_fast.data.ffmpeg import BadVideo
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.scan_journal import ScannedFile, ScanResult
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.data.workers.thread_pool import WorkerError

_SECONDS = 60.0  # time limit for a file, without the time for its size
_BYTES_PER_SECOND = 1_000_000  # some files are decoded as a whole


def probe_file(file: ScannedFile, deep: bool = False) -> ScanResult:
    """Probe one file; with `deep`, decode all of its frames."""
    try:
        member = None if file.offset is None else (file.offset, file.size_bytes)
        entry = probe_video(file.path, member=member, deep=deep)
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
        seconds: time limit for a file; it gets one second more for every MB.
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
