"""Argument checks shared by the files of this folder."""

from __future__ import annotations

import sys
from numbers import Integral, Real


def is_int(value: object) -> bool:
    """Whether it is an integer, also numpy's, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether it is a finite number that fits a float, and no bool."""
    return (
        isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def require_int(name: str, value: object, low: int, end: int) -> int:
    """The value as an int; ValueError unless it is an integer in low .. end - 1."""
    if not is_int(value) or not low <= value < end:
        raise ValueError(
            f"{name}: found {value!r}, expected an integer in {low} .. {end - 1}; "
            f"give a {name} in that range"
        )
    return int(value)
