"""The config's section of masks."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from vjepa_fast.config.fields import (
    RANDOM_MASKS,
    Count,
    Fraction,
    FractionRange,
    Positive,
    PositiveRange,
    Section,
    any_mask_strategy,
    mask_strategy,
    plain_mask_strategy,
)
from vjepa_fast.errors import UserError
from vjepa_fast.masks import MaskBatch, MaskSampler, Mixture, MultiBlock, RandomTokens, RandomTube


class MaskSpecConfig(Section):
    """One multi-block mask: the union of its blocks is the target, the rest the context."""

    num_blocks: Count = Field(examples=[8])
    """Blocks in the union."""
    spatial_scale: FractionRange = Field(examples=[[0.15, 0.15]])
    """Area of a block, as a fraction of the frame: smallest, largest."""
    temporal_scale: FractionRange = (1.0, 1.0)
    """Length of a block, as a fraction of the clip: smallest, largest."""
    aspect_ratio: PositiveRange = (0.75, 1.5)
    """Height over width of a block: smallest, largest."""
    max_temporal_keep: Fraction = 1.0
    """Fraction of the clip, from its start, that may be context at all."""
    max_keep: Count | None = None
    """Most context tokens of a clip; null: no limit."""

    def spec(self) -> MultiBlock:
        """The spec as the sampler takes it."""
        return MultiBlock(**dict(self))


class RandomMaskConfig(Section):
    """Random places (the same in every frame) or random tokens of the clip are the target."""

    strategy: Literal["random_tube", "random_tokens"]
    """Which of the two."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = Field(examples=[0.9])
    """Fraction of the places, or of the tokens, that is target."""

    def spec(self) -> RandomTube | RandomTokens:
        """The spec as the sampler takes it."""
        return (RandomTube if self.strategy == "random_tube" else RandomTokens)(self.ratio)


def _plain_model(value: Any) -> str:
    return "RandomMaskConfig" if mask_strategy(value) in RANDOM_MASKS else "MaskSpecConfig"


PlainMask = Annotated[
    Annotated[MaskSpecConfig, Tag("MaskSpecConfig")]
    | Annotated[RandomMaskConfig, Tag("RandomMaskConfig")],
    Discriminator(_plain_model),
    BeforeValidator(plain_mask_strategy),
]


class MixtureConfig(Section):
    """Each clip is masked by one of several specs, by chance."""

    strategy: Literal["mixture"]
    """Says that this is a mixture."""
    specs: list[PlainMask] = Field(
        min_length=1, max_length=4095, examples=[[{"strategy": "random_tube", "ratio": 0.9}]]
    )
    """What it chooses from; no mixtures."""
    weights: list[Positive] | None = None
    """How often each is chosen, relative to the others; null: all alike."""

    def spec(self) -> Mixture:
        """The spec as the sampler takes it."""
        return Mixture([spec.spec() for spec in self.specs], self.weights)


def _mask_model(value: Any) -> str:
    return "MixtureConfig" if mask_strategy(value) == "mixture" else _plain_model(value)


AnyMask = Annotated[
    Annotated[MaskSpecConfig, Tag("MaskSpecConfig")]
    | Annotated[RandomMaskConfig, Tag("RandomMaskConfig")]
    | Annotated[MixtureConfig, Tag("MixtureConfig")],
    Discriminator(_mask_model),
    BeforeValidator(any_mask_strategy),
]


class MasksConfig(Section):
    """The masks. Each clip is masked once by every spec."""

    specs: list[AnyMask] = Field(
        min_length=1,
        max_length=4096,
        examples=[[{"num_blocks": 8, "spatial_scale": [0.15, 0.15]}]],
    )
    """The mask specs; their "strategy" is "multi_block" unless given."""
    truncate: Literal["batch", "batch-random", "none"] = "batch"
    """batch: cut all clips of a group to the smallest count in it, as published; batch-random: as
    far, but keep random tokens instead of the first ones; none: only max_keep and round_to cut."""
    truncate_group: Count = 24
    """Consecutive sample ids that form a group. Plays no part where truncate is none."""
    round_to: Count | None = None
    """Cut lengths down to a multiple of it, for few shapes under compilation; null: don't."""
    complement: Literal["target", "context"] | None = None
    """target: all that is not context is target, also what was cut; context: the reverse; null:
    what was cut is neither."""

    def sampler(self, grid: tuple[int, int, int], seed: int, num_threads: int = 0) -> MaskSampler:
        """The sampler of these masks. Raises ValueError for what is impossible on this grid."""
        return MaskSampler(
            [spec.spec() for spec in self.specs],
            grid=grid,
            seed=seed,
            truncate=self.truncate,
            truncate_group=self.truncate_group,
            num_threads=num_threads,
            round_to=self.round_to,
            complement=self.complement,
        )


def sample_masks(sampler: MaskSampler, step: int, sample_ids: Sequence[int]) -> MaskBatch:
    """`sampler.sample`; UserError for a spec that all but never leaves context, which only shows in
    its blocks' places."""
    try:
        return sampler.sample(step, sample_ids)
    except ValueError as error:
        raise UserError(f"masks.specs: {error}") from None
