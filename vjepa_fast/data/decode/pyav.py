"""Decoding clips with PyAV (FFmpeg): every codec, on the CPU, one clip per process at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress

import av
import numpy as np
import torch

from vjepa_fast.data.decode.resize import Cropper, PixelBox
from vjepa_fast.data.decode.rotation import stored_crop, turn
from vjepa_fast.data.decode.time_stamps import clip_frames
from vjepa_fast.data.ffmpeg import BadVideo, open_video, video_stream
from vjepa_fast.data.frames.seek import NEAR_START, SeekError, numbered_frames
from vjepa_fast.data.manifest.entry import ManifestEntry, Seek
from vjepa_fast.data.manifest.location import check_unchanged, entry_url
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.data.workers.thread_pool import CLIP_SECONDS
from vjepa_fast.errors import UserError

_MP4 = (".mp4", ".m4v", ".mov")  # their headers have all that a decoder needs to begin


class PyavDecoder:
    """Decodes planned clips to uint8 [B, T, S, S, 3] on `device` in `num_workers` processes.

    A clip that takes more than `seconds`, or on which FFmpeg crashes, is one that cannot be
    decoded.

    Attributes:
        fallback: videos that another decoder takes: none.
        pool: the killable processes that decode.
    """

    name = "pyav"
    fallback: frozenset[int] = frozenset()

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        crop_size: int,
        device: torch.device,
        num_workers: int,
        seconds: float = CLIP_SECONDS,
    ) -> None:
        self._entries = entries
        self._crop_size = crop_size
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = ProcessPool(num_workers, "vjepa-pyav", seconds, modules=(__name__,))
        self.pool.prepare()

    def submit(self, plans: Sequence[ClipPlan]) -> list[Future]:
        """Start decoding a batch; pass what it returns to `collect`.

        Clips of a video that share their `frames`, several crops, are decoded together.
        """
        together: dict[tuple[int, int], list[ClipPlan]] = {}
        for plan in plans:
            together.setdefault((plan.video, id(plan.frames)), []).append(plan)
        started = {
            key: self.pool.submit(decode_crops, own, self._entries[own[0].video], self._crop_size)
            for key, own in together.items()
        }
        return [started[plan.video, id(plan.frames)] for plan in plans]

    def collect(
        self, plans: Sequence[ClipPlan], clips: list[Future]
    ) -> tuple[torch.Tensor, dict[int, str]]:
        """Wait for a submitted batch.

        Returns:
            The video, and the reason for each clip that cannot be decoded, by its position in the
            batch; the video of those is arbitrary.
        """
        video = empty_batch(plans, self._crop_size, pinned=self._stream is not None)
        failures, crops = {}, Counter()
        for i, clip in enumerate(clips):
            crops[clip] += 1
            try:
                video[i] = torch.from_numpy(clip.result()[crops[clip] - 1])
            except UserError as error:
                failures[i] = in_words(error, plans[i])
        if self._stream is None:
            return video, failures
        with torch.cuda.stream(self._stream):  # the default one would wait for the training step
            copied = video.to(self._device, non_blocking=True)
        self._stream.synchronize()  # host sync in a background thread; keeps `video` until here
        return copied, failures

    def close(self) -> None:
        """Drop what is not done, kill the processes."""
        self.pool.close()


def empty_batch(plans: Sequence[ClipPlan], crop_size: int, pinned: bool = False) -> torch.Tensor:
    """An uninitialized tensor for the video of these plans, uint8 [B, T, crop_size, crop_size, 3],
    on the CPU. Pinned memory can be copied to a GPU asynchronously.
    """
    shape = len(plans), plans[0].num_frames, crop_size, crop_size, 3
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)


def in_words(error: UserError | OSError, plan: ClipPlan) -> str:
    """Why a clip has no video, with the file's name."""
    if isinstance(error, OSError):
        return (
            f"found {plan.path} unreadable ({error.strerror}), expected a file that can be read; "
            "check its disk and permissions"
        )
    return str(error) if plan.path in str(error) else f"{plan.path}: {error}"


def decode_clip(plan: ClipPlan, entry: ManifestEntry, crop_size: int) -> torch.Tensor:
    """`decode_pixels` as a tensor."""
    return torch.from_numpy(decode_pixels(plan, entry, crop_size))


def decode_pixels(plan: ClipPlan, entry: ManifestEntry, crop_size: int) -> np.ndarray:
    """Decode one planned clip, see `decode_crops`: uint8 [T, crop_size, crop_size, 3]."""
    return decode_crops([plan], entry, crop_size)[0]


def decode_crops(plans: Sequence[ClipPlan], entry: ManifestEntry, crop_size: int) -> np.ndarray:
    """Decode clips of the same frames of a video: uint8 [len(plans), T, crop_size, crop_size, 3].

    Crop and flip apply to the upright picture. Resizing is bilinear with antialiasing (a triangular
    filter), like DALI's, see `resize`. Memory does not grow with the length of the file.

    Raises:
        UserError: a file that changed since it was indexed, is unreadable or damaged, changes its
            picture size, has fewer frames than it had then, or lacks the time stamps that the plan
            needs.
    """
    check_unchanged(entry)
    frames = clip_frames(plans[0], entry)
    wanted = np.unique(frames)
    croppers = [Cropper(_pixel_box(plan, entry), crop_size, entry.matrix) for plan in plans]
    squares = np.empty((len(plans), len(wanted), crop_size, crop_size, 3), np.uint8)
    _fill(squares, croppers, entry, wanted)
    shown = np.searchsorted(wanted, frames)
    if len(wanted) < len(frames):
        squares = squares[:, shown]
    turned = [
        turn(video, entry.rotation)[:, :, :: -1 if plan.flip else 1]
        for plan, video in zip(plans, squares, strict=True)
    ]
    return np.stack(turned) if entry.rotation or any(p.flip for p in plans) else squares


def _pixel_box(plan: ClipPlan, entry: ManifestEntry) -> PixelBox:
    """What the plan shows, of the stored picture."""
    top, left, height, width = stored_crop(plan.crop, entry.rotation)
    columns, rows = entry.stored_size
    above, before = round(top * rows), round(left * columns)
    below, behind = round((top + height) * rows), round((left + width) * columns)
    return PixelBox(above, before, below - above, behind - before)


def _fill(
    squares: np.ndarray, croppers: list[Cropper], entry: ManifestEntry, wanted: np.ndarray
) -> None:
    """Write the crops of the frames with the `wanted` (ascending, distinct) numbers to `squares`,
    uint8 [crops, frames, S, S, 3].
    """
    found = 0
    try:
        for seek, probe in _ways(entry, int(wanted[0])):
            with suppress(SeekError):
                found = 0
                for frame in _wanted_frames(entry, wanted.tolist(), seek, probe):
                    for cropper, video in zip(croppers, squares, strict=True):
                        cropper(frame, video[found])
                    found += 1
                break
    except (av.error.FFmpegError, EOFError, OSError) as error:
        raise UserError(
            f"{entry.path}: found a damaged file (FFmpeg: {error.strerror}), expected it to "
            "decode; index its folder again or remove the file"
        ) from None
    except BadVideo as error:
        width, height = entry.stored_size
        raise UserError(
            f"{entry.path}: found a damaged file ({error}), expected {entry.frames} frames of "
            f"{width}x{height}; index its folder again or remove the file"
        ) from None
    if found < len(wanted):
        raise UserError(
            f"{entry.path}: found no frame {wanted[found]}, expected {entry.frames} frames;"
            " index its folder again"
        )


def _ways(entry: ManifestEntry, first: int) -> Iterator[tuple[Seek, bool]]:
    """The ways to the frames from number `first` on, the cheapest one first: how to seek, and
    whether to probe the file when it is opened.
    """
    if entry.seek == Seek.BY_STAMP:
        # FFmpeg's probe decodes a key frame of H.264, and nothing of other codecs. What it finds
        # the decoder finds, too, except for the order of the frames, which is checked.
        if entry.codec == "h264" and entry.path.lower().endswith(_MP4):
            yield Seek.BY_STAMP, False
        yield Seek.BY_STAMP, True
    elif entry.seek and first >= NEAR_START:
        yield Seek(entry.seek), True
    yield Seek.NEVER, True


def _wanted_frames(
    entry: ManifestEntry, wanted: list[int], seek: Seek, probe: bool
) -> Iterator[av.VideoFrame]:
    """The frames with the `wanted` (ascending, distinct) numbers; fewer where the video ends early.

    Raises:
        BadVideo: a frame has another size, or the decoder concealed errors in it.
        SeekError: the seek did not lead to the frames.
    """
    try:
        with open_video(entry_url(entry), probe) as container:
            stream = video_stream(container, entry.stream)
            if stream is None:
                if seek:
                    raise SeekError
                return
            numbered = numbered_frames(container, stream, wanted[0], entry.frames, seek, wanted)
            for frame in _chosen(numbered, wanted, seek):
                if (frame.width, frame.height) != entry.stored_size:
                    raise BadVideo(f"a frame of {frame.width}x{frame.height} pixels")
                yield frame
    except av.error.FFmpegError as error:
        if seek:  # an index may lead nowhere though the file decodes from its start
            raise SeekError from error
        raise


def _chosen(
    numbered: Iterator[tuple[int, av.VideoFrame]], wanted: list[int], seek: Seek
) -> Iterator[av.VideoFrame]:
    """The frames with the `wanted` numbers."""
    position, intact = 0, False
    for number, frame in numbered:
        is_wanted = position < len(wanted) and number == wanted[position]
        # The first frames may refer to ones that were skipped or cut off; no wanted one does. After
        # the last wanted one come frames that are stored before it: it may refer to them.
        if frame.is_corrupt and (intact or is_wanted):
            if seek:
                raise SeekError
            raise BadVideo(f"frame {number} is corrupt")
        intact = intact or not frame.is_corrupt
        if is_wanted:
            yield frame
            position += 1
    if seek and position < len(wanted):
        raise SeekError
