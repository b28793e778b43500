"""Python's garbage collector in a training process."""

from __future__ import annotations

import gc


class ManualGarbageCollection:
    """Within this context Python's garbage collector runs only when `collect` is called.

    Automatic collections scan everything that torch and DeepSpeed have made (half a million
    objects, a quarter of a second) at different moments on each rank, and all ranks wait for the
    slowest. Objects that exist on entry are never scanned again.
    """

    def __enter__(self) -> ManualGarbageCollection:
        gc.collect()
        gc.freeze()
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        gc.enable()

    def collect(self) -> None:
        """Free the cycles that became unreachable since the last call."""
        gc.collect()
