"""Decoding clips with PyAV (FFmpeg): every codec, on the CPU, one clip a process."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from vjepa_fast.data.decode.seek import frames_from
from vjepa_fast.data.decode.upright import stored_crop, turn
from vjepa_fast.data.ffmpeg import BadVideo, open_video, video_stream
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import check_unchanged
from vjepa_fast.data.manifest.location import entry_url
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.data.workers.thread_pool import CLIP_SECONDS, WorkerPool
from vjepa_fast.errors import UserError

# With these, and BT.601 whatever the file's tag says, RGB is bit for bit that of DALI on the CPU.
# (FFmpeg's default rounds down: 1.5 grey levels too dark.)
_TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Up to here, decoding from the first frame is cheaper than finding out where the key frames are.
_NEAR_START = 32


class PyavDecoder:
    """Decodes planned clips to uint8 [B, T, S, S, 3] on `device` in `num_threads` processes.

    A clip that takes more than `seconds`, or at which FFmpeg crashes, counts as one that cannot be
    decoded.
    """

    name = "pyav"
    handed_over: frozenset[int] = frozenset()

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        crop_size: int,
        device: torch.device,
        num_threads: int,
        seconds: float = CLIP_SECONDS,
    ) -> None:
        self._entries = entries
        self._crop_size = crop_size
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = ProcessPool(num_threads, "vjepa-pyav", seconds, modules=(__name__,))
        self.pool.prepare()

    def submit(self, plans: Sequence[ClipPlan]) -> list[Future]:
        """Start decoding a batch; pass what it returns to `collect`."""
        return [
            self.pool.submit(decode_pixels, plan, self._entries[plan.video], self._crop_size)
            for plan in plans
        ]

    def collect(
        self, plans: Sequence[ClipPlan], clips: list[Future]
    ) -> tuple[torch.Tensor, dict[int, str]]:
        """Wait for a submitted batch: its video, and by their places in the batch the clips that
        cannot be decoded, with the reason; their video is arbitrary.
        """
        video = empty_batch(plans, self._crop_size, pinned=self._stream is not None)
        failures = collect_clips(self.pool, plans, dict(enumerate(clips)), video)
        if self._stream is None:
            return video, failures
        with torch.cuda.stream(self._stream):  # the default one would wait for the training step
            copied = video.to(self._device, non_blocking=True)
        self._stream.synchronize()  # in a background thread; `video` must last until here
        return copied, failures

    def close(self) -> None:
        """Drop what is not done."""
        self.pool.close()


def empty_batch(plans: Sequence[ClipPlan], crop_size: int, pinned: bool = False) -> torch.Tensor:
    """Room for the video of these plans: uint8 [B, T, crop_size, crop_size, 3] on the CPU; pinned
    memory is copied to a GPU while others work.
    """
    shape = len(plans), len(plans[0].frames), crop_size, crop_size, 3
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)


def collect_clips(
    pool: WorkerPool,
    plans: Sequence[ClipPlan],
    clips: dict[int, Future],
    video: torch.Tensor,
) -> dict[int, str]:
    """Put the results of submitted `decode_pixels` calls at their places (the keys) in `video`.

    Returns the reasons of those that failed, by place.
    """
    failures = {}
    for i, clip in clips.items():
        try:
            video[i] = torch.as_tensor(pool.result(clip))
        except UserError as error:
            failures[i] = in_words(error, plans[i])
    return failures


def in_words(error: UserError | OSError, plan: ClipPlan) -> str:
    """The reason that a clip has no video, with the file's name."""
    if isinstance(error, OSError):
        return (
            f"found {plan.path} unreadable ({error.strerror}), expected a file that can be read, "
            "look at its disk and permissions"
        )
    return str(error) if plan.path in str(error) else f"{plan.path}: {error}"


def check_plan(plan: ClipPlan, entry: ManifestEntry) -> None:
    """Raise UserError if the plan has an obstacle or its file is not the one that was indexed."""
    if plan.obstacle is not None:
        raise UserError(plan.obstacle)
    check_unchanged(entry)


def decode_clip(plan: ClipPlan, entry: ManifestEntry, crop_size: int) -> torch.Tensor:
    """`decode_pixels` as a tensor."""
    return torch.from_numpy(decode_pixels(plan, entry, crop_size))


def decode_pixels(plan: ClipPlan, entry: ManifestEntry, crop_size: int) -> np.ndarray:
    """Decode one planned clip: uint8 [T, crop_size, crop_size, 3].

    Crop and flip are of the upright picture. Resizing is bilinear with antialiasing (a triangular
    filter), like DALI's. The file is read where the clip is, never whole at once. Raises UserError
    for a file that changed since it was indexed, is unreadable or damaged, changes its size, or has
    fewer frames than it had then, and for a plan with an obstacle.
    """
    check_plan(plan, entry)
    wanted = np.unique(plan.frames)
    top, left, height, width = stored_crop(plan.crop, entry.rotation)
    stored = entry.stored_size
    rows = slice(round(top * stored[1]), round((top + height) * stored[1]))
    columns = slice(round(left * stored[0]), round((left + width) * stored[0]))
    reformatter = VideoReformatter()
    pictures = []
    try:
        with open_video(entry_url(entry)) as container:
            for frame in _frames_at(container, wanted.tolist(), entry.frames):
                if (frame.width, frame.height) != stored:
                    raise BadVideo(f"a frame of {frame.width}x{frame.height} pixels")
                rgb = reformatter.reformat(
                    frame,
                    format="rgb24",
                    src_colorspace=Colorspace.ITU601,
                    interpolation=_TO_RGB,
                    threads=1,
                )
                pictures.append(rgb.to_ndarray()[rows, columns])
    except (av.error.FFmpegError, EOFError, OSError) as error:
        raise UserError(
            f"found {plan.path} damaged (FFmpeg: {error.strerror}), expected it to decode, index "
            "its folder again or remove it"
        ) from None
    except BadVideo as error:
        raise UserError(
            f"found {plan.path} damaged ({error}), expected {entry.frames} frames of "
            f"{stored[0]}x{stored[1]}, index its folder again or remove it"
        ) from None
    if len(pictures) < len(wanted):
        raise UserError(
            f"found no frame {wanted[len(pictures)]} in {plan.path}, expected {entry.frames} "
            "frames, index its folder again"
        )
    video = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    video = torch.nn.functional.interpolate(
        video, (crop_size, crop_size), mode="bilinear", antialias=True
    )
    # The rest with numpy: torch's threads would spin for longer than this takes.
    video = turn(video.permute(0, 2, 3, 1).numpy(), entry.rotation)
    video = video[:, :, :: -1 if plan.flip else 1]
    return np.ascontiguousarray(video[np.searchsorted(wanted, plan.frames)])


def _frames_at(
    container: av.container.InputContainer, wanted: list[int], frames: int
) -> Iterator[av.VideoFrame]:
    """The frames with the `wanted` (ascending, distinct) indices out of `frames`, fewer where the
    video ends.

    Raises BadVideo where the decoder had to invent a part of them, or of one before that they
    may build on.
    """
    stream = video_stream(container)
    if stream is None:
        return
    numbered = None
    if wanted[0] >= _NEAR_START:
        numbered = frames_from(container, stream, wanted[0], frames)
    position, sound = 0, False
    for index, frame in numbered or enumerate(container.decode(stream)):
        # After a seek, frames that build on skipped ones may come first; nothing builds on them.
        if frame.is_corrupt and (sound or index == wanted[position]):
            raise BadVideo(f"frame {index} is corrupt")
        sound = sound or not frame.is_corrupt
        if index == wanted[position]:
            yield frame
            position += 1
            if position == len(wanted):
                return
