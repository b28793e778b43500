"""What one optimiser step is. The loop knows when; this knows what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vjepa_fast.models.jepa import VJEPA, encode_clips
from vjepa_fast.models.packed_masks import PackedMasks
from vjepa_fast.training.nonfinite import Guard, step_without_waiting
from vjepa_fast.training.schedules import Schedules, StepValues
from vjepa_fast.training.teacher import Teacher
from vjepa_fast.training.timers import Laps
from vjepa_fast.training.zero.engine import make_engine
from vjepa_fast.training.zero.shards import (
    clip_gradients,
    master_shards,
    publish_masters,
    reduce_gradients,
    unwrap,
)


@dataclass(frozen=True)
class StepResult:
    """What a step gave; tensors stay on the device until somebody logs them.

    Attributes:
        loss: this rank's mean over its micro-batches, fp32 scalar.
        grad_norms: global norm before clipping of "encoder" and "predictor".
        features: target encoder's output of the last micro-batch, [B, N, D].
        values: learning rate, weight decay and momentum used.
    """

    loss: Tensor
    grad_norms: dict[str, Tensor]
    features: Tensor
    values: StepValues

    def global_loss(self) -> Tensor:
        """The loss averaged over ranks. Collective."""
        loss = self.loss.clone()
        dist.all_reduce(loss)
        return loss / dist.get_world_size()


class Trainer:
    """Student, teacher and optimiser of a run.

    Args:
        model: encoder and predictor, with their initial weights.
        schedules: learning rate, weight decay and momentum by step.
        micro_batch, accumulation: clips of a micro-batch; micro-batches of a step on each rank.
        stage: ZeRO stage, 0 to 3.
        bf16: weights and activations in bf16 (masters, averages and losses stay fp32).
        betas, eps: AdamW's.
        clip_grad: largest norm of the encoder's and of the predictor's gradient, None for none.
        offload_optimizer, offload_parameters: see `ZeroConfig`.
        frozen_teacher: weights, by name, of a target encoder that is not averaged but stays.
    """

    def __init__(
        self,
        model: VJEPA,
        schedules: Schedules,
        *,
        micro_batch: int,
        accumulation: int,
        stage: int,
        bf16: bool,
        betas: tuple[float, float],
        eps: float,
        clip_grad: float | None,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        frozen_teacher: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.schedules = schedules
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self.clip_grad = clip_grad
        self.step_number = 0
        target = model.make_target_encoder()  # before the engine hooks and shards the student
        names = {id(p): name for name, p in model.encoder.named_parameters()}
        self.engine = make_engine(
            model,
            micro_batch=micro_batch,
            accumulation=accumulation,
            world=dist.get_world_size(),
            stage=stage,
            bf16=bf16,
            betas=betas,
            eps=eps,
            weight_decay=schedules.weight_decay,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
        )
        self.device = torch.device(self.engine.device)
        self.shards = master_shards(self.engine.optimizer)
        target.to(self.device)
        if bf16:  # the weights alone, as DeepSpeed does to the student: positions stay fp32
            for parameter in target.parameters():
                parameter.data = parameter.data.bfloat16()
        self.teacher = Teacher(target, names, self.shards, frozen_teacher)
        self.guard = Guard(self.optimizer, self.device)
        step_without_waiting(self.optimizer)
        self.laps = Laps(self.device)
        model.encoder.register_forward_hook(lambda *_: self.laps.mark("context"))
        model.predictor.register_forward_hook(lambda *_: self.laps.mark("predictor"))
        model.register_forward_hook(lambda *_: self.laps.mark("predictor"))

    @property
    def optimizer(self) -> object:
        """DeepSpeed's optimiser."""
        return self.engine.optimizer

    def step(self, micro_batches: Iterable[tuple[Tensor, PackedMasks]]) -> StepResult:
        """One optimiser step and one EMA update.

        Args:
            micro_batches: `accumulation` pairs of video (uint8 [B, T, H, W, 3]) and masks, both on
                this rank's device.
        """
        loss, features = self.backward(micro_batches)
        return self.update(loss, features)

    def backward(
        self, micro_batches: Iterable[tuple[Tensor, PackedMasks]]
    ) -> tuple[Tensor, Tensor]:
        """The first half of a step: gradients, accumulated and reduced over ranks.

        Returns:
            this rank's mean loss, fp32 scalar; target features of the last micro-batch, [B, N, D].
        """
        losses: list[Tensor] = []
        features = None
        self.laps.begin()

        def target() -> Tensor:  # last before the loss: its weights may still be on their way
            nonlocal features
            features = self.target_features(video)
            self.laps.mark("target")
            return features

        for video, masks in micro_batches:
            self.laps.mark("data")
            if losses:
                self.engine.step()  # between micro-batches DeepSpeed only counts
            loss = self.engine(video, masks, target)
            self.engine.backward(loss)
            losses.append(loss.detach())
            if len(losses) < self.accumulation:
                self.laps.mark("backward")
        if len(losses) != self.accumulation:
            raise ValueError(
                f"micro_batches: found {len(losses)}, expected {self.accumulation} for a step"
            )
        reduce_gradients(self.optimizer)
        self.laps.mark("backward")
        return torch.stack(losses).mean(), features.view(masks.clips, -1, features.shape[-1])

    def update(self, loss: Tensor, features: Tensor) -> StepResult:
        """The second half: schedules, clipping, AdamW, teacher; see `guard` for bad steps."""
        values = self.schedules.at(self.step_number)
        self._set_schedules(values)
        norms = clip_gradients(self.optimizer, self.clip_grad, self.device)
        self.guard.look(self.step_number, loss, norms)
        self.engine.step()
        self.laps.mark("optimizer")
        self.teacher.update(values.momentum, skip=self.guard.bad)
        self.laps.mark("ema")
        self.step_number += 1
        return StepResult(loss, norms, features, values)

    @torch.no_grad()
    def target_features(self, video: Tensor) -> Tensor:
        """Target encoder's features of all tokens, [B · N, D]."""
        return encode_clips(self.teacher.encoder, video)

    def after_restore(self, step_number: int) -> None:
        """Bring the networks in line with restored masters and averages."""
        publish_masters(self.optimizer)
        self.teacher.publish()
        self.step_number = step_number

    def _set_schedules(self, values: StepValues) -> None:
        for group in unwrap(self.optimizer).param_groups:
            group["lr"] = values.lr
            if not group["name"].endswith("no_decay"):
                group["weight_decay"] = values.weight_decay
