"""What one optimizer step does; the loop decides when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vjepa_fast.config.optim import OptimConfig, ZeroConfig
from vjepa_fast.models.jepa import VJEPA, encode_clips, feature_loss
from vjepa_fast.models.sequences import PackedMasks
from vjepa_fast.training.nonfinite import NonFiniteGuard
from vjepa_fast.training.schedules import Schedules
from vjepa_fast.training.teacher import Teacher
from vjepa_fast.training.timers import StepTimer
from vjepa_fast.training.zero.engine import make_engine
from vjepa_fast.training.zero.optimizers import adapt, clip_gradients
from vjepa_fast.weights import load_exactly


@dataclass(frozen=True)
class StepResult:
    """The results of a step; tensors stay on the device until they are logged.

    Attributes:
        loss: mean over this rank's micro-batches, fp32 scalar.
        grad_norms: global norm before clipping of "encoder" and "predictor", fp32 scalars.
        features: target encoder's output for the last micro-batch, [B, N, D].
    """

    loss: Tensor
    grad_norms: dict[str, Tensor]
    features: Tensor

    def global_loss(self) -> Tensor:
        """The loss averaged over ranks. Collective."""
        loss = self.loss.clone()
        dist.all_reduce(loss)
        return loss / dist.get_world_size()


class Trainer:
    """Student, teacher and optimizer of a run.

    Args:
        model: encoder and predictor with their initial weights.
        schedules: learning rate, weight decay and momentum by step.
        optim: AdamW, gradient clipping and loss exponent.
        zero: ZeRO stage and offloading.
        micro_batch: clips of a micro-batch.
        accumulation: micro-batches of a step on each rank.
        bf16: weights and activations in bf16; master weights, moments, EMA and losses are fp32.
        frozen_teacher: weights by name of a target encoder that stays as it is; None for an EMA.

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
    ) -> None:
        self.model, self.schedules = model, schedules
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self._clip_grad, self._loss_exponent = optim.clip_grad, optim.loss_exponent
        self.step_number = 0
        target = model.make_target_encoder()  # before the engine hooks and shards the student
        if frozen_teacher is not None:
            load_exactly(target, frozen_teacher, "teacher.checkpoint")
        self.engine = make_engine(
            model,
            optim,
            zero,
            micro_batch=micro_batch,
            accumulation=accumulation,
            world=dist.get_world_size(),
            bf16=bf16,
        )
        self.optimizer = adapt(self.engine)
        self.shards = self.optimizer.shards
        self.device = torch.device(self.engine.device)
        target.to(self.device)
        if bf16:  # only the weights, as DeepSpeed does to the student: positions stay fp32
            for parameter in target.parameters():
                parameter.data = parameter.data.bfloat16()
        followed = [s for s in self.shards if s.part == "encoder" and frozen_teacher is None]
        self.teacher = Teacher(target, followed)
        self.guard = NonFiniteGuard(self.optimizer, self.device)
        self.timer = StepTimer(self.device)
        model.encoder.register_forward_hook(lambda *_: self.timer.mark("context"))
        model.predictor.register_forward_hook(lambda *_: self.timer.mark("predictor"))

    def step(self, micro_batches: Iterable[tuple[Tensor, PackedMasks]]) -> StepResult:
        """One optimizer step and one EMA update. Collective.

        Args:
            micro_batches: `accumulation` pairs of video (uint8 [B, T, H, W, 3]) and masks, both on
                this rank's device.
        """
        loss, features = self.backward(micro_batches)
        return self.update(loss, features)

    def backward(
        self, micro_batches: Iterable[tuple[Tensor, PackedMasks]]
    ) -> tuple[Tensor, Tensor]:
        """The first half of a step: gradients, accumulated and reduced over ranks. Collective.

        Returns:
            Mean loss of this rank, fp32 scalar; target features of the last micro-batch, [B, N, D].
        """
        losses: list[Tensor] = []
        self.timer.begin()
        for video, masks in micro_batches:
            self.timer.mark("data")
            prediction = self.engine(video, masks)
            # The student comes first: its forward pass overlaps the all-gather of the teacher.
            features = self.target_features(video)
            self.timer.mark("target")
            loss = feature_loss(prediction, features, masks, self._loss_exponent)
            self.timer.mark("predictor")
            del prediction  # its memory is free before the backward pass
            self.engine.backward(loss)
            losses.append(loss.detach())
            if len(losses) < self.accumulation:
                self.engine.step()  # only counts: DeepSpeed steps after the last micro-batch
                self.timer.mark("backward")
        if len(losses) != self.accumulation:
            raise ValueError(
                f"micro_batches: found {len(losses)}, expected {self.accumulation} for a step; "
                "pass all micro-batches of the step"
            )
        self.optimizer.reduce_gradients()
        self.timer.mark("backward")
        return torch.stack(losses).mean(), features.view(masks.clips, -1, features.shape[-1])

    def update(self, loss: Tensor, features: Tensor) -> StepResult:
        """The second half of a step: clipping, AdamW, EMA; a non-finite step is skipped.

        Args:
            loss, features: as `backward` returned them.
        """
        step = self.step_number
        self._set_schedules(step)
        norms = clip_gradients(self.optimizer, self._clip_grad, self.device)
        self.guard.check(step, loss, norms)
        self.engine.step()
        self.timer.mark("optimizer")
        self.teacher.update(self.schedules.momentum(step), skip=self.guard.skip)
        self.timer.mark("ema")
        self.step_number += 1
        return StepResult(loss, norms, features)

    @torch.no_grad()
    def target_features(self, video: Tensor) -> Tensor:
        """Target encoder's features of all tokens, [B · N, D]."""
        return encode_clips(self.teacher.network(), video)

    def after_restore(self, step_number: int) -> None:
        """Update both networks from restored master and EMA weights. Collective."""
        self.optimizer.copy_masters_to_model()
        self.teacher.copy_ema_to_network()
        self.step_number = step_number

    def _set_schedules(self, step: int) -> None:
        lr, weight_decay = self.schedules.lr(step), self.schedules.weight_decay(step)
        for group in self.optimizer.torch.param_groups:
            group["lr"] = lr
            if group["decays"]:
                group["weight_decay"] = weight_decay
