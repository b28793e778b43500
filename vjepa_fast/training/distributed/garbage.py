"""Python's garbage collector, run when the loop says so.

Left alone it now and then looks through everything that torch and DeepSpeed have made, half a
million objects in a quarter of a second, at moments of its own on each rank, and all wait for it.
"""

from __future__ import annotations

import gc


class Garbage:
    """Within this context garbage is collected by `collect` alone, and what was there at the start
    is left out of it for good."""

    def __enter__(self) -> Garbage:
        gc.collect()
        gc.freeze()
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        gc.enable()

    def collect(self) -> None:
        """Free the cycles that have become unreachable since the last call."""
        gc.collect()
