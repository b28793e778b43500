"""Sections of the config, and value types whose rules pydantic cannot put into a sentence."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from vjepa_fast.config.load import show
from vjepa_fast.models.presets import ENCODER_PRESETS


class Section(BaseModel):
    """A section of the config: no unknown key, no silent conversion."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(
            f"found {show(value)}, expected a list of two numbers; write e.g. [0.5, 1.0]"
        )
    return tuple(value)


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if low > high:
        raise ValueError(
            f"found {show(value)}, expected the smaller number first; write {show([high, low])}"
        )
    return value


def _stage(value: int) -> int:
    if value not in (0, 1, 2, 3):
        raise ValueError(f"found {value}, expected a ZeRO stage of 0, 1, 2 or 3; choose e.g. 1")
    return value


def preset_shape(value: Any) -> Any:
    """A preset's name as its shape; anything else unchanged, for EncoderConfig to check."""
    if not isinstance(value, str):
        return value
    if value not in ENCODER_PRESETS:
        raise ValueError(
            f"found {show(value)}, expected one of {', '.join(ENCODER_PRESETS)} or an object; "
            'write e.g. "vit_large" or {"width": 1024, "depth": 24, "heads": 16}'
        )
    return dict(vars(ENCODER_PRESETS[value]))


RANDOM_MASKS = ("random_tube", "random_tokens")


def mask_strategy(value: Any) -> Any:
    """The strategy that a mask spec names, "multi_block" unless it does."""
    given = value.get("strategy") if isinstance(value, dict) else getattr(value, "strategy", None)
    return "multi_block" if given is None else given


def _with_strategy(value: Any, known: tuple[str, ...]) -> Any:
    strategy = mask_strategy(value)
    if strategy not in known:
        raise ValueError(
            f"found strategy {show(strategy)}, expected one of {', '.join(known)}; write e.g. "
            f'"strategy": "{known[0]}"'
        )
    if isinstance(value, dict) and strategy == "multi_block":  # the one that need not be named
        return {key: item for key, item in value.items() if key != "strategy"}
    return value


def plain_mask_strategy(value: Any) -> Any:
    """A spec inside a mixture, its strategy checked."""
    return _with_strategy(value, ("multi_block", *RANDOM_MASKS))


def any_mask_strategy(value: Any) -> Any:
    """A mask spec, its strategy checked."""
    return _with_strategy(value, ("multi_block", *RANDOM_MASKS, "mixture"))


Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Unit = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
FractionRange = Annotated[
    tuple[Fraction, Fraction], BeforeValidator(_pair), AfterValidator(_ascending)
]
PositiveRange = Annotated[
    tuple[Positive, Positive], BeforeValidator(_pair), AfterValidator(_ascending)
]
UnitRange = Annotated[tuple[Unit, Unit], BeforeValidator(_pair), AfterValidator(_ascending)]
Betas = Annotated[tuple[Beta, Beta], BeforeValidator(_pair)]
Stage = Annotated[int, AfterValidator(_stage)]
