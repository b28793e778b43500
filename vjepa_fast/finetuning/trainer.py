"""One step of a fine-tuning: soft-target cross-entropy through encoder and classifier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa_fast.config.finetune.schema import FinetuneConfig
from vjepa_fast.finetuning.model import ClipClassifier, layer_groups
from vjepa_fast.masks.philox import STREAM_DROP_PATH, STREAM_DROPOUT, draw, uniform
from vjepa_fast.models.sequences import drop_path_factors, to_device
from vjepa_fast.training.engine_trainer import EngineTrainer, StepResult
from vjepa_fast.training.schedules import Schedules
from vjepa_fast.training.timers import FINETUNE_PARTS


@dataclass(frozen=True)
class LabeledClips:
    """A micro-batch on the device.

    Attributes:
        video: uint8 [B, T, H, W, 3].
        targets: probabilities of the classes, fp32 [B, C].
        sample_ids: int64 [B], on the host.
    """

    video: Tensor
    targets: Tensor
    sample_ids: np.ndarray


def make_schedules(config: FinetuneConfig, steps: int) -> Schedules:
    """Linear from 0 to the peak, then a cosine to 0; weight decay is constant."""
    optim = config.optim
    return Schedules(
        warmup_steps=round(steps * optim.warmup_epochs / optim.epochs),
        horizon=steps,
        start_lr=0.0,
        peak_lr=optim.lr,
        final_lr=0.0,
        start_weight_decay=optim.weight_decay,
        final_weight_decay=optim.weight_decay,
        start_momentum=0.0,
        final_momentum=0.0,
    )


class FinetuneTrainer(EngineTrainer):
    """Encoder, classifier and optimizer of a run.

    Args:
        model: with its first weights, fp32.
        config: the run's config.
        steps: steps of the run.
        micro_batch, accumulation, bf16: see `EngineTrainer`.

    Raises:
        UserError: see `make_engine`.
    """

    def __init__(
        self,
        model: ClipClassifier,
        config: FinetuneConfig,
        steps: int,
        *,
        micro_batch: int,
        accumulation: int,
        bf16: bool,
    ) -> None:
        self.model, self._seed = model, config.seed
        self._drop_path, self._dropout = config.optim.drop_path, config.optim.head_dropout
        super().__init__(
            model,
            layer_groups(model, config.optim),
            make_schedules(config, steps),
            config.zero,
            betas=config.optim.betas,
            eps=1e-8,
            clip_grad=config.optim.clip_grad,
            micro_batch=micro_batch,
            accumulation=accumulation,
            bf16=bf16,
            parts=FINETUNE_PARTS,
        )

    def step(self, micro_batches: Iterable[LabeledClips]) -> StepResult:
        """One optimizer step. Collective."""

        def losses() -> Iterator[Tensor]:
            for clips in micro_batches:
                self.timer.mark("data")
                logits = self.engine(clips.video, *self._drops(clips.sample_ids))
                loss = F.cross_entropy(logits.float(), clips.targets)
                self.timer.mark("forward")
                yield loss

        loss = self.accumulate(losses())
        norms = self.optimize(loss)
        self.optimizer.share_weights()
        return StepResult(loss, norms)

    def _drops(self, ids: np.ndarray) -> tuple[Tensor | None, Tensor | None]:
        """`drop_path` and `dropout` for `ClipClassifier.forward`, by seed and sample id."""
        drop_path = dropout = None
        if self._drop_path:
            depth = len(self.model.encoder.blocks)
            numbers = uniform(draw(self._seed, STREAM_DROP_PATH, ids, 2 * depth))
            numbers = torch.from_numpy(numbers).view(len(ids), depth, 2).permute(1, 2, 0)
            drop_path = to_device(drop_path_factors(numbers, self._drop_path), self.device)
        if self._dropout:
            numbers = uniform(draw(self._seed, STREAM_DROPOUT, ids, self.model.encoder.width))
            kept = torch.from_numpy(numbers) >= self._dropout
            dropout = to_device((kept / (1 - self._dropout)).float(), self.device)
        return drop_path, dropout

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Set the master weights in fp32, which DeepSpeed makes of weights in bf16 (stage 3, or
        offloaded). Collective.

        Args:
            weights: of every parameter of the model, by name, fp32.
        """
        for shard in self.shards:
            flat = torch.cat([weights[name].reshape(-1) for name in shard.names])
            own = [flat[r.start : r.start + r.count] for r in shard.ranges]
            shard.write(torch.cat([flat[:0], *own]), shard.masters)
        self.after_restore(0)
