"""What one optimizer step does; the loop decides when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa_fast.config.optim import OptimConfig, ZeroConfig
from vjepa_fast.models.jepa import VJEPA, Objective, encode_clips, feature_loss, pixel_loss
from vjepa_fast.models.sequences import PackedMasks
from vjepa_fast.training.engine_trainer import EngineTrainer, StepResult
from vjepa_fast.training.schedules import Schedules
from vjepa_fast.training.teacher import Teacher
from vjepa_fast.training.timers import PARTS
from vjepa_fast.training.zero.engine import parameter_groups
from vjepa_fast.weights import load_exactly


@dataclass(frozen=True)
class PretrainingResult(StepResult):
    """The results of a step, with gradient norms of "encoder" and "predictor".

    Attributes:
        features: target encoder's output for the last micro-batch, [B, N, D]; None without one.
        video: the last micro-batch's, uint8 [B, T, H, W, 3].
    """

    features: Tensor | None
    video: Tensor


class Trainer(EngineTrainer):
    """Student, teacher and optimizer of a run.

    Attributes:
        teacher: the target encoder; None where pixels are predicted.

    Args:
        model: encoder and predictor with their initial weights.
        schedules: learning rate, weight decay and momentum by step.
        optim: AdamW, gradient clipping and loss exponent.
        zero: ZeRO stage and offloading.
        micro_batch: clips of a micro-batch.
        accumulation: micro-batches of a step on each rank.
        bf16: weights and activations in bf16; master weights, moments, EMA and losses are fp32.
        frozen_teacher: weights by name of a target encoder that stays as it is; None for an EMA.
        objective: what is predicted.

    Raises:
        UserError: `frozen_teacher` is of another encoder, or see `make_engine`.
    """

    def __init__(
        self,
        model: VJEPA,
        schedules: Schedules,
        optim: OptimConfig,
        zero: ZeroConfig,
        *,
        micro_batch: int,
        accumulation: int,
        bf16: bool,
        frozen_teacher: Mapping[str, Tensor] | None = None,
        objective: Objective = "features",
    ) -> None:
        self.model, self._loss_exponent = model, optim.loss_exponent
        target = None
        if objective == "features":
            target = model.make_target_encoder()  # before the engine hooks and shards the student
        if target is not None and frozen_teacher is not None:
            load_exactly(target, frozen_teacher, "teacher.checkpoint")
        super().__init__(
            model,
            parameter_groups(model, optim.weight_decay),
            schedules,
            zero,
            betas=optim.betas,
            eps=optim.eps,
            clip_grad=optim.clip_grad,
            micro_batch=micro_batch,
            accumulation=accumulation,
            bf16=bf16,
            parts=PARTS,
        )
        self.teacher = None
        if target is not None:
            target.to(self.device)
            if bf16:  # only the weights, as DeepSpeed does to the student: positions stay fp32
                for parameter in target.parameters():
                    parameter.data = parameter.data.bfloat16()
            followed = [s for s in self.shards if s.part == "encoder" and frozen_teacher is None]
            self.teacher = Teacher(target, followed)
        model.predictor.register_forward_hook(lambda *_: self.timer.mark("predictor"))
        model.encoder.register_forward_hook(  # but not for `result_features`
            lambda *_: self.timer.mark("context") if torch.is_grad_enabled() else None
        )

    @property
    def ema(self) -> Mapping[str, list[Tensor]]:
        return self.teacher.ema if self.teacher else {}

    def step(self, micro_batches: Iterable[tuple[Tensor, PackedMasks]]) -> PretrainingResult:
        """One optimizer step and one EMA update. Collective.

        Args:
            micro_batches: `accumulation` pairs of video (uint8 [B, T, H, W, 3]) and masks, both on
                this rank's device.
        """
        return self.update(*self.backward(micro_batches))

    def backward(
        self, micro_batches: Iterable[tuple[Tensor, PackedMasks]]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The first half of a step: gradients, accumulated and reduced over ranks. Collective.

        Returns:
            Mean loss of this rank, fp32 scalar; features and video of `PretrainingResult`.
        """
        last: list[Tensor | None] = []

        def target(video: Tensor) -> Tensor:
            features = self.target_features(video)
            self.timer.mark("target")
            return features

        def losses() -> Iterator[Tensor]:
            for video, masks in micro_batches:
                self.timer.mark("data")
                # Gathered bucket by bucket, the target encoder comes first: the student's weights
                # are gathered behind it. Else its all-gather is hidden behind the student.
                first = self.teacher and self.teacher.waits_by_bucket
                features = target(video) if first else None
                prediction = self.engine(video, masks)
                if self.teacher:
                    features = target(video) if features is None else features
                    loss = feature_loss(prediction, features, masks, self._loss_exponent)
                    features = features.view(masks.clips, -1, features.shape[-1])
                else:
                    loss = pixel_loss(prediction, video, masks, self.model.encoder.patch_embed)
                self.timer.mark("predictor")
                last[:] = [features, video]
                del prediction  # its memory is free before the backward pass
                yield loss

        return self.accumulate(losses()), *last

    def update(self, loss: Tensor, features: Tensor | None, video: Tensor) -> PretrainingResult:
        """The second half of a step: clipping, AdamW, EMA; a non-finite step is skipped.

        Args:
            loss, features, video: as `backward` returned them.
        """
        step = self.step_number
        norms = self.optimize(loss)
        if self.teacher:
            self.teacher.update(self.schedules.momentum(step), skip=self.guard.skip)
        self.optimizer.share_weights()  # in the order in which the next step uses them
        self.timer.mark("ema")
        return PretrainingResult(loss, norms, features, video)

    @torch.no_grad()
    def target_features(self, video: Tensor) -> Tensor:
        """Target encoder's features of all tokens, [B · N, D]."""
        return encode_clips(self.teacher.encoder, video)

    @torch.no_grad()
    def result_features(self, video: Tensor) -> Tensor:
        """Features of all tokens by the run's result, [B · N, D]: the target encoder or, where that
        is frozen or there is none, the trained one, which at ZeRO stage 3 no rank has.
        """
        if self.ema:
            return self.target_features(video)
        return encode_clips(self.model.encoder, video)

    def after_restore(self, step_number: int) -> None:
        """Update both networks from restored master and EMA weights. Collective."""
        super().after_restore(step_number)
        if self.teacher:
            self.teacher.copy_ema_to_network()
