"""Which settings make a run's recipe, and where a changed recipe goes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence

from vjepa_fast.config import Config, parse_config, translate_stored
from vjepa_fast.errors import UserError

# What may change between a checkpoint and the run that resumes it: nothing that alters the recipe.
_FREE_TO_CHANGE = {
    ("output",),
    ("log",),
    ("checkpoint",),
    ("zero",),
    ("compile",),
    ("activation_checkpointing",),
    ("data", "backend"),
    ("data", "num_workers"),
    ("data", "prefetch"),
    ("data", "max_bad_fraction"),
    ("optim", "micro_batch"),
    ("optim", "max_nonfinite_steps"),
}
_LONGEST_NAME = 100  # characters of a folder's name


def settings_of(config: Config) -> dict:
    """A config as plain JSON data, as checkpoints hold it."""
    return json.loads(config.model_dump_json())


def with_defaults(saved: dict) -> dict:
    """A saved config with the defaults of keys that are newer than it: a default does what was done
    before there was the key. A config that this version can't take stays as it is."""
    saved = translate_stored(saved)
    try:
        return settings_of(parse_config(saved))
    except UserError:
        return saved


def recipe_changes(saved: dict, own: dict, at: tuple[str, ...] = ()) -> Iterator[str]:
    """Where the recipes of two configs (plain data) differ, as "optim.lr was 0.1 and is 0.2"."""
    for key in sorted(saved.keys() | own.keys()):
        place, old, new = (*at, key), saved.get(key), own.get(key)
        if place in _FREE_TO_CHANGE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from recipe_changes(old, new, place)
        else:
            yield f"{'.'.join(place)} was {json.dumps(old)} and is {json.dumps(new)}"


def with_own_folder(config: Config, overrides: Sequence[str]) -> Config:
    """Give a config whose recipe was overridden a run folder of its own, beside the file's.

    `runs/tiny` with `--set optim.steps=20` becomes `runs/tiny-optim.steps=20`: a trial neither
    meets nor touches the run that the file describes, and the same command finds its run again.

    Args:
        config: with the overrides applied.
        overrides: `key.path=value` each; one of `output` itself has the last word.
    """
    places = [tuple(override.partition("=")[0].strip().split(".")) for override in overrides]
    if ("output",) in places:
        return config
    changed = sorted(
        override.strip()
        for override, place in zip(overrides, places, strict=True)
        if not any(place[: len(free)] == free for free in _FREE_TO_CHANGE)
    )
    if not changed:
        return config
    whole = "-".join(changed)
    name = re.sub(r"[^\w.=+-]+", "_", whole)
    if len(name) > _LONGEST_NAME or name != whole:  # what was cut away must still tell apart
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return config.model_copy(update={"output": f"{config.output.rstrip('/')}-{name}"})
