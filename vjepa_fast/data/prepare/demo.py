"""Demo data: labeled videos of handwritten digits that move over textured backgrounds.

`digit` (10 classes) is appearance; `direction` (8 classes, clockwise in steps of 45 degrees from
"right") is motion. A digit starts at a random position, moves at a random speed and wraps around
the frame, so its position in any single frame is uniform and independent of the direction. The
camera shakes and pans: digit and background shake together, and the background moves in a random
direction, so neither the difference of two frames nor the motion of most pixels gives the direction
away. The images are scikit-learn's `load_digits` (1,797 scans of 8x8 pixels, UCI machine learning
repository); the test split has images that are not in the training split.
"""

from __future__ import annotations

import os
from functools import lru_cache, partial
from pathlib import Path

import av
import numpy as np
from sklearn.datasets import load_digits

from vjepa_fast.data.decode.color import UNTAGGED
from vjepa_fast.data.manifest.entry import ManifestEntry, Seek
from vjepa_fast.data.manifest.files import read_csv, write_manifest
from vjepa_fast.data.manifest.location import is_in_place
from vjepa_fast.data.prepare.encode import comment_of
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.data.workers.thread_pool import WorkerError
from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer
from vjepa_fast.progress import with_progress

SIZE = 32  # pixels, height and width of the frame
FRAMES = 8
FPS = 8
DIGITS = 10
DIRECTIONS = 8

_VERSION = 3  # raise it when frames or encoding change: files of other versions are written again
_DIGIT_SIZE = 20.0  # pixels that the 8 scanned ones are stretched to
_SPEED = (2.0, 4.0)  # of the digit, pixels per frame
_PAN = (1.5, 3.0)  # of the background, pixels per frame
_SHAKE = 0.75  # of the camera, pixels, standard deviation in each direction
_BACKGROUND = 125.0  # grey level
_CONTRAST = 100.0  # grey levels that the ink is lighter
_TEXTURE = 30.0  # grey levels, standard deviation
_GRAIN = 1.2  # pixels, the texture's smoothness
_NOISE = 10.0  # of the sensor, grey levels, standard deviation
_HELD_OUT = 0.2  # of the images of each digit, for the test split

_SPLITS = ("train", "test")

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


def render_clip(seed: int, split: str, index: int) -> tuple[np.ndarray, dict[str, int]]:
    """Draw clip `index` of a split: uint8 [FRAMES, SIZE, SIZE, 3] (RGB) and its labels.

    A pure function of its arguments. Any 80 consecutive indices hold every (digit, direction).
    Raises ValueError for a split other than "train" and "test".
    """
    if split not in _SPLITS:
        raise ValueError(f"found split {split!r}, expected one of {_SPLITS}; name one of them")
    counter = [0, 0, _SPLITS.index(split), index]  # the two zeros count what this clip draws
    random = np.random.Generator(np.random.Philox(key=seed, counter=counter))
    direction, digit = index % DIRECTIONS, index // DIRECTIONS % DIGITS

    images = digit_images(split)[digit]
    image = images[random.integers(len(images))]
    shake = _SHAKE * random.standard_normal((FRAMES, 2))
    glide = _line(random.uniform(*_SPEED), 2 * np.pi * direction / DIRECTIONS)
    pan = _line(random.uniform(*_PAN), random.uniform(0, 2 * np.pi))
    digit_mask = _stretch(image, random.uniform(0, SIZE, 2) + glide + shake)

    background = _BACKGROUND + _TEXTURE * _texture(random, pan + shake)
    video = (background + digit_mask * (_BACKGROUND + _CONTRAST - background))[..., None]
    video = video + _NOISE * random.standard_normal((*video.shape[:-1], 3))
    return video.clip(0, 255).round().astype(np.uint8), {"digit": digit, "direction": direction}


@lru_cache(maxsize=2)
def digit_images(split: str) -> tuple[np.ndarray, ...]:
    """The scans of a split, for each digit: float64 [images, 8, 8] in 0 .. 1."""
    scans = load_digits()
    chosen = []
    for digit in range(DIGITS):
        images = scans.images[scans.target == digit] / 16
        first_test = round(len(images) * (1 - _HELD_OUT))
        chosen.append(images[:first_test] if split == "train" else images[first_test:])
    return tuple(chosen)


def make_demo(
    directory: str | os.PathLike,
    clips: int = 4000,
    test_clips: int = 1000,
    codec: str = "vp9",
    seed: int = 0,
    workers: int | None = None,
) -> tuple[Path, Path]:
    """Write the demo data: train/00000.webm …, test/00000.webm …, train.csv and test.csv.

    Valid files of the same settings are kept, so an interrupted call can be run again to resume.

    Args:
        directory: folder to write to.
        clips: number of training clips.
        test_clips: number of test clips.
        codec: "vp9" (which DALI decodes on a CPU) or "h264" (.mp4).
        seed: seed of all random draws.
        workers: number of processes that draw and encode; None: one per core.

    Returns:
        The manifests of the training and the test split.

    Raises:
        UserError: a setting is out of range, the folder cannot be made, or another process writes
            to it.
    """
    directory = Path(directory)
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
    for split in _SPLITS:
        try:
            (directory / split).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{directory}: found a path where no folder can be made ({error.strerror}), "
                "expected a folder to write to; name another"
            ) from None

    with sole_writer(directory, "name another --output"):
        return _write_demo(directory, clips, test_clips, codec, seed, workers)


def _write_demo(
    directory: Path, clips: int, test_clips: int, codec: str, seed: int, workers: int | None
) -> tuple[Path, Path]:
    jobs = [("train", index) for index in range(clips)]
    jobs += [("test", index) for index in range(test_clips)]
    manifests = directory / "train.csv", directory / "test.csv"
    known = _unchanged(directory, codec, seed, manifests)
    missing = [job for job in jobs if job not in known]
    workers = workers or len(os.sched_getaffinity(0))
    if missing:
        with ProcessPool(workers, "vjepa-demo", modules=(__name__,)) as pool:
            written = pool.imap(partial(_write_clip, directory, codec, seed), missing)
            for job, entry in with_progress(written, "demo data", len(missing), "clip"):
                if isinstance(entry, WorkerError):
                    raise UserError(f"{directory}, {job[0]} clip {job[1]}: {entry}")
                known[job] = entry
    entries = [known[job] for job in jobs]

    write_manifest(manifests[1], entries[clips:])
    write_manifest(manifests[0], entries[:clips])  # last: if it exists, all files do
    return manifests


def _unchanged(
    directory: Path, codec: str, seed: int, manifests: tuple[Path, Path]
) -> dict[tuple[str, int], ManifestEntry]:
    """The entries of an earlier call's manifests, by (split, index), that have these settings and
    whose files are unchanged: these need not be drawn or decoded.
    """
    found = {}
    for split, manifest in zip(_SPLITS, manifests, strict=True):
        if not manifest.is_file():
            continue
        for index, entry in enumerate(read_csv(manifest)):
            path, stamp = _file_of(directory, codec, seed, split, index)
            same = entry.path == str(path.resolve()) and entry.is_current and is_in_place(entry)
            if same and comment_of(path) == stamp:
                found[split, index] = entry
    return found


def _file_of(directory: Path, codec: str, seed: int, split: str, index: int) -> tuple[Path, str]:
    """The path of a clip, and the comment of its file."""
    path = directory / split / f"{index:05d}{_CODECS[codec][1]}"
    return path, f"vjepa_fast demo {_VERSION}, {codec}, seed {seed}, {split} {index}"


def _write_clip(directory: Path, codec: str, seed: int, job: tuple[str, int]) -> ManifestEntry:
    """Draw and encode a clip (split, index) unless its file is complete."""
    split, index = job
    path, stamp = _file_of(directory, codec, seed, split, index)
    video, labels = render_clip(seed, split, index)
    if not _is_complete(path, stamp):
        temporary = path.with_name(path.name + ".part")
        _encode(temporary, video, codec, stamp)
        os.replace(temporary, path)  # a file of this name is complete
    found = path.stat()
    return ManifestEntry(
        path=str(path.resolve()),
        frames=FRAMES,
        fps=FPS,
        width=SIZE,
        height=SIZE,
        codec=codec,
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


def _line(speed: float, angle: float) -> np.ndarray:
    """Positions of a motion at `speed` pixels per frame from 0 on: (y, x), [T, 2]."""
    return speed * np.arange(FRAMES)[:, None] * np.array([np.sin(angle), np.cos(angle)])


def _stretch(image: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Draw an 8x8 scan at `centre` [T, 2] (y, x; pixels), wrapping around: [T, H, W] in 0 .. 1."""
    offset = np.arange(SIZE)[:, None] - centre[:, None, :]  # [T, SIZE, 2]
    offset = (offset + SIZE / 2) % SIZE - SIZE / 2
    scan = offset * 8 / _DIGIT_SIZE + 3.5
    weight = _cubic_spline(scan[..., None] - np.arange(8))  # [T, SIZE, 2, 8]
    return np.einsum("tyi,ij,txj->tyx", weight[:, :, 0], image, weight[:, :, 1]).clip(0, 1)


def _cubic_spline(x: np.ndarray) -> np.ndarray:
    """The cubic B-spline: a smooth, positive bump of width 4 whose shifts by 1 add up to 1."""
    x = np.abs(x)
    return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.clip(2 - x, 0, None) ** 3 / 6)


def _texture(random: np.random.Generator, shift: np.ndarray) -> np.ndarray:
    """A random field, mean 0, standard deviation 1, smooth over _GRAIN pixels, moved by `shift`
    ([T, 2]: y, x; pixels; it wraps around): [T, SIZE, SIZE]."""
    frequency = np.fft.fftfreq(SIZE)
    squared = frequency[:, None] ** 2 + frequency**2
    amplitude = np.where(squared > 0, np.exp(-squared * (2 * np.pi * _GRAIN) ** 2 / 2), 0)
    spectrum = np.fft.fft2(random.standard_normal((SIZE, SIZE))) * amplitude
    turns = shift[:, 0, None, None] * frequency[:, None] + shift[:, 1, None, None] * frequency
    field = np.fft.ifft2(spectrum * np.exp(-2j * np.pi * turns)).real
    return field / np.fft.ifft2(spectrum).real.std()
