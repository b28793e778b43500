"""Keys and values that had another name in older versions."""

from __future__ import annotations

import copy
from typing import Any

RENAMED = {
    "optim.momentum": "teacher.momentum",
    "optim.max_bad_steps": "optim.max_nonfinite_steps",
    "data.num_threads": "data.num_workers",
    "data.max_bad_share": "data.max_bad_fraction",
    "log.monitor_every": "log.collapse_every",
}
RENAMED_VALUES = {
    "data.short_videos": {"edge": "repeat_last", "loop": "wrap", "refuse": "drop"},
}


def translate_stored(data: dict[str, Any]) -> dict[str, Any]:
    """Copy a config that a run stored with its checkpoints, in the names of this version.

    Args:
        data: the config as an older version, or this one, wrote it. Sections may be missing.
    """
    data = copy.deepcopy(data)
    for old, new in RENAMED.items():
        section, key = old.split(".")
        if key in data.get(section, {}):
            value = data[section].pop(key)
            section, key = new.split(".")
            data.setdefault(section, {})[key] = value
    for name, values in RENAMED_VALUES.items():
        section, key = name.split(".")
        if key in data.get(section, {}):
            data[section][key] = values.get(data[section][key], data[section][key])
    return data
