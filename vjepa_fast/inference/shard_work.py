"""The shards of an extraction: which clips each holds, and computing their features."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vjepa_fast.data.bad_clips import LeftOut
from vjepa_fast.data.decode.backend import Decoder
from vjepa_fast.data.manifest.entry import LABEL_PREFIX
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.errors import UserError
from vjepa_fast.inference.clips import ClipList, decode_ahead, with_frames
from vjepa_fast.inference.encoder import VideoEncoder
from vjepa_fast.inference.feature_folder import FeatureFolder
from vjepa_fast.progress import with_progress

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
CLIPS_PER_SHARD, BYTES_PER_SHARD = 256, 2**28  # at most
log = logging.getLogger("vjepa_fast")


@dataclass(frozen=True)
class Extraction:
    """What is computed and stored; the features depend on all of it.

    Attributes:
        clips, window_step: which clips of a video, see `ClipList`.
        pool: "tokens": the features of all tokens of a clip; "mean": their mean.
        dtype: a key of `DTYPES`, in which they are stored.
        file_format: of the shards.
        batch_size: clips that are encoded at once.
    """

    clips: int = 1
    window_step: int | None = None
    pool: Literal["tokens", "mean"] = "tokens"
    dtype: str = "fp16"
    file_format: Literal["safetensors", "npz"] = "safetensors"
    batch_size: int = 16


class ShardWork:
    """The shards of an extraction. A shard is a range of the clips.

    Args:
        encoder: on its device.
        clips: of all videos.
        extraction: what is computed.
        max_bad_fraction: largest fraction of the clips that may fail to decode.

    Attributes:
        shards: their number.
    """

    def __init__(
        self,
        encoder: VideoEncoder,
        clips: ClipList,
        extraction: Extraction,
        max_bad_fraction: float,
    ) -> None:
        self._encoder, self._clips, self._extraction = encoder, clips, extraction
        tokens, height, width = encoder.grid
        count = tokens * height * width if extraction.pool == "tokens" else 1
        self._clip_bytes = count * encoder.width * DTYPES[extraction.dtype].itemsize
        self._per_shard = max(1, min(CLIPS_PER_SHARD, BYTES_PER_SHARD // self._clip_bytes))
        self.shards = -(-len(clips) // self._per_shard)
        self._left_out = LeftOut(len(clips), max_bad_fraction, "--max-bad-fraction")

    @property
    def settings(self) -> dict:
        """All that the features of given videos and their index depend on, beyond rounding, as JSON
        data.
        """
        encoder, how, sampling = self._encoder, self._extraction, self._encoder.sampling
        entries = self._clips.entries
        return {
            "labels": {
                name: f"{zlib.crc32(entries.column(LABEL_PREFIX + name).tobytes()):08x}"
                for name in entries.label_names
            },
            "clips": len(self._clips),
            "clips_per_video": None if how.window_step else how.clips,
            "window_step": how.window_step,
            "weights": f"{encoder.checksum:08x}",
            "network": encoder.network,
            "precision": str(encoder.dtype).removeprefix("torch."),
            "num_frames": sampling.num_frames,
            "frame_step": None if sampling.fps else sampling.frame_step,
            "fps": sampling.fps,
            "crop_size": sampling.crop_size,
            "grid": list(encoder.grid),
            "width": encoder.width,
            "pool": how.pool,
            "dtype": how.dtype,
            "file_format": how.file_format,
            "clips_per_shard": self._per_shard,
        }

    def shard_bytes(self, shard: int) -> int:
        """Size of a shard's features, if no clip is left out."""
        return len(self._range(shard)) * self._clip_bytes

    def run(self, folder: FeatureFolder, todo: list[int], decoder: Decoder) -> None:
        """Compute and write these shards, in order.

        Raises:
            UserError: too many clips that do not decode, or features that cannot be stored.
            OSError: a shard cannot be written.
        """
        if not todo:
            return
        batches = {shard: list(self._batches(shard)) for shard in todo}
        plans = (self._plans(clips, decoder) for shard in todo for clips in batches[shard])
        total, name = sum(map(len, batches.values())), f"features in {folder.path.name}"
        decoded = iter(with_progress(decode_ahead(plans, decoder), name, total, "batch"))
        for shard in todo:
            found: list[Tensor] = []
            frames: dict[int, tuple[int, int]] = {}
            left_out = {
                clip: f"shorter than a clip of {self._clips.sampling.in_words}"
                for clip in self._range(shard)
                if self._is_short(clip)
            }
            for _ in batches[shard]:
                batch, video, failures = next(decoded)
                self._note(batch, failures, left_out)
                good = [i for i in range(len(batch)) if i not in failures]
                if good:
                    plans_shown = [batch[i] for i in good]
                    found.append(self._features(video[good], plans_shown))
                    for plan in plans_shown:
                        frames[plan.sample_id] = int(plan.frames[0]), int(plan.frames[-1])
            features = torch.cat(found) if found else None
            folder.write(shard, features, self._rows(shard, frames, left_out))
        next(decoded, None)  # there is none; it says that it is done

    def _range(self, shard: int) -> range:
        return range(len(self._clips))[shard * self._per_shard : (shard + 1) * self._per_shard]

    def _is_short(self, clip: int) -> bool:
        return bool(self._clips.short[self._clips.video_of[clip]])

    def _batches(self, shard: int) -> Iterator[list[int]]:
        """The clips of a shard that are decoded, as they are encoded together."""
        clips = [clip for clip in self._range(shard) if not self._is_short(clip)]
        size = self._extraction.batch_size
        for start in range(0, len(clips), size):
            yield clips[start : start + size]

    def _plans(self, clips: list[int], decoder: Decoder) -> list[ClipPlan]:
        plans = [self._clips.plan(clip) for clip in clips]
        return with_frames(plans, self._clips.entries, decoder)

    def _note(
        self, batch: list[ClipPlan], failures: Mapping[int, str], left_out: dict[int, str]
    ) -> None:
        """Count and name clips that do not decode."""
        for i, reason in failures.items():
            left_out[batch[i].sample_id] = reason
            self._left_out.note(batch[i].path, reason)

    def _features(self, video: Tensor, plans: list[ClipPlan]) -> Tensor:
        """What is stored of clips, on the host: [n, N, D] or [n, D]."""
        features = self._encoder.encode(video)
        found = features.tokens if self._extraction.pool == "tokens" else features.pooled
        stored = found.to(DTYPES[self._extraction.dtype]).cpu()
        finite = stored.flatten(1).isfinite().all(1)
        if not finite.all():
            path = plans[int((~finite).int().argmax())].path
            if found.isfinite().all():
                raise UserError(
                    f"{path}: found a feature of {found.abs().max().item():.3g}, expected at most "
                    f"{torch.finfo(stored.dtype).max:.3g}, the largest number that --dtype "
                    f"{self._extraction.dtype} holds; use --dtype bf16 or fp32"
                )
            raise UserError(
                f"{path}: found features that are NaN or infinite, expected finite ones; use "
                "another checkpoint"
            )
        return stored

    def _rows(
        self, shard: int, frames: Mapping[int, tuple[int, int]], left_out: Mapping[int, str]
    ) -> list[dict]:
        rows = []
        for clip in self._range(shard):
            entry = self._clips.entries[int(self._clips.video_of[clip])]
            first, last = frames.get(clip, ("", ""))
            rows.append(
                {
                    "path": entry.path,
                    "clip": int(self._clips.number[clip]),
                    "first_frame": first,
                    "last_frame": last,
                    **{f"label_{name}": value for name, value in entry.labels.items()},
                    "left_out": left_out.get(clip, ""),
                }
            )
        return rows
