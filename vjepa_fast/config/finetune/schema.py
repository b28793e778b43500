"""The sections of a fine-tuning's config: every key with its type, default and documentation.

The defaults are those of V-JEPA's fine-tuning (arXiv 2404.08471, Table 11) where K400 and SSv2
agree; crops are those of its probes.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vjepa_fast.config.fields import (
    Beta,
    Betas,
    Count,
    FieldError,
    Fraction,
    FractionRange,
    Location,
    NonNegative,
    Positive,
    PositiveRange,
    Section,
    Unit,
)
from vjepa_fast.config.optim import ZeroConfig
from vjepa_fast.config.schema import CheckpointConfig


class FinetuneInit(Section):
    """The encoder's weights at step 0. The classifier's are fresh."""

    checkpoint: Location = Field(examples=["runs/vitl16"])
    """A run, a checkpoint, an export, or any other file that `load_encoder` reads."""


class FinetuneData(Section):
    """The videos, and how clips are sampled from them."""

    train: Location = Field(examples=["data/train.csv"])
    """Manifest with the videos to train on."""
    test: Location = Field(examples=["data/test.csv"])
    """Manifest with the videos to test on."""
    num_frames: Count = 16
    """Frames per clip."""
    frame_step: Count = 4
    """Step between the frames of a clip, in frames of the video."""
    fps: Positive | None = None
    """Frames per second at which a clip is sampled, by the video's time stamps; null: use
    frame_step."""
    clips_per_video: Count = 2
    """Clips of a video in the same step, one from each of as many equal parts of the video."""
    crop_size: Count = 224
    """Height and width of a clip, in pixels."""
    area: FractionRange = (0.08, 1.0)
    """Area of the random crop as a fraction of the frame: [smallest, largest]."""
    aspect_ratio: PositiveRange = (0.75, 1.3333)
    """Width divided by height of the random crop: [smallest, largest]."""
    flip: bool = True
    """Flip each clip horizontally with probability 0.5. Set to false if left and right matter."""
    backend: Literal["auto", "dali", "pyav"] = "auto"
    """The decoder, as in a pretraining's config."""
    num_workers: Count = 2
    """Decoding workers of each training process."""
    prefetch: Count = 2
    """Micro-batches that are decoded ahead of training."""
    max_bad_fraction: Unit = 0.05
    """Largest fraction of clips that may fail to decode. Above it, the run stops with an error."""


class RandAugmentConfig(Section):
    """RandAugment (arXiv 1909.13719). The defaults are "rand-m7-n4-mstd0.5-inc1"."""

    operations: Annotated[int, Field(ge=0, le=2**31 - 1)] = 4
    """Operations of a clip, each applied with probability 0.5; 0: none."""
    magnitude: Annotated[float, Field(ge=0, le=10)] = 7.0
    """Mean strength of the operations, 0 to 10."""
    magnitude_std: NonNegative = 0.5
    """Standard deviation of the strength, drawn for each operation."""


class AugmentConfig(Section):
    """Augmentation after decoding, the same for all frames of a clip."""

    randaugment: RandAugmentConfig = RandAugmentConfig()
    """Random operations on color and geometry."""
    color_jitter: NonNegative = 0.4
    """Largest relative change of brightness, contrast and saturation; 0: none."""
    erasing: Unit = 0.25
    """Probability that a random rectangle is replaced by noise."""
    mixup: NonNegative = 0.8
    """Alpha of mixup (arXiv 1710.09412), which mixes two videos and their labels; 0: none."""
    cutmix: NonNegative = 1.0
    """Alpha of cutmix (arXiv 1905.04899); 0: none."""
    switch: Unit = 0.5
    """Probability of cutmix instead of mixup, where both are above 0."""


class ClassifierConfig(Section):
    """What reads the encoder's features."""

    kind: Literal["linear", "attentive"] = "linear"
    """linear: a linear layer on the mean over the tokens; attentive: the probe's classifier."""
    blocks: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1
    """Blocks of an attentive classifier: 1 as in V-JEPA, 4 as in V-JEPA 2."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.blocks not in (1, 4) or (self.kind == "linear" and self.blocks != 1):
            raise FieldError(
                "blocks",
                f"found {self.blocks} with classifier.kind {self.kind}, expected 1, or 4 with "
                "attentive; set one of these",
            )
        return self


class FinetuneOptim(Section):
    """Epochs, batch, AdamW, and what regularizes."""

    epochs: Positive = Field(examples=[35])
    """How often each video is shown; may be fractional."""
    warmup_epochs: NonNegative = 5.0
    """Epochs in which the learning rate rises linearly from 0 to lr; it then falls to 0 by a
    cosine."""
    global_batch: Count = Field(examples=[512])
    """Clips per optimizer step, over all processes: clips_per_video of each video."""
    micro_batch: Count = Field(examples=[16])
    """Largest number of clips in one forward and backward pass of a process."""
    lr: Positive = Field(examples=[5e-4])
    """Peak learning rate of the classifier, as it is: nothing is scaled by the batch."""
    layer_decay: Fraction = 0.75
    """Factor of the learning rate from each block to the one below it."""
    weight_decay: NonNegative = 0.05
    """Weight decay of the weight matrices."""
    betas: Betas = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    clip_grad: Positive | None = None
    """Largest gradient norm of the whole model; null: no clipping."""
    drop_path: Beta = 0.1
    """Probability with which a clip skips a branch of the last block; 0 at the first one, linear
    between."""
    head_dropout: Beta = 0.0
    """Dropout of the features before the last linear layer."""
    label_smoothing: Beta = 0.1
    """Share of each target that is spread evenly over all classes."""
    max_nonfinite_steps: Count = 10
    """The run stops after this many consecutive steps with a non-finite loss or gradient."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise FieldError(
                "warmup_epochs",
                f"found {self.warmup_epochs:g} of {self.epochs:g} epochs, expected fewer; lower "
                "it, or raise optim.epochs",
            )
        return self


class ViewsConfig(Section):
    """Views of a test video, over which the probabilities are averaged."""

    segments: Annotated[int, Field(ge=1, le=99)] = 5
    """Clips spread evenly over the video."""
    crops: Annotated[int, Field(ge=1, le=2**31 - 1)] = 3
    """Squares of each clip: 1, the center; 3, along the longer side."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crops not in (1, 3):
            raise FieldError("crops", f"found {self.crops}, expected 1 or 3; choose one of them")
        return self


class FinetuneLog(Section):
    """What is logged, and how often."""

    every: Count = 10
    """Steps between lines of metrics. Each line costs one host sync."""
    wandb: Annotated[str, Field(min_length=1)] | None = None
    """Weights & Biases project to which the metrics are also logged; null: none."""


class FinetuneConfig(Section):
    """A whole fine-tuning."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the classifier's weights, and of every random choice."""
    output: Location = Field(examples=["runs/k400_vitl16"])
    """The run's folder: checkpoints, metrics, curves, results."""
    init: FinetuneInit
    """The weights at step 0."""
    label: Annotated[str, Field(min_length=1)] = Field(examples=["action"])
    """Name of the manifests' column label_<name>, whose classes are learned."""
    data: FinetuneData
    """Videos and clips."""
    augment: AugmentConfig = AugmentConfig()
    """RandAugment, color jitter, erasing, mixup, cutmix."""
    classifier: ClassifierConfig = ClassifierConfig()
    """What reads the encoder's features."""
    optim: FinetuneOptim
    """Epochs, batch, AdamW, regularization."""
    test: ViewsConfig = ViewsConfig()
    """Views of the test videos."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of forward and backward; master weights are fp32. auto: bf16 on CUDA, else fp32."""
    zero: ZeroConfig = ZeroConfig()
    """ZeRO: what the processes shard."""
    compile: bool = False
    """Run torch.compile on each transformer block."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass recomputes to save memory, as in a pretraining's config."""
    log: FinetuneLog = FinetuneLog()
    """Metrics."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""

    @property
    def mixes(self) -> bool:
        """Whether two videos are mixed."""
        return self.augment.mixup > 0 or self.augment.cutmix > 0

    @property
    def clip_group(self) -> int:
        """Consecutive clips that one micro-batch has to hold together."""
        return self.data.clips_per_video * (2 if self.mixes else 1)

    def precision_on(self, device: str) -> Literal["bf16", "fp32"]:
        """The precision on a device type such as "cuda" or "cpu", with "auto" resolved."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device == "cuda" else "fp32"
