"""The labels of a manifest's rows: a column holds integers, or the names of classes, never both."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from vjepa_fast.errors import UserError

_INTEGER = re.compile(r"[-+]?\d+")
_NUMBER = re.compile(r"nan|[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


class LabelReader:
    """Reads a label column a few values at a time. Its first value decides of what kind it is.

    Args:
        column: its name, for messages.
        source: the file that it is in, for messages.

    Attributes:
        names: the classes by name, numbered in the order of appearance; empty for integers.
    """

    def __init__(self, column: str, source: str) -> None:
        self._column = column
        self._source = source
        self._of_names: bool | None = None
        self.names: dict[str, int] = {}

    def numbers(self, values: Sequence[Any], lines: Sequence[int]) -> list[int]:
        """Integers as they are, names as numbers of `names`.

        Args:
            values: text, or what a Parquet file holds; spaces around a name do not count.
            lines: their lines in the file.

        Raises:
            UserError: a value is missing, a fraction, or of the other kind; it names the line.
        """
        if self._of_names:  # most often all are known; quickly
            known = list(map(self.names.get, values))
            if None not in known:
                return known
        elif all(isinstance(v, str) and v.isdecimal() and len(v) < 19 for v in values):
            self._of_names = False
            return list(map(int, values))
        numbers = []
        for value, line in zip(values, lines, strict=True):
            number = value if type(value) is int else self._number(value, line)
            of_names = isinstance(number, str)
            if self._of_names is None:
                self._of_names = of_names
            if self._of_names != of_names:
                before = "names" if self._of_names else "integers"
                raise self._wrong(
                    line,
                    f"{value!r} after {before}",
                    "a label's classes all as integers or all as names; rename its classes",
                )
            numbers.append(self.names.setdefault(number, len(self.names)) if of_names else number)
        return numbers

    def _number(self, value: Any, line: int) -> int | str:
        """The value as an integer, or else the name that it is."""
        text = value.strip() if isinstance(value, str) else str(value)
        if _INTEGER.fullmatch(text):
            if not _fits(text):
                raise self._wrong(line, repr(value), "an integer of 64 bits; correct it")
            return int(text)
        if not text:
            raise self._wrong(line, "''", "a label for every video; add it, or leave the video out")
        if not isinstance(value, str) or _NUMBER.fullmatch(text):
            raise self._wrong(
                line,
                repr(value),
                "an integer or a name; correct it (pandas turns integers into fractions in a "
                "column where some are missing: .astype('Int64') turns them back)",
            )
        return text

    def _wrong(self, line: int, found: str, expected: str) -> UserError:
        return UserError(
            f"{self._source}, line {line}: found {self._column} = {found}, expected {expected}"
        )


def _fits(integer: str) -> bool:
    """Whether an integer has 64 bits."""
    return len(integer) < 1000 and -(2**63) <= int(integer) < 2**63


def are_integers(names: Collection[str], source: str) -> bool:
    """Whether classes are named by integers, which are then their numbers.

    Raises:
        UserError: only some are, two are the same integer, or one is a fraction or has more than 64
            bits; such names cannot be read as labels.
    """
    integers = {name: int(name) for name in names if _INTEGER.fullmatch(name) and _fits(name)}
    others = [name for name in names if name not in integers]
    if odd := [name for name in others if not name.strip() or _NUMBER.fullmatch(name)]:
        found = f"a class {odd[0]!r}"
    elif integers and others:
        found = f"the classes {min(integers, key=integers.get)!r} and {others[0]!r}"
    elif len(set(integers.values())) < len(integers):
        alike = min(Counter(integers.values()).items(), key=lambda item: (-item[1], item[0]))[0]
        written = sorted(name for name, number in integers.items() if number == alike)
        found = f"one number written in several ways, {' and '.join(written[:5])}"
    else:
        return bool(integers)
    raise UserError(
        f"{source}: found {found}, expected classes that are all integers of 64 bits or all names; "
        "rename them"
    )


def read_values(
    values: Sequence[Any], column: str, source: str, lines: Sequence[int]
) -> list[float]:
    """A column of values to predict by regression, as floats.

    Raises:
        UserError: a value is missing or not finite; the message names the line.
    """
    numbers = []
    for value, line in zip(values, lines, strict=True):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"{source}, line {line}: found {column} = {value!r}, expected a finite number; "
                "correct it, or leave the video out"
            )
        numbers.append(number)
    return numbers
