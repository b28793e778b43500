"""Paths as people write them, where no shell has expanded them."""

from __future__ import annotations

import os
import re

_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{[A-Za-z_]\w*\})")


def expanded(path: str) -> str:
    """Expand `~` at the start of a path, `$NAME` and `${NAME}`, unless a file has that very name.

    Raises:
        ValueError: a variable is not set; the message is "found …, expected …; what to do".
    """
    if ("$" not in path and not path.startswith("~")) or os.path.lexists(path):
        return path
    found = os.path.expandvars(os.path.expanduser(path))
    if name := _VARIABLE.search(found):
        raise ValueError(
            f"found {path}, whose variable {name[0]} is not set, expected a path; set (export) it "
            "or write the path out"
        )
    return found
