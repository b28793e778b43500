"""Clips and masks of each step on each rank, as pure functions of the step."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.config import Config
from vjepa_fast.config.checks import fits_group
from vjepa_fast.config.fields import divisors, nearest
from vjepa_fast.config.finetune.schema import FinetuneData
from vjepa_fast.config.masks import sample_masks
from vjepa_fast.config.schema import DataConfig
from vjepa_fast.data.decode.pyav import decode_pixels
from vjepa_fast.data.loader import ClipLoader, make_loader
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.plan.clip_plan import ClipBatch
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.workers.process_pool import ProcessPool
from vjepa_fast.errors import UserError
from vjepa_fast.masks import MaskBatch, MaskSampler
from vjepa_fast.models.sequences import PackedMasks, pack_masks


def open_manifests(config: Config) -> list[Entries]:
    """The videos of each of the config's manifests; it takes minutes for millions of them."""
    return [open_manifest(manifest.path) for manifest in config.data.manifests]


def make_planner(config: Config, manifests: Sequence[Entries] | None = None) -> ClipPlanner:
    """Make the config's planner of training clips, of what `open_manifests` gives."""
    data = config.data
    return ClipPlanner(
        manifests or open_manifests(config),
        data.weights,
        num_frames=data.num_frames,
        frame_step=data.frame_step,
        augment=Augment(area=data.area, aspect_ratio=data.aspect_ratio, flip=data.flip),
        seed=config.seed,
        fps=data.fps,
        clips_per_video=data.clips_per_video,
        short_videos=data.short_videos,
        own=[manifest.own for manifest in data.manifests],
        group=config.masks.truncate_group,
    )


def planner_if_readable(config: Config) -> ClipPlanner | None:
    """`make_planner` of a run that was started before; None if its manifests cannot be read.

    What is odd about them was said then, and is not said again.
    """
    log = logging.getLogger("vjepa_fast")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return make_planner(config)
    except (UserError, OSError):
        return None
    finally:
        log.setLevel(level)


def run_loader(
    planner: ClipPlanner,
    batches: Iterable[Sequence[int]],
    data: DataConfig | FinetuneData,
    output: str,
    device: torch.device,
) -> ClipLoader:
    """The loader of a run's micro-batches, as its data section says; bad clips are listed in the
    run's folder.
    """
    return make_loader(
        planner,
        batches,
        data.crop_size,
        backend=data.backend,
        device=device,
        num_workers=data.num_workers,
        prefetch=data.prefetch,
        bad_videos=Path(output) / "bad_videos.jsonl",
        max_bad_fraction=data.max_bad_fraction,
    )


def make_sampler(config: Config, num_frames: int | None = None) -> MaskSampler:
    """Make the config's mask sampler for clips of that many frames, by default data.num_frames."""
    return config.masks.sampler(config.grid_of(num_frames or config.data.num_frames), config.seed)


def packed(masks: MaskBatch, device: torch.device, mask_token: int | None = None) -> PackedMasks:
    """A micro-batch's masks as index tensors on the device; `mask_token` as for `pack_masks`."""
    return pack_masks(
        masks.context_tokens,
        masks.context_seqlens,
        masks.target_tokens,
        masks.target_seqlens,
        masks.num_tokens,
        device,
        mask_token,
    )


def split_batch(config: Config, world_size: int) -> tuple[int, int]:
    """How each of `world_size` processes runs its part of the global batch, see `split_evenly`."""
    optim = config.optim
    return split_evenly(
        optim.global_batch, optim.micro_batch, world_size, partial(fits_group, config)
    )


def split_evenly(
    total: int, wanted: int, world_size: int, fits: Callable[[int], bool]
) -> tuple[int, int]:
    """How each of `world_size` processes runs its part of a global batch.

    Args:
        total: clips of the global batch.
        wanted: largest clips of a micro-batch.
        world_size: number of processes.
        fits: whether that many clips may be a micro-batch.

    Returns:
        Clips of a micro-batch (`wanted`, or a process's whole part if that is less), and
        micro-batches of a step.

    Raises:
        UserError: the global batch does not split evenly; the message names a split that works.
    """
    message = (
        f"optim.micro_batch: found {wanted} clips on each of {world_size} processes, expected a "
        f"divisor of optim.global_batch {total}"
    )
    if total % world_size == 0:
        part = total // world_size
        micro = min(wanted, part)
        if part % micro == 0 and fits(micro):
            return micro, part // micro
        choices = [d for d in divisors(part) if fits(d)]
        if choices:
            raise UserError(f"{message}; set optim.micro_batch to e.g. {nearest(choices, wanted)}")
    fitting = [d for d in divisors(total) if d < world_size and _splits(total, wanted, d, fits)]
    raise UserError(
        f"optim.global_batch: found {total} clips for {world_size} processes, expected a multiple "
        f"of the number of processes; start another number of them, e.g. "
        f"{nearest(fitting, world_size)}"
    )


def _splits(total: int, wanted: int, world_size: int, fits: Callable[[int], bool]) -> bool:
    try:
        split_evenly(total, wanted, world_size, fits)
    except UserError:
        return False
    return True


class Batches:
    """The micro-batches of one rank, from any step on.

    Clip i of a step has the sample id step · global batch + i. A step's ids are split into runs of
    one micro-batch, sorted by length, those of data.num_frames last; micro-batch j of rank r is run
    j · world + r. So every world size sees the same global batches, and the ranks have clips of the
    same length at the same time, as far as the step's runs allow. If the step has a run of
    data.num_frames, the last micro-batch of rank 0 is one: there target features are measured.

    Args:
        config: the run's config.
        rank: rank of this process.
        world: number of ranks.
        manifests: see `open_manifests`; None: they are opened.
    """

    def __init__(
        self, config: Config, rank: int, world: int, manifests: Sequence[Entries] | None = None
    ) -> None:
        self._config = config
        self._rank, self._world = rank, world
        self._micro_batch, _ = split_batch(config, world)
        self._samplers = {n: make_sampler(config, n) for n in config.data.lengths}
        self._planner = make_planner(config, manifests)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self._config.optim.steps

    @property
    def videos(self) -> str:
        """Hash of the videos that sample ids refer to."""
        return self._planner.digest

    def sample_ids(self, step: int) -> list[list[int]]:
        """This rank's sample ids at a step, one list per micro-batch."""
        return [list(ids) for ids in self._runs(step)[self._rank :: self._world]]

    def _runs(self, step: int) -> list[range]:
        """The sample ids of all ranks' micro-batches, those of data.num_frames last."""
        batch, micro = self._config.optim.global_batch, self._micro_batch
        starts = range(step * batch, (step + 1) * batch, micro)
        runs = [range(i, i + micro) for i in sorted(starts, key=self._sort_key)]
        measured = -self._world  # rank 0's last one
        if not self._is_main(runs[measured][0]):
            runs[measured], runs[-1] = runs[-1], runs[measured]
        return runs

    def _sort_key(self, sample_id: int) -> tuple[bool, int]:
        return self._is_main(sample_id), self._planner.num_frames(sample_id)

    def loader(self, first_step: int, device: torch.device) -> ClipLoader:
        """Clips of this rank's micro-batches from a step to the end of the run, decoded ahead.

        Clips that can't be decoded are replaced, and listed in the run's bad_videos.jsonl.

        Args:
            first_step: the first step whose clips are needed.
            device: device of the clips.
        """
        steps = range(first_step, self._config.optim.steps)
        ids = (ids for step in steps for ids in self.sample_ids(step))
        return run_loader(self._planner, ids, self._config.data, self._config.output, device)

    def examples(self, count: int) -> Tensor | None:
        """The run's first clips of data.num_frames that can be decoded, for its pictures.

        They are decoded in a process of their own: an FFmpeg crash costs a clip, not the run.

        Returns:
            uint8 [count or fewer, T, H, W, 3] on the CPU; None if none of the first 10 · count
            clips can be decoded.
        """
        found: list[Tensor] = []
        sample_ids = filter(self._is_main, itertools.count())
        with ProcessPool(1, "vjepa-pictures", modules=(decode_pixels.__module__,)) as pool:
            for sample_id in itertools.islice(sample_ids, 10 * count):
                if len(found) == count:
                    break
                plan = self._planner.plan_one(sample_id)
                entry, size = self._planner.entries[plan.video], self._config.data.crop_size
                with suppress(UserError, OSError):  # the loader replaces and logs this clip
                    clip = pool.submit(decode_pixels, plan, entry, size).result()
                    found.append(torch.from_numpy(clip))
        return torch.stack(found) if found else None

    def masks(self, step: int, ids: Sequence[int]) -> MaskBatch:
        """Masks of these sample ids, whose clips have one length."""
        return sample_masks(self._samplers[self._planner.num_frames(ids[0])], step, ids)

    def example_masks(self, step: int) -> MaskBatch | None:
        """Masks of the step's first micro-batch with clips of data.num_frames, of any rank."""
        ids = next((ids for ids in self._runs(step) if self._is_main(ids[0])), None)
        return None if ids is None else self.masks(step, ids)

    def _is_main(self, sample_id: int) -> bool:
        return self._planner.num_frames(sample_id) == self._config.data.num_frames

    def step(self, step: int, clips: Iterator[ClipBatch]) -> Iterator[tuple[Tensor, PackedMasks]]:
        """This rank's micro-batches of one step, as the trainer takes them.

        Args:
            step: its number.
            clips: `loader`'s, at this step; one batch is taken for each micro-batch.

        Yields:
            Video, uint8 [B, T, H, W, 3], and its masks, both on the loader's device.
        """
        for ids in self.sample_ids(step):
            video = next(clips).video
            masks = self.masks(step, ids)
            yield video, packed(masks, video.device, self._config.mask_token(video.shape[1]))
