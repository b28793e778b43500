"""What every training has of a step: accumulated gradients, clipping, AdamW, skipped steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vjepa_fast.config.optim import ZeroConfig
from vjepa_fast.training.schedules import Schedules
from vjepa_fast.training.timers import StepTimer
from vjepa_fast.training.zero.engine import make_engine
from vjepa_fast.training.zero.nonfinite import NonFiniteGuard
from vjepa_fast.training.zero.optimizers import adapt, clip_gradients


@dataclass(frozen=True)
class StepResult:
    """The results of a step; tensors stay on the device until they are logged.

    Attributes:
        loss: mean over this rank's micro-batches, fp32 scalar.
        grad_norms: global norm before clipping of each part, fp32 scalars.
    """

    loss: Tensor
    grad_norms: dict[str, Tensor]

    def global_loss(self) -> Tensor:
        """The loss averaged over ranks. Collective."""
        loss = self.loss.clone()
        dist.all_reduce(loss)
        return loss / dist.get_world_size()


class EngineTrainer:
    """A model in its DeepSpeed engine; subclasses add the loss.

    Args:
        model: with its initial weights.
        groups: its parameter groups, see `zero.engine.parameter_groups`.
        schedules: learning rate and weight decay by step.
        zero: ZeRO stage and offloading.
        betas, eps: AdamW's.
        clip_grad: largest gradient norm of each part; None: only measured.
        micro_batch: clips of a micro-batch.
        accumulation: micro-batches of a step on each rank.
        bf16: weights and activations in bf16; master weights, moments and losses are fp32.
        parts: of a step, whose time is measured.

    Attributes:
        ema: fp32 EMA weights by group, laid out as the masters; saved in checkpoints.
        step_number: steps done.

    Raises:
        UserError: see `make_engine`.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict],
        schedules: Schedules,
        zero: ZeroConfig,
        *,
        betas: tuple[float, float],
        eps: float,
        clip_grad: float | None,
        micro_batch: int,
        accumulation: int,
        bf16: bool,
        parts: Sequence[str],
    ) -> None:
        self.schedules = schedules
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self._clip_grad = clip_grad
        self.step_number = 0
        self.engine = make_engine(
            model,
            groups,
            zero,
            betas=betas,
            eps=eps,
            micro_batch=micro_batch,
            accumulation=accumulation,
            world=dist.get_world_size(),
            bf16=bf16,
        )
        self.optimizer = adapt(self.engine, zero.stage, bf16)
        self.shards = self.optimizer.shards
        self.device = torch.device(self.engine.device)
        self.guard = NonFiniteGuard(self.optimizer, self.device)
        self.timer = StepTimer(self.device, parts)

    @property
    def ema(self) -> Mapping[str, list[Tensor]]:
        return {}

    def accumulate(self, losses: Iterable[Tensor]) -> Tensor:
        """Gradients of a step, accumulated and reduced over ranks. Collective.

        At stages 0 to 2 the reduction overlaps with the last micro-batch's backward pass.

        Args:
            losses: one for each of `accumulation` micro-batches, made as it is asked for.

        Returns:
            Mean loss of this rank, fp32 scalar.
        """
        found: list[Tensor] = []
        self.timer.begin()
        for loss in losses:
            done = len(found) + 1
            self.optimizer.begin_backward(first=done == 1, last=done == self.accumulation)
            self.engine.backward(loss)
            found.append(loss.detach())
            if done < self.accumulation:
                self.engine.step()  # only counts: DeepSpeed steps after the last micro-batch
                self.timer.mark("backward")
        if len(found) != self.accumulation:
            raise ValueError(
                f"micro_batches: found {len(found)}, expected {self.accumulation} for a step; "
                "pass all micro-batches of the step"
            )
        self.optimizer.reduce_gradients()
        self.timer.mark("backward")
        return torch.stack(found).mean()

    def optimize(self, loss: Tensor) -> dict[str, Tensor]:
        """Clip the gradients and take the step, unless something is not finite. Collective.

        `optimizer.share_weights` follows.

        Args:
            loss: as `accumulate` returned it.

        Returns:
            Gradient norm before clipping of each part, fp32 scalars.
        """
        step = self.step_number
        lr, weight_decay = self.schedules.lr(step), self.schedules.weight_decay(step)
        for group in self.optimizer.torch.param_groups:
            group["lr"] = lr * group["lr_factor"]
            if group["decays"]:
                group["weight_decay"] = weight_decay
        norms = clip_gradients(self.optimizer, self._clip_grad, self.device)
        self.guard.check(step, loss, norms)
        self.engine.step()
        self.timer.mark("optimizer")
        self.step_number += 1
        return norms

    def after_restore(self, step_number: int) -> None:
        """Update the model from restored master weights. Collective."""
        self.optimizer.copy_masters_to_model()
        self.step_number = step_number
