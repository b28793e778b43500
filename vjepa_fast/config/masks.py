"""The config's section of masks, and the sampler that it describes."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from vjepa_fast.config.fields import (
    Count,
    Fraction,
    FractionRange,
    Positive,
    PositiveRange,
    Section,
    show,
)
from vjepa_fast.errors import UserError
from vjepa_fast.masks import MaskBatch, MaskSampler, Mixture, MultiBlock, RandomTokens, RandomTube

_RANDOM = ("random_tube", "random_tokens")


class MaskSpecConfig(Section):
    """A multi-block mask: the union of its blocks is the target, the rest the context."""

    num_blocks: Count = Field(examples=[8])
    """Number of blocks."""
    spatial_scale: FractionRange = Field(examples=[[0.15, 0.15]])
    """Area of a block as a fraction of the frame: [smallest, largest]."""
    temporal_scale: FractionRange = (1.0, 1.0)
    """Length of a block as a fraction of the clip: [smallest, largest]."""
    aspect_ratio: PositiveRange = (0.75, 1.5)
    """Height divided by width of a block: [smallest, largest]."""
    max_temporal_keep: Fraction = 1.0
    """Fraction of the clip, counted from its start, in which tokens may be context."""
    max_keep: Count | None = None
    """Maximum number of context tokens in a clip; null: no limit."""

    def spec(self) -> MultiBlock:
        """The spec as `MaskSampler` takes it."""
        return MultiBlock(**dict(self))


class RandomMaskConfig(Section):
    """The target is a random set of positions (the same in every frame) or of tokens."""

    strategy: Literal["random_tube", "random_tokens"]
    """random_tube: positions of the frame; random_tokens: tokens of the clip."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = Field(examples=[0.9])
    """Fraction of the positions, or of the tokens, that is target."""

    def spec(self) -> RandomTube | RandomTokens:
        """The spec as `MaskSampler` takes it."""
        return (RandomTube if self.strategy == "random_tube" else RandomTokens)(self.ratio)


def _strategy(value: Any) -> Any:
    """The strategy of a mask spec; "multi_block" if it has none."""
    given = value.get("strategy") if isinstance(value, dict) else getattr(value, "strategy", None)
    return "multi_block" if given is None else given


def _checked(value: Any, strategies: tuple[str, ...]) -> Any:
    """Check the strategy of a mask spec, and drop "multi_block", which is not a field."""
    strategy = _strategy(value)
    if strategy not in strategies:
        raise ValueError(
            f"found strategy {show(strategy)}, expected one of {', '.join(strategies)}; write e.g. "
            f'"strategy": "{strategies[0]}"'
        )
    if isinstance(value, dict) and strategy == "multi_block":
        return {key: item for key, item in value.items() if key != "strategy"}
    return value


def _single_mask(value: Any) -> Any:
    return _checked(value, ("multi_block", *_RANDOM))


def _any_mask(value: Any) -> Any:
    return _checked(value, ("multi_block", *_RANDOM, "mixture"))


def _kind(value: Any) -> str:
    """The tag of a mask spec, which pydantic adds to the location of a mistake."""
    strategy = _strategy(value)
    if strategy == "mixture":
        return "MixtureConfig"
    return "RandomMaskConfig" if strategy in _RANDOM else "MaskSpecConfig"


SingleMask = Annotated[
    Annotated[MaskSpecConfig, Tag("MaskSpecConfig")]
    | Annotated[RandomMaskConfig, Tag("RandomMaskConfig")],
    Discriminator(_kind),
    BeforeValidator(_single_mask),
]


class MixtureConfig(Section):
    """Each clip is masked by one of several specs, drawn at random."""

    strategy: Literal["mixture"]
    """Always "mixture"."""
    specs: list[SingleMask] = Field(
        min_length=1, max_length=4095, examples=[[{"strategy": "random_tube", "ratio": 0.9}]]
    )
    """The specs to draw from. A mixture cannot contain a mixture."""
    weights: list[Positive] | None = None
    """Relative sampling weight of each spec; null: all specs equally often."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        self.spec()
        return self

    def spec(self) -> Mixture:
        """The spec as `MaskSampler` takes it."""
        return Mixture([spec.spec() for spec in self.specs], self.weights)


AnyMask = Annotated[
    Annotated[MaskSpecConfig, Tag("MaskSpecConfig")]
    | Annotated[RandomMaskConfig, Tag("RandomMaskConfig")]
    | Annotated[MixtureConfig, Tag("MixtureConfig")],
    Discriminator(_kind),
    BeforeValidator(_any_mask),
]


class MasksConfig(Section):
    """The masks. Each clip is masked once by every spec."""

    specs: list[AnyMask] = Field(
        default=[
            MaskSpecConfig(num_blocks=8, spatial_scale=(0.15, 0.15)),
            MaskSpecConfig(num_blocks=2, spatial_scale=(0.7, 0.7)),
        ],
        min_length=1,
        max_length=4096,
        examples=[[{"num_blocks": 8, "spatial_scale": [0.15, 0.15]}]],
    )
    """The mask specs. A spec without "strategy" is "multi_block". The default is V-JEPA's pair:
    eight short-range blocks, and two long-range blocks."""
    truncate: Literal["batch", "batch-random", "none"] = "batch"
    """batch: truncate all clips of a group to the smallest token count of the group, as in the
    published code; batch-random: truncate to the same counts, but keep random tokens instead of the
    first ones; none: only max_keep and round_to truncate."""
    truncate_group: Count = 24
    """Number of consecutive sample ids in a group. In V-JEPA, a group is the batch of one GPU.
    Where manifests have clips of several lengths, the clips of a group have one length. Ignored if
    truncate is none and there is one length."""
    round_to: Count | None = None
    """Truncate token counts to a multiple of this, so that torch.compile sees fewer shapes; null:
    off."""
    complement: Literal["target", "context"] | None = None
    """target: every token that is not context becomes target, including truncated ones; context:
    the reverse; null: truncated tokens are neither."""

    def sampler(self, grid: tuple[int, int, int], seed: int, num_threads: int = 0) -> MaskSampler:
        """Make the sampler of these masks.

        Args:
            grid: tokens of a clip by axis, (T', H', W').
            seed: seed of the masks' random stream.
            num_threads: CPU threads; 0 uses all cores.

        Raises:
            ValueError: masks that are impossible on this grid.
        """
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
    """Call `sampler.sample`; raise UserError for a spec that almost never leaves any context.

    The checks cannot find such a spec, since it depends on the drawn block positions.
    """
    try:
        return sampler.sample(step, sample_ids)
    except ValueError as error:
        raise UserError(f"masks.specs: {error}") from None
