"""The configuration of a run: one typed JSON file. Every mistake becomes one UserError sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)

from vjepa_fast.config.checks import check_combinations
from vjepa_fast.config.fields import (
    Betas,
    Count,
    FractionRange,
    NonNegative,
    Positive,
    PositiveRange,
    Section,
    Stage,
    Unit,
    UnitRange,
    preset_shape,
)
from vjepa_fast.config.load import apply_override, read_json_object, sentence
from vjepa_fast.config.masks import MasksConfig


class DataConfig(Section):
    """Which videos, and how a clip is cut from one."""

    manifests: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1, examples=[["data/train.csv"]]
    )
    """CSV files that list the videos, as `vjepa-fast index` writes them."""
    weights: list[Positive] | None = None
    """How often each manifest is drawn from, relative to the others; null: all videos alike."""
    num_frames: Count = 16
    """Frames in a clip."""
    frame_step: Count = 4
    """Every how many frames of the video one is taken."""
    fps: Positive | None = None
    """Frames of the clip per second of the video, by time stamps; null: as frame_step says."""
    clips_per_video: Count = 1
    """Clips that a video gives when its turn comes, from equal parts of it, one after another."""
    short_videos: Literal["repeat_last", "wrap", "drop"] = "repeat_last"
    """Videos shorter than a clip: repeat the last frame, start over, or leave them out."""
    crop_size: Count = 224
    """Height and width of a clip, in pixels."""
    area: FractionRange = (0.3, 1.0)
    """Area of the random crop, as a fraction of the frame: smallest, largest."""
    aspect_ratio: PositiveRange = (0.75, 1.35)
    """Width over height of the random crop: smallest, largest."""
    flip: bool = True
    """Whether every other clip, by chance, is mirrored. Off where left and right have a meaning."""
    backend: Literal["auto", "dali", "pyav"] = "auto"
    """What decodes; auto: DALI where it can decode half of the videos or more, else PyAV. With
    DALI, PyAV decodes those that it can't."""
    num_workers: Count = 2
    """What decodes at the same time, for each training process: processes of their own where PyAV
    decodes (so that a file that crashes FFmpeg costs its clip only), threads where DALI does."""
    prefetch: Count = 2
    """Micro-batches that are decoded ahead."""
    max_bad_fraction: Unit = 0.05
    """Clips that may turn out undecodable and be replaced, as a share of all; beyond, a process
    stops the run."""


class EncoderConfig(Section):
    """The shape of the encoder (and of its target encoder)."""

    width: Count = Field(examples=[1024])
    """Features of a token."""
    depth: Count = Field(examples=[24])
    """Transformer blocks."""
    heads: Count = Field(examples=[16])
    """Attention heads; they divide the width."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the MLP, relative to the width."""


class PredictorConfig(Section):
    """The shape of the predictor, a narrow transformer."""

    width: Count = 384
    """Features of a token inside the predictor."""
    depth: Count = 12
    """Transformer blocks."""
    heads: Count | None = None
    """Attention heads; null: as many as the encoder has."""


class ModelConfig(Section):
    """Encoder, predictor, and how a clip becomes tokens."""

    encoder: Annotated[EncoderConfig, BeforeValidator(preset_shape)] = Field(examples=["vit_large"])
    """The encoder's shape: an object, or vit_tiny, vit_small, vit_base, vit_large or vit_huge."""
    patch_size: Count = 16
    """Height and width of a patch, in pixels."""
    tubelet_size: Count = 2
    """Frames in a tubelet, the time step of a token."""
    uniform_power: bool = True
    """Position table: true gives time, height and width equal shares; false gives time half."""
    predictor: PredictorConfig = PredictorConfig()
    """The predictor's shape."""
    depth_scaled_init: bool = False
    """Whether block l starts with output projections divided by sqrt(2 l), as V-JEPA's did not."""


class OptimConfig(Section):
    """Optimiser steps, batch, AdamW and the schedules."""

    steps: Count = Field(examples=[90000])
    """Optimiser steps of the run."""
    global_batch: Count = Field(examples=[3072])
    """Clips per step, over all processes."""
    micro_batch: Count = Field(examples=[24])
    """Clips that one process runs at a time, at most; the rest of its share accumulates."""
    start_lr: NonNegative = 2e-4
    """Learning rate where the warm-up starts."""
    lr: Positive = Field(examples=[6.25e-4])
    """Learning rate where the warm-up ends: its peak."""
    final_lr: NonNegative = 1e-6
    """Learning rate at the schedules' horizon."""
    warmup_steps: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(examples=[12000])
    """Steps of the linear warm-up."""
    weight_decay: NonNegative = 0.04
    """Weight decay of the matrices at the start."""
    final_weight_decay: NonNegative = 0.4
    """Weight decay of the matrices at the schedules' horizon."""
    betas: Betas = (0.9, 0.999)
    """AdamW's two decay rates."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    clip_grad: Positive | None = 10.0
    """Largest gradient norm, of encoder and predictor apart; null: no clipping."""
    schedule_stretch: Annotated[float, Field(ge=1)] = 1.25
    """The schedules' horizon, relative to the steps."""
    loss_exponent: Annotated[float, Field(ge=1)] = 1.0
    """p of the loss |prediction - target|^p / p."""
    max_nonfinite_steps: Count = 10
    """Steps in a row with a loss or a gradient that is not finite, each of which is skipped, that
    stop the run."""


class TeacherConfig(Section):
    """The target encoder."""

    mode: Literal["ema", "frozen"] = "ema"
    """ema: the average of the encoder's weights; frozen: one that was trained before, and stays."""
    momentum: UnitRange = (0.998, 1.0)
    """The EMA's momentum at the start and at the schedules' horizon. Ignored where frozen."""
    checkpoint: Annotated[str, Field(min_length=1)] | None = None
    """Where frozen: the run, or the checkpoint, whose target encoder it is."""


class ZeroConfig(Section):
    """DeepSpeed's ZeRO."""

    stage: Stage = 1
    """What the processes share out: 0 nothing, 1 the optimiser's state, 2 the gradients as well,
    3 encoder's and predictor's weights too, gathered layer by layer as they are used. A single
    process in fp32 has nothing to share and always steps as at stage 0, unless it offloads."""
    offload_optimizer: bool = False
    """Masters, moments and the teacher's average in the host's memory, where AdamW then runs."""
    offload_parameters: bool = False
    """At stage 3, the shards of the weights in the host's memory."""


class LogConfig(Section):
    """What is written down, and when."""

    every: Count = 10
    """Steps between lines of metrics. Each line waits for the device once."""
    collapse_every: Count = 100
    """Steps between the collapse monitor's measurements."""
    pictures_every: Count | None = None
    """Steps between pictures of masks and features; null: only at the end."""
    histograms_every: Count | None = None
    """Steps between TensorBoard's histograms of weights and target features; null: none."""
    wandb: Annotated[str, Field(min_length=1)] | None = None
    """The Weights & Biases project that also gets the metrics; null: none."""


class CheckpointConfig(Section):
    """When the run is saved."""

    every: Count = 1000
    """Steps between checkpoints."""
    keep_last: Count = 2
    """Newest checkpoints that are kept."""
    keep_every: Count | None = None
    """Checkpoints at multiples of so many steps are kept for good; null: none."""
    background: bool = False
    """Whether training goes on while a checkpoint is written, from a copy in the host's memory."""


class Config(Section):
    """A whole pretraining run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random choice of the run is a function of this seed and its position."""
    output: Annotated[str, Field(min_length=1)] = Field(examples=["runs/my_run"])
    """The run's folder: checkpoints, metrics, curves."""
    data: DataConfig
    """Videos and clips."""
    model: ModelConfig
    """Encoder and predictor."""
    masks: MasksConfig
    """Mask specs and truncation."""
    optim: OptimConfig
    """Steps, batch, AdamW, schedules."""
    teacher: TeacherConfig = TeacherConfig()
    """The target encoder: averaged, or frozen."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of forward and backward (masters are fp32); auto: bf16 on CUDA, fp32 on CPU."""
    zero: ZeroConfig = ZeroConfig()
    """DeepSpeed's ZeRO."""
    compile: bool = False
    """Whether torch.compile runs on each transformer block."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What is computed again in the backward pass rather than kept: nothing; norms and GELU; whole
    blocks. The gradients are the same."""
    log: LogConfig = LogConfig()
    """Metrics."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a clip by axis, (T', H', W')."""
        side = self.data.crop_size // self.model.patch_size
        return self.data.num_frames // self.model.tubelet_size, side, side

    @property
    def predictor_heads(self) -> int:
        """The predictor's attention heads, the encoder's unless given."""
        return self.model.predictor.heads or self.model.encoder.heads

    def precision_on(self, device: str) -> Literal["bf16", "fp32"]:
        """The precision on a device type such as "cuda" or "cpu", with "auto" resolved."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device == "cuda" else "fp32"

    @model_validator(mode="after")
    def _combinations(self) -> "Config":
        check_combinations(self)
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _one_sentence(cls, data: Any, handler: ValidatorFunctionWrapHandler) -> "Config":
        try:
            return handler(data)
        except ValidationError as error:
            raise sentence(error, cls) from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a JSON config, applies `key.path=value` overrides in order, and checks the whole.

    Raises UserError: one sentence with the key, what was found, what was expected and the fix.
    """
    data = read_json_object(path)
    for override in overrides:
        apply_override(Config, data, override)
    return parse_config(data)


def parse_config(data: Any) -> Config:
    """Checks a whole config, given as plain data.

    Raises UserError: one sentence with the key, what was found, what was expected and the fix.
    """
    return Config.model_validate(data)
