"""Decoding clips with PyAV (FFmpeg): every codec, on the CPU, one clip a thread."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from vjepa_fast.data.clips import ClipPlan
from vjepa_fast.data.manifest import ManifestEntry, check_unchanged
from vjepa_fast.data.probe import count_frame, video_stream
from vjepa_fast.errors import UserError

# With these, and BT.601 whatever the file's tag says, RGB is bit for bit that of DALI on the CPU.
# (FFmpeg's default rounds down: 1.5 grey levels too dark.)
_TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Up to here, decoding from the first frame is cheaper than finding out where the key frames are.
_NEAR_START = 32


class PyavDecoder:
    """Decodes planned clips to uint8 [B, T, S, S, 3] on `device` with `num_threads` threads."""

    name = "pyav"

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        crop_size: int,
        device: torch.device,
        num_threads: int,
    ) -> None:
        self._entries = entries
        self._crop_size = crop_size
        self._device = device
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="vjepa-pyav")

    def submit(self, plans: Sequence[ClipPlan]) -> list[Future]:
        """Start decoding a batch; pass what it returns to `collect`."""
        return [
            self._pool.submit(decode_clip, plan, self._entries[plan.video], self._crop_size)
            for plan in plans
        ]

    def collect(self, plans: Sequence[ClipPlan], clips: list[Future]) -> torch.Tensor:
        """Wait for a submitted batch. Raises UserError for a file that changed or is damaged."""
        return torch.stack([clip.result() for clip in clips]).to(self._device)

    def close(self) -> None:
        """Drop what has not started, wait for the rest."""
        self._pool.shutdown(cancel_futures=True)


def decode_clip(plan: ClipPlan, entry: ManifestEntry, crop_size: int) -> torch.Tensor:
    """Decode one planned clip: uint8 [T, crop_size, crop_size, 3].

    Resizing is bilinear with antialiasing (a triangular filter), like DALI's. Raises UserError for
    a file that changed since it was indexed, is damaged, or has fewer frames than it had then.
    """
    check_unchanged(entry)
    wanted = np.unique(plan.frames)
    top, left, height, width = plan.crop
    rows = slice(round(top * entry.height), round((top + height) * entry.height))
    columns = slice(round(left * entry.width), round((left + width) * entry.width))
    reformatter = VideoReformatter()
    pictures = []
    try:
        with av.open(plan.path) as container:
            for frame in _frames_at(container, wanted.tolist()):
                rgb = reformatter.reformat(
                    frame,
                    format="rgb24",
                    src_colorspace=Colorspace.ITU601,
                    interpolation=_TO_RGB,
                    threads=1,
                )
                pictures.append(rgb.to_ndarray()[rows, columns])
    except (av.error.FFmpegError, EOFError) as error:
        raise UserError(
            f"found {plan.path} damaged (FFmpeg: {error.strerror}), expected it to decode, index "
            "its folder again or remove it"
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
    video = video.permute(0, 2, 3, 1).numpy()[:, :, :: -1 if plan.flip else 1]
    return torch.from_numpy(np.ascontiguousarray(video[np.searchsorted(wanted, plan.frames)]))


def _frames_at(
    container: av.container.InputContainer, wanted: list[int]
) -> Iterator[av.VideoFrame]:
    """The frames with the `wanted` (ascending, distinct) indices, fewer where the video ends."""
    stream = video_stream(container)
    if stream is None:
        return
    numbered = None
    if wanted[0] >= _NEAR_START:
        numbered = _from_key_frame(container, stream, wanted[0])
    position = 0
    for index, frame in numbered or enumerate(container.decode(stream)):
        if index == wanted[position]:
            yield frame
            position += 1
            if position == len(wanted):
                return


def _from_key_frame(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, first: int
) -> Iterator[tuple[int, av.VideoFrame]] | None:
    """Frames with their indices, from the last key frame at or before index `first` on.

    None, with the container at its start again, where time stamps don't allow it.
    """
    codec = stream.codec_context.codec.canonical_name
    packets = [packet for packet in container.demux(stream) if count_frame(packet, codec)]
    stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
    keys = sorted(packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None)
    distinct = len(set(stamps)) == len(packets)
    if distinct and first < len(stamps) and bisect_right(keys, stamps[first]):
        key = keys[bisect_right(keys, stamps[first]) - 1]
        container.seek(key, stream=stream)
        frames = container.decode(stream)
        opening = next(frames, None)
        # A container without an index may land anywhere.
        if opening is not None and opening.pts is not None and opening.pts <= key:
            return _numbered(opening, frames, {pts: index for index, pts in enumerate(stamps)})
    container.seek(0)
    return None


def _numbered(
    opening: av.VideoFrame, frames: Iterator[av.VideoFrame], index_of: dict[int, int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    yield index_of.get(opening.pts, -1), opening
    for frame in frames:
        yield index_of.get(frame.pts, -1), frame
