"""The config's sections of the training: first weights, optimizer, target encoder, sharding.

The defaults are V-JEPA's recipe (arXiv 2404.08471) where it has one.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vjepa_fast.config.fields import (
    Betas,
    Count,
    FieldError,
    Location,
    NonNegative,
    Positive,
    Section,
    Stage,
    UnitRange,
)


class InitConfig(Section):
    """The weights at step 0. Starting from another run's weights is not resuming it: the optimizer
    state is fresh, and all schedules start at step 0."""

    checkpoint: Location | None = None
    """Run folder or checkpoint to start from, also an imported one; null: all weights are fresh.
    Frames, crop size and mask specs may differ from that run's; the model section may not, except
    mask_tokens, depth_scaled_init and the shape of a predictor that is fresh."""
    encoder: Literal["checkpoint", "fresh"] = "checkpoint"
    """checkpoint: the encoder's trained weights; fresh: random ones."""
    predictor: Literal["checkpoint", "fresh"] = "checkpoint"
    """checkpoint: the predictor's trained weights; fresh: random ones. Where both runs have
    model.mask_tokens shared, the mask token of each clip length starts from that of the same
    length, else of the nearest one (of two equally near ones, the shorter). Otherwise token i
    starts from the checkpoint's token i, or from its last one."""
    target_encoder: Literal["checkpoint", "fresh", "encoder"] = "checkpoint"
    """checkpoint: the EMA weights; fresh: random ones; encoder: what the encoder starts from.
    Ignored if teacher.mode is frozen."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        used = (self.encoder, self.predictor, self.target_encoder)
        if self.checkpoint is not None and "checkpoint" not in used:
            raise FieldError(
                "checkpoint",
                f"found {self.checkpoint}, of which nothing is used, expected that encoder, "
                'predictor or target_encoder is "checkpoint"; set one of them, or this to null',
            )
        return self


class OptimConfig(Section):
    """Optimizer steps, batch, AdamW, and the schedules of learning rate and weight decay."""

    steps: Count = 90_000
    """Optimizer steps of the run. The default is V-JEPA's, for its batch of 3072 clips."""
    global_batch: Count = 3072
    """Clips per optimizer step, over all processes. If you change it, change lr, start_lr, final_lr
    and teacher.momentum too (see docs/training.md)."""
    micro_batch: Count = 24
    """Largest number of clips in one forward and backward pass of a process. Gradients are
    accumulated over micro-batches. Lower it if the GPU runs out of memory. The default is
    V-JEPA's batch per GPU."""
    start_lr: NonNegative = 2e-4
    """Learning rate at the start of the warm-up."""
    lr: Positive = 6.25e-4
    """Learning rate at the end of the warm-up, its peak."""
    lr_schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Learning rate after the warm-up. cosine or linear: from lr to final_lr at the schedules'
    horizon; constant: lr."""
    final_lr: NonNegative = 1e-6
    """Learning rate at the schedules' horizon. Ignored if lr_schedule is constant."""
    warmup_steps: Annotated[int, Field(ge=0, le=2**31 - 1)] = 12_000
    """Steps of the linear warm-up. The default is V-JEPA's, for its 90,000 steps."""
    weight_decay: NonNegative = 0.04
    """Weight decay of the weight matrices at the start."""
    final_weight_decay: NonNegative = 0.4
    """Weight decay of the weight matrices at the schedules' horizon."""
    betas: Betas = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    clip_grad: Positive | None = 10.0
    """Largest gradient norm, for encoder and predictor separately; null: no clipping."""
    schedule_stretch: Annotated[float, Field(ge=1)] = 1.25
    """Horizon of the schedules, as a multiple of optim.steps. Above 1, the run ends before the
    schedules reach their final values."""
    loss_exponent: Annotated[float, Field(ge=1)] = 1.0
    """Exponent p of the loss |prediction - target|^p / p."""
    max_nonfinite_steps: Count = 10
    """The run stops after this many consecutive steps with a non-finite loss or gradient. Each such
    step is skipped."""


class TeacherConfig(Section):
    """The target encoder."""

    mode: Literal["ema", "frozen"] = "ema"
    """ema: an exponential moving average of the encoder's weights; frozen: the target encoder of
    another run, which does not change."""
    checkpoint: Location | None = None
    """With mode frozen only: run folder or checkpoint from which the target encoder is loaded."""
    momentum: UnitRange = (0.998, 1.0)
    """EMA momentum: [at the start, at the schedules' horizon]. Ignored if mode is frozen."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.mode == "frozen") != (self.checkpoint is not None):
            expected = "a run or a checkpoint folder" if self.mode == "frozen" else "null"
            raise FieldError(
                "checkpoint",
                f"found {self.checkpoint or 'null'} with teacher.mode {self.mode}, expected "
                f"{expected}; set teacher.checkpoint for a frozen target encoder only, since an "
                "EMA starts from the encoder",
            )
        return self


class ZeroConfig(Section):
    """ZeRO: what the processes shard."""

    stage: Stage = 1
    """0: nothing is sharded; 1: optimizer state; 2: gradients too; 3: the weights of encoder and
    predictor too, gathered layer by layer. A single process in fp32 always runs as stage 0, unless
    it offloads."""
    offload_optimizer: bool = False
    """Keep master weights, Adam moments and EMA weights in host memory, and run AdamW there."""
    offload_parameters: bool = False
    """At stage 3, keep the shards of the weights in host memory."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.offload_parameters and self.stage != 3:
            raise FieldError(
                "offload_parameters",
                f"found true at zero.stage {self.stage}, expected it only at stage 3, which "
                "shards the weights; set zero.stage to 3, or this to false",
            )
        if self.offload_optimizer and not self.stage:
            raise FieldError(
                "offload_optimizer",
                "found true at zero.stage 0, expected stage 1, 2 or 3, which keep separate "
                "master weights; set zero.stage to 1, or this to false",
            )
        return self
