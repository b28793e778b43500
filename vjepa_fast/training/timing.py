"""How long the training waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Waiting(Iterator[Item]):
    """Hands an iterator's items on and adds up the seconds spent waiting for them."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._seconds = 0.0

    def __next__(self) -> Item:
        start = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self._seconds += time.perf_counter() - start

    def take(self) -> float:
        """Seconds waited since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
