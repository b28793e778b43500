"""The base class of the sections, value types that explain mistakes, and numbers to suggest."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from vjepa_fast.paths import expanded


def show(value: Any) -> str:
    """A value as the user would write it in JSON, shortened to 60 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def divisors(number: int) -> list[int]:
    """All divisors of a number, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def nearest(candidates: list[int], wanted: int) -> int:
    """The candidate nearest to a number; of two, the smaller one."""
    return min(candidates, key=lambda candidate: (abs(candidate - wanted), candidate))


def multiple(number: int, of: int) -> int:
    """The positive multiple of `of` that is nearest to `number`."""
    return max(1, round(number / of)) * of


class Section(BaseModel):
    """A section of the config: no unknown key, no silent conversion.

    The docstring below a field is its documentation for users (`FieldInfo.description`).
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class FieldError(ValueError):
    """A mistake that a section finds among its own keys.

    Args:
        key: the section's key with the mistake.
        text: "found …, expected …; what to do", without the key.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


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


Location = Annotated[str, Field(min_length=1), AfterValidator(expanded)]
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
