"""The sections of a config: every key with its type, its default and its documentation.

The defaults are V-JEPA's recipe (arXiv 2404.08471) where it has one.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    field_serializer,
    model_validator,
)

from vjepa_fast.config.fields import (
    Count,
    FieldError,
    FractionRange,
    Location,
    Positive,
    PositiveRange,
    Section,
    Unit,
    show,
)
from vjepa_fast.config.masks import MasksConfig
from vjepa_fast.config.networks import ModelConfig
from vjepa_fast.config.optim import InitConfig, OptimConfig, TeacherConfig, ZeroConfig


class ManifestConfig(Section):
    """A manifest with clips of its own. A manifest without is written as its path alone."""

    path: Location = Field(examples=["data/train.csv"])
    """File that lists the videos."""
    num_frames: Count | None = None
    """Frames per clip; null: data.num_frames. An image is repeated in all of them."""
    frame_step: Count | None = None
    """Step between the frames of a clip; null: data.frame_step. If it is set, data.fps does not
    apply to this manifest."""
    fps: Positive | None = None
    """Frames per second of a clip; null: data.fps. An image ignores it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fps is not None and self.frame_step is not None:
            raise FieldError(
                "frame_step",
                f"found {self.frame_step} beside fps {self.fps:g}, expected only one of them; "
                "remove the other",
            )
        return self

    @property
    def own(self) -> dict[str, int | float | None]:
        """What of num_frames, frame_step and fps differs from the data section's."""
        found = {"num_frames": self.num_frames, "frame_step": self.frame_step, "fps": self.fps}
        found = {key: value for key, value in found.items() if value is not None}
        return found | {"fps": None} if "frame_step" in found else found


def _manifest(value: Any) -> Any:
    """A path alone as an object; leave anything else for ManifestConfig to check."""
    if isinstance(value, str) and value:
        return {"path": value}
    if not isinstance(value, dict | ManifestConfig):
        raise ValueError(
            f"found {show(value)}, expected the path of a manifest, or an object with its path; "
            'write e.g. "data/train.csv" or {"path": "data/train.csv", "num_frames": 64}'
        )
    return value


class DataConfig(Section):
    """The videos, and how clips are sampled from them."""

    manifests: list[Annotated[ManifestConfig, BeforeValidator(_manifest)]] = Field(
        min_length=1, examples=[["data/train.csv"]]
    )
    """Files that list the videos: CSV or Parquet files written by `vjepa-fast index`, or text
    lists. An object instead of a path gives a manifest clips of its own."""
    weights: list[Positive] | None = None
    """Relative sampling weight of each manifest; null: all videos equally often."""
    num_frames: Count = 16
    """Frames per clip. With several lengths: of the manifests that have none of their own, of the
    pictures of a run, and of the probe."""
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
        if self.num_frames not in self.lengths:
            raise FieldError(
                "num_frames",
                f"found {self.num_frames}, which no manifest has, expected the frames per clip of "
                f"one of them; set it to {self.lengths[0]}",
            )
        return self

    @field_serializer("manifests")
    def _shortest(self, manifests: list[ManifestConfig]) -> list[str | dict[str, Any]]:
        """Each with what differs from this section alone: that makes two recipes different."""
        plain = {"num_frames": self.num_frames, "frame_step": self.frame_step, "fps": self.fps}
        if self.fps is not None:
            plain["frame_step"] = None  # it does not apply
        found: list[str | dict[str, Any]] = []
        for manifest in manifests:
            clips = plain | manifest.own
            if clips == plain:
                found.append(manifest.path)
                continue
            differs = {key: None if clips[key] == plain[key] else clips[key] for key in plain}
            found.append({"path": manifest.path, **differs})
        return found

    @property
    def lengths(self) -> tuple[int, ...]:
        """The different frames per clip, ascending."""
        return tuple(sorted({m.num_frames or self.num_frames for m in self.manifests}))


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
    probe_every: Count | None = None
    """Steps between probes of the features, also after the last step; the checkpoint with the best
    one is kept. null: none."""
    probe_label: Annotated[str, Field(min_length=1)] | None = None
    """What the probe predicts: NAME of the column label_NAME (classes) or value_NAME (numbers) of
    data.manifests. Videos with a negative class have no label and are left out."""
    probe_videos: Count = 1000
    """Videos of the probe, a fixed sample of those with a label."""
    probe_test: Location | None = None
    """Manifest of up to probe_videos videos that test the probe; null: a fifth of the sample is
    held out for that."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.probe_every is not None and self.probe_label is None:
            raise FieldError(
                "probe_label",
                f"found none with log.probe_every {self.probe_every}, expected what the probe is "
                "to predict; name a column label_NAME or value_NAME of data.manifests by its NAME",
            )
        return self


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
    init: InitConfig = InitConfig()
    """The weights at step 0, by default fresh ones."""
    objective: Literal["features", "pixels"] = "features"
    """What the predictor predicts. features: those of the target encoder; pixels: those of the
    patches, normalized by each patch's own mean and standard deviation, by mean squared error, as
    the paper's baseline does. Pixels have no target encoder: the teacher section and
    optim.loss_exponent are ignored."""
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
    """ZeRO: what the processes shard."""
    compile: bool = False
    """Run torch.compile on each transformer block."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass recomputes to save memory. none: nothing; selective: norms, GELU and
    rotations; full: whole blocks. The gradients are the same."""
    log: LogConfig = LogConfig()
    """Metrics and pictures."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""

    @property
    def result_weights(self) -> Literal["teacher", "master"]:
        """The encoder that is the run's result: the target encoder if it is an EMA ("teacher"),
        else the trained one ("master").
        """
        ema = self.objective == "features" and self.teacher.mode == "ema"
        return "teacher" if ema else "master"

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a clip of data.num_frames by axis, (T', H', W')."""
        return self.grid_of(self.data.num_frames)

    def grid_of(self, num_frames: int) -> tuple[int, int, int]:
        """Tokens of a clip of that many frames by axis, (T', H', W')."""
        side = self.data.crop_size // self.model.patch_size
        return num_frames // self.model.tubelet_size, side, side

    @property
    def num_mask_tokens(self) -> int:
        """Mask tokens of the predictor: one per mask spec, or one per clip length (ascending),
        which all specs share.
        """
        shared = self.model.mask_tokens == "shared"
        return len(self.data.lengths) if shared else len(self.masks.specs)

    def mask_token(self, num_frames: int) -> int | None:
        """The mask token of all specs in clips of that many frames; None: each has its own."""
        shared = self.model.mask_tokens == "shared"
        return self.data.lengths.index(num_frames) if shared else None

    def precision_on(self, device: str) -> Literal["bf16", "fp32"]:
        """The precision on a device type such as "cuda" or "cpu", with "auto" resolved."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device == "cuda" else "fp32"
