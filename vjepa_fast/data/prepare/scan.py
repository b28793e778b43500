"""Probing many files at once, in processes: one that FFmpeg crashes on costs only itself."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection

import av

from vjepa_fast.data.ffmpeg import BadVideo, open_video, video_stream
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.location import entry_url
from vjepa_fast.data.prepare.findings import Candidate, Finding
from vjepa_fast.data.prepare.inspect import probe_video

_BYTES_PER_SECOND = 10_000_000
_PICTURES = 8  # that --deep decodes at each place


def probe_candidate(candidate: Candidate, deep: bool) -> Finding:
    """Probe one file; with `deep`, decode a few of its pictures as well (`decode_a_little`)."""
    try:
        member = None if candidate.offset is None else (candidate.offset, candidate.size_bytes)
        entry = probe_video(candidate.path, member=member)
        if deep:
            decode_a_little(entry)
    except BadVideo as reason:
        return Finding(candidate, reason=str(reason))
    return Finding(candidate, entry)


def scan(
    candidates: Iterable[Candidate],
    workers: int,
    probe: Callable[[Candidate], Finding],
    seconds: int = 60,
    chunk_size: int = 8,
) -> Generator[Finding, None, None]:
    """Run `probe` (to be pickled) on every candidate in `workers` processes; the findings as they
    come, in no particular order.

    A process gets `chunk_size` files at a time. A file that ends its process, or takes longer than
    `seconds` and one more for every 10 MB, is refused. Closing the iterator kills what is running.
    """
    rest = iter(candidates)
    suspects: deque[Candidate] = deque()
    while True:
        broken: list[Candidate] = []
        with _processes(workers) as pool:
            running: dict[Future, list[Candidate]] = {}
            while not broken:
                # A suspect runs alone, so that a process that ends tells of it and of nothing else.
                if suspects and not running:
                    chunk = [suspects.popleft()]
                    running[pool.submit(_run, probe, chunk, seconds)] = chunk
                while not suspects and len(running) < 2 * workers:
                    if not (chunk := list(islice(rest, chunk_size))):
                        break
                    running[pool.submit(_run, probe, chunk, seconds)] = chunk
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    chunk = running.pop(future)
                    try:
                        yield from future.result()
                    except BrokenProcessPool:
                        broken += chunk
            for chunk in running.values():  # they fail with the pool
                broken += chunk
        if len(broken) == 1:
            yield Finding(broken[0], reason="damaged (FFmpeg crashes or hangs)")
        else:
            suspects.extend(broken)


def decode_a_little(entry: ManifestEntry) -> None:
    """Decode a few pictures at the start, in the middle and at the end.

    Raises BadVideo where that fails, a picture is damaged, or not of the size of the entry.
    """
    if entry.frames == 1:  # an image: probing has decoded it
        return
    try:
        with open_video(entry_url(entry)) as container:
            stream = video_stream(container)
            if stream is None:
                raise BadVideo("no video stream")
            stream.codec_context.options = {"err_detect": "explode"}
            for place in (0.0, 0.5, 0.95):
                seconds = place * (entry.duration or 0) + (container.start_time or 0) / av.time_base
                container.seek(int(seconds * av.time_base))
                _check_pictures(container, stream, entry)
    except (av.error.FFmpegError, EOFError) as error:
        raise BadVideo(f"damaged (decoding fails: {error.strerror})") from None


def _check_pictures(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    entry: ManifestEntry,
) -> None:
    count = 0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise BadVideo("damaged (a picture is corrupt)")
        width, height = entry.stored_size
        if (frame.width, frame.height) != (width, height):
            raise BadVideo(f"changes its size ({width}x{height}, {frame.width}x{frame.height})")
        count += 1
        if count == _PICTURES:
            return
    if not count:
        raise BadVideo("damaged (no picture can be decoded)")


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    with theirs, ours, ProcessPoolExecutor(workers, context, _start_process, (theirs,)) as pool:
        try:
            yield pool
        except BaseException:  # an interrupt: nobody waits for an hour's video to be copied
            ours.close()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_process(parent: Connection) -> None:
    """The parent ends the scan: an interrupt is its to take, and where it is killed so is this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """End this process, whatever it is doing, once the other end is closed."""
    parent.poll(None)
    os._exit(1)


def _run(
    probe: Callable[[Candidate], Finding], chunk: Sequence[Candidate], seconds: int
) -> list[Finding]:
    """In a process of its own, which the alarm ends: no handler would run inside FFmpeg."""
    findings = []
    for candidate in chunk:
        signal.alarm(seconds + candidate.size_bytes // _BYTES_PER_SECOND)
        findings.append(probe(candidate))
        signal.alarm(0)
    return findings
