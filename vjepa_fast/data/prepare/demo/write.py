"""Writes demo videos and their manifests: encodes what a set draws, and keeps what is valid."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np

from vjepa_fast.data.decode.color import UNTAGGED
from vjepa_fast.data.manifest.entry import ManifestEntry, Seek
from vjepa_fast.data.manifest.files import read_csv, write_manifest
from vjepa_fast.data.manifest.location import is_in_place
from vjepa_fast.data.prepare.demo import digits, shapes
from vjepa_fast.data.prepare.demo.clip import FPS, FRAMES, SIZE, SPLITS
from vjepa_fast.data.prepare.encode import comment_of
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.data.workers.thread_pool import WorkerError
from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer
from vjepa_fast.progress import with_progress


@dataclass(frozen=True)
class DemoSet:
    """A set of clips.

    Attributes:
        render: draws clip `index` of a split from (seed, split, index), and names its labels.
        version: files of other versions are written again.
    """

    render: Callable[[int, str, int], tuple[np.ndarray, dict[str, int]]]
    version: int


SETS = {
    "digits": DemoSet(digits.render_clip, digits.VERSION),
    "shapes": DemoSet(shapes.render_clip, shapes.VERSION),
}

# Name -> (encoder, suffix, options). The noise survives at this constant quality. One thread always
# writes the same bytes.
_CODECS = {
    "vp9": (
        "libvpx-vp9",
        ".webm",
        {"deadline": "realtime", "cpu-used": "8", "crf": "16", "b": "0"},
    ),
    "h264": ("libx264", ".mp4", {"preset": "ultrafast", "crf": "16"}),
}


def make_demo(
    directory: str | os.PathLike,
    clips: int = 4000,
    test_clips: int = 1000,
    codec: str = "vp9",
    seed: int = 0,
    workers: int | None = None,
    kind: str = "digits",
) -> tuple[Path, Path]:
    """Write demo data: train/00000.webm …, test/00000.webm …, train.csv and test.csv.

    Valid files of the same settings are kept, so an interrupted call can be run again to resume.

    Args:
        directory: folder to write to.
        clips: number of training clips.
        test_clips: number of test clips.
        codec: "vp9" (which DALI decodes on a CPU) or "h264" (.mp4).
        seed: seed of all random draws.
        workers: number of processes that draw and encode; None: one per core.
        kind: the set, a key of `SETS`.

    Returns:
        The manifests of the training and the test split.

    Raises:
        UserError: a setting is out of range, the folder cannot be made, or another process writes
            to it.
    """
    directory = Path(directory)
    if kind not in SETS:
        raise UserError(
            f"--kind: found {kind!r}, expected one of {', '.join(SETS)}; choose one of them"
        )
    if codec not in _CODECS:
        raise UserError(
            f"found codec {codec!r} for the demo data, expected one of {', '.join(_CODECS)}; "
            "choose one of them"
        )
    if clips < 1 or test_clips < 1:
        raise UserError(
            f"found {clips} training and {test_clips} test clips, expected at least 1 of each; "
            "set --clips and --test-clips to 1 or more"
        )
    if not 0 <= seed < 2**64:
        raise UserError(f"found seed {seed}, expected 0 .. 2**64-1; choose one in that range")
    for split in SPLITS:
        try:
            (directory / split).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{directory}: found a path where no folder can be made ({error.strerror}), "
                "expected a folder to write to; name another"
            ) from None

    with sole_writer(directory, "name another --output"):
        return _write_demo(_Files(directory, kind, codec, seed), clips, test_clips, workers)


@dataclass(frozen=True)
class _Files:
    """Where the clips of one call are, and what their comments say."""

    directory: Path
    kind: str
    codec: str
    seed: int

    @property
    def manifests(self) -> tuple[Path, Path]:
        return self.directory / "train.csv", self.directory / "test.csv"

    def path(self, split: str, index: int) -> Path:
        return self.directory / split / f"{index:05d}{_CODECS[self.codec][1]}"

    def stamp(self, split: str, index: int) -> str:
        """The comment of a clip's file."""
        drawn = f"vjepa_fast {self.kind} {SETS[self.kind].version}"
        return f"{drawn}, {self.codec}, seed {self.seed}, {split} {index}"


def _write_demo(
    files: _Files, clips: int, test_clips: int, workers: int | None
) -> tuple[Path, Path]:
    jobs = [("train", index) for index in range(clips)]
    jobs += [("test", index) for index in range(test_clips)]
    known = _unchanged(files)
    missing = [job for job in jobs if job not in known]
    workers = workers or len(os.sched_getaffinity(0))
    if missing:
        with ProcessPool(workers, "vjepa-demo", modules=(__name__,)) as pool:
            written = pool.imap(partial(_write_clip, files), missing)
            for job, entry in with_progress(written, "demo data", len(missing), "clip"):
                if isinstance(entry, WorkerError):
                    raise UserError(f"{files.directory}, {job[0]} clip {job[1]}: {entry}")
                known[job] = entry
    entries = [known[job] for job in jobs]

    train, test = files.manifests
    write_manifest(test, entries[clips:])
    write_manifest(train, entries[:clips])  # last: if it exists, all files do
    return train, test


def _unchanged(files: _Files) -> dict[tuple[str, int], ManifestEntry]:
    """The entries of an earlier call's manifests, by (split, index), that have these settings and
    whose files are unchanged: these need not be drawn or decoded.
    """
    found = {}
    for split, manifest in zip(SPLITS, files.manifests, strict=True):
        if not manifest.is_file():
            continue
        for index, entry in enumerate(read_csv(manifest)):
            path = files.path(split, index)
            same = entry.path == str(path.resolve()) and entry.is_current and is_in_place(entry)
            if same and comment_of(path) == files.stamp(split, index):
                found[split, index] = entry
    return found


def _write_clip(files: _Files, job: tuple[str, int]) -> ManifestEntry:
    """Draw and encode a clip (split, index) unless its file is complete."""
    path, stamp = files.path(*job), files.stamp(*job)
    video, labels = SETS[files.kind].render(files.seed, *job)
    if not _is_complete(path, stamp):
        temporary = path.with_name(path.name + ".part")
        _encode(temporary, video, files.codec, stamp)
        os.replace(temporary, path)  # a file of this name is complete
    found = path.stat()
    return ManifestEntry(
        path=str(path.resolve()),
        frames=FRAMES,
        fps=FPS,
        width=SIZE,
        height=SIZE,
        codec=files.codec,
        size_bytes=found.st_size,
        mtime_ns=found.st_mtime_ns,
        labels=labels,
        seek=Seek.BY_STAMP,
        matrix=UNTAGGED,
        full_range=False,
    )


def _is_complete(path: Path, stamp: str) -> bool:
    """Whether the file exists, has this comment and decodes to the end."""
    if comment_of(path) != stamp:
        return False
    try:
        with av.open(path) as container:
            return sum(1 for _ in container.decode(video=0)) == FRAMES
    except av.FFmpegError:
        return False


def _encode(path: Path, video: np.ndarray, codec: str, stamp: str) -> None:
    encoder, suffix, options = _CODECS[codec]
    bitexact = {"fflags": "bitexact"}  # no random ids: the same call writes the same bytes
    with av.open(path, "w", format=suffix[1:], options=bitexact) as container:
        container.metadata["comment"] = stamp
        stream = container.add_stream(encoder, rate=FPS, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
