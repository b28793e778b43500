"""Progress of a loop: a bar on a terminal, few log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

SECONDS = 30.0  # between two lines
SHORT = 1.0  # seconds that need no line at the end, where no bar would stay

T = TypeVar("T")
log = logging.getLogger("vjepa_fast")


def on_terminal() -> bool:
    """Whether stderr is a terminal. In a file or a pipe, every update of a bar would be a line."""
    return sys.stderr is not None and sys.stderr.isatty()


def with_progress(
    items: Iterable[T],
    what: str,
    total: int,
    unit: str,
    *,
    initial: int = 0,
    leave: bool = True,
) -> Iterable[T]:
    """The items, with the progress through them on stderr.

    On a terminal it is a bar. Elsewhere it is a log line at most every `SECONDS`, and one at the
    end unless the loop was left before.

    Args:
        items: what to loop over.
        what: the work, in front of the bar or line.
        total: number of items, those done before included.
        unit: name of one item, shown by the bar.
        initial: number of items done before.
        leave: whether the bar stays when it is full, or the last line is shown also after less than
            `SHORT` seconds.
    """
    if on_terminal():
        return tqdm(items, what, total, initial=initial, unit=unit, leave=leave, dynamic_ncols=True)
    return _lines(items, what, total, initial, leave)


def _lines(items: Iterable[T], what: str, total: int, initial: int, leave: bool) -> Iterator[T]:
    begin = shown = time.monotonic()
    done = initial
    for done, item in enumerate(items, initial + 1):
        yield item
        now = time.monotonic()
        if done < total and now - shown >= SECONDS:
            left = (total - done) * (now - begin) / (done - initial)
            log.info("%s: %d of %d, %s left", what, done, total, tqdm.format_interval(left))
            shown = now
    seconds = time.monotonic() - begin
    if not leave and seconds < SHORT:
        return
    taken = tqdm.format_interval(seconds)
    log.info("%s: %d of %d, took %s", what, done, total, taken)
