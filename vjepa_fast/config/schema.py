"""The sections of a config: every key with its type, its default and its documentation.

The defaults are the recipe of the paper (V-JEPA, arXiv 2404.08471) where it has one.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from vjepa_fast.config.fields import (
    Count,
    FieldError,
    FractionRange,
    Location,
    Positive,
    PositiveRange,
    Section,
    Unit,
    divisors,
    multiple,
    nearest,
    show,
)
from vjepa_fast.config.masks import MasksConfig
from vjepa_fast.config.optim import OptimConfig, TeacherConfig, ZeroConfig
from vjepa_fast.config.presets import ENCODER_PRESETS


class DataConfig(Section):
    """The videos, and how clips are sampled from them."""

    manifests: list[Location] = Field(min_length=1, examples=[["data/train.csv"]])
    """Files that list the videos: CSV or Parquet files written by `vjepa-fast index`, or text
    lists."""
    weights: list[Positive] | None = None
    """Relative sampling weight of each manifest; null: all videos equally often."""
    num_frames: Count = 16
    """Frames per clip."""
    frame_step: Count = 4
    """Step between the frames of a clip, in frames of the video."""
    fps: Positive | None = None
    """Frames per second at which a clip is sampled, by the video's time stamps; null: use
    frame_step."""
    clips_per_video: Count = 1
    """Clips from each draw of a video. The video is divided into this many equal parts, and one
    clip is taken from each part. The clips have consecutive sample ids."""
    short_videos: Literal["repeat_last", "wrap", "drop"] = "repeat_last"
    """Videos shorter than a clip. repeat_last: repeat the last frame; wrap: start again from the
    first frame; drop: leave the video out."""
    crop_size: Count = 224
    """Height and width of a clip after the random resized crop, in pixels."""
    area: FractionRange = (0.3, 1.0)
    """Area of the random crop as a fraction of the frame: [smallest, largest]."""
    aspect_ratio: PositiveRange = (0.75, 1.35)
    """Width divided by height of the random crop: [smallest, largest]."""
    flip: bool = True
    """Flip each clip horizontally with probability 0.5. Set to false if left and right matter."""
    backend: Literal["auto", "dali", "pyav"] = "auto"
    """The decoder. auto: DALI if it can decode at least half of the videos, else PyAV. With DALI,
    PyAV decodes the videos that DALI cannot decode."""
    num_workers: Count = 2
    """Decoding workers of each training process: processes with PyAV (a file that crashes FFmpeg
    loses only its own clip), threads with DALI."""
    prefetch: Count = 2
    """Micro-batches that are decoded ahead of training."""
    max_bad_fraction: Unit = 0.05
    """Largest fraction of clips that may fail to decode and be replaced. Above it, the run stops
    with an error."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.manifests):
            raise FieldError(
                "weights",
                f"found a list of {len(self.weights)}, expected one weight for each of the "
                f"data.manifests ({len(self.manifests)}); add or remove weights, or write null",
            )
        return self


def _check_heads(width: int, heads: int, key: str) -> None:
    if width % heads:
        raise FieldError(
            "width",
            f"found {width}, expected a multiple of its {heads} heads; choose e.g. "
            f"{multiple(width, heads)}, or set {key}.heads to {nearest(divisors(width), heads)}",
        )


class EncoderConfig(Section):
    """The shape of the encoder, and of the target encoder."""

    width: Count = Field(examples=[1024])
    """Features of a token."""
    depth: Count = Field(examples=[24])
    """Number of transformer blocks."""
    heads: Count = Field(examples=[16])
    """Number of attention heads, a divisor of the width."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the MLP divided by the width."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_heads(self.width, self.heads, "model.encoder")
        if not (self.width * self.mlp_ratio).is_integer():
            raise FieldError(
                "mlp_ratio",
                f"found {self.mlp_ratio}, expected a whole hidden width from model.encoder.width "
                f"{self.width}; choose e.g. {max(1, round(self.mlp_ratio))}",
            )
        return self


def _preset_shape(value: Any) -> Any:
    """Replace a preset's name by its shape; leave anything else for EncoderConfig to check."""
    if not isinstance(value, str):
        return value
    if value not in ENCODER_PRESETS:
        raise ValueError(
            f"found {show(value)}, expected one of {', '.join(ENCODER_PRESETS)} or an object; "
            'write e.g. "vit_large" or {"width": 1024, "depth": 24, "heads": 16}'
        )
    return dict(vars(ENCODER_PRESETS[value]))


class PredictorConfig(Section):
    """The shape of the predictor, a narrow transformer."""

    width: Count = 384
    """Features of a token inside the predictor."""
    depth: Count = 12
    """Number of transformer blocks."""
    heads: Count | None = None
    """Number of attention heads; null: as many as the encoder has."""


class ModelConfig(Section):
    """Encoder, predictor, and how a clip becomes tokens."""

    encoder: Annotated[EncoderConfig, BeforeValidator(_preset_shape)] = Field(
        examples=["vit_large"]
    )
    """The encoder's shape: an object, or vit_tiny, vit_small, vit_base, vit_large or vit_huge."""
    patch_size: Count = 16
    """Height and width of a patch, in pixels."""
    tubelet_size: Count = 2
    """Frames per tubelet. A token is a tubelet of patch_size x patch_size pixels."""
    uniform_power: bool = True
    """Features of the position table. true: time, height and width have equal fractions; false:
    time has half, height and width a quarter each."""
    predictor: PredictorConfig = PredictorConfig()
    """The predictor's shape."""
    depth_scaled_init: bool = False
    """Divide the initial output projections of block l = 1, 2, … by sqrt(2 l). The paper's models
    were trained without it."""

    @property
    def predictor_heads(self) -> int:
        """Attention heads of the predictor, by default as many as the encoder has."""
        return self.predictor.heads or self.encoder.heads

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_positions("encoder", self.encoder.width)
        try:
            _check_heads(self.predictor.width, self.predictor_heads, "model.predictor")
        except FieldError as error:
            raise FieldError(f"predictor.{error.key}", str(error)) from None
        self._check_positions("predictor", self.predictor.width)
        return self

    def _check_positions(self, network: str, width: int) -> None:
        """Check that the width holds sine-cosine pairs for each of the three position axes.

        With uniform_power, each axis has a third of the width, rounded up to pairs, and the last
        axis has the rest. Without it, time has half of the width, and height and width a quarter
        each.
        """
        if self.uniform_power and (width % 2 or width < 10):
            raise FieldError(
                f"{network}.width",
                f"found {width}, expected an even number of at least 10, so that each of the three "
                f"position axes has features; choose e.g. {max(12, width + 1)}",
            )
        if not self.uniform_power and width % 8:
            raise FieldError(
                f"{network}.width",
                f"found {width}, expected a multiple of 8, which the position table needs when "
                f"model.uniform_power is false; choose e.g. {multiple(width, 8)}",
            )


class LogConfig(Section):
    """What is logged, and how often."""

    every: Count = 10
    """Steps between lines of metrics. Each line costs one host sync."""
    collapse_every: Count = 100
    """Steps between measurements of the collapse monitor on the target features."""
    pictures_every: Count | None = None
    """Steps between pictures of masks and features; null: only at the end."""
    histograms_every: Count | None = None
    """Steps between TensorBoard histograms of weights and target features; null: none."""
    wandb: Annotated[str, Field(min_length=1)] | None = None
    """Weights & Biases project to which the metrics are also logged; null: none."""


class CheckpointConfig(Section):
    """When checkpoints are written, and which are kept."""

    every: Count = 1000
    """Steps between checkpoints."""
    keep_last: Count = 2
    """Number of newest checkpoints to keep."""
    keep_every: Count | None = None
    """Checkpoints at multiples of this many steps are never deleted; null: none."""
    background: bool = False
    """Continue training while a checkpoint is written, from a copy in host memory."""


class Config(Section):
    """A whole pretraining run. `output`, `data.manifests` and `model.encoder` have no default."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, and of every random choice of the data and the masks."""
    output: Location = Field(examples=["runs/my_run"])
    """The run's folder: checkpoints, metrics, curves."""
    data: DataConfig
    """Videos and clips."""
    model: ModelConfig
    """Encoder and predictor."""
    masks: MasksConfig = MasksConfig()
    """Mask specs and truncation."""
    optim: OptimConfig = OptimConfig()
    """Steps, batch, AdamW, schedules."""
    teacher: TeacherConfig = TeacherConfig()
    """The target encoder: EMA or frozen."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of forward and backward; master weights are fp32. auto: bf16 on CUDA, else fp32."""
    zero: ZeroConfig = ZeroConfig()
    """DeepSpeed's ZeRO."""
    compile: bool = False
    """Run torch.compile on each transformer block."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass recomputes to save memory. none: nothing; selective: norms and GELU;
    full: whole blocks. The gradients are the same."""
    log: LogConfig = LogConfig()
    """Metrics and pictures."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a clip by axis, (T', H', W')."""
        side = self.data.crop_size // self.model.patch_size
        return self.data.num_frames // self.model.tubelet_size, side, side

    def precision_on(self, device: str) -> Literal["bf16", "fp32"]:
        """The precision on a device type such as "cuda" or "cpu", with "auto" resolved."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device == "cuda" else "fp32"
