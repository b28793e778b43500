"""Which settings are part of a run's recipe, and the run folder of an overridden recipe."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vjepa_fast.config import Config, parse_config, translate_stored
from vjepa_fast.config.networks import ModelConfig
from vjepa_fast.errors import UserError

# A run that resumes a checkpoint may change these settings, and no others.
_NOT_PART_OF_RECIPE = {
    ("output",),
    ("log",),
    ("checkpoint",),
    ("test",),
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
_MAX_NAME = 100  # characters of a folder's name


def settings_of(config: Config) -> dict:
    """A config as plain JSON data, as checkpoints store it."""
    return json.loads(config.model_dump_json())


def with_defaults(saved: dict) -> dict:
    """A stored config with the defaults of keys that were added since.

    The default of a new key is what earlier versions did. A config that this version cannot read is
    returned unchanged.

    Raises:
        UserError: it is that of a fine-tuning.
    """
    if "classifier" in saved:
        raise UserError(
            "output: found the folder of a fine-tuning, expected one for this run; give another "
            "one with --set output=…"
        )
    saved = translate_stored(saved)
    try:
        return settings_of(parse_config(saved))
    except UserError:
        return saved


def stored_config(saved: dict, folder: Path) -> Config:
    """The config that another run stored with its checkpoint.

    Args:
        saved: its plain JSON data, of this version or an earlier one.
        folder: the checkpoint's, for the error.

    Raises:
        UserError: this version cannot read it.
    """
    try:
        return parse_config(translate_stored(saved))
    except UserError as error:
        raise UserError(
            f"{folder}: found a stored config that this version cannot read ({error}), expected "
            "one that it can; name another checkpoint, or use the version that wrote it"
        ) from None


def recipe_changes(saved: dict, own: dict, at: tuple[str, ...] = ()) -> Iterator[str]:
    """The differences of two configs' recipes, each as "optim.lr was 0.1 and is 0.2".

    Args:
        saved, own: the two configs as plain JSON data.
        at: the keys that lead to them.
    """
    for key in sorted(saved.keys() | own.keys()):
        path, old, new = (*at, key), saved.get(key), own.get(key)
        if path in _NOT_PART_OF_RECIPE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from recipe_changes(old, new, path)
        else:
            yield f"{'.'.join(path)} was {json.dumps(old)} and is {json.dumps(new)}"


def model_changes(saved: ModelConfig, own: ModelConfig, *, encoder_only: bool = False) -> list[str]:
    """Why weights of a saved model mean something else in this one, as `recipe_changes` says it.

    Shapes don't show all of it: heads and positions have no weights. Initialization and mask tokens
    may differ.

    Args:
        saved, own: the model sections of the two runs.
        encoder_only: ignore the predictor.
    """

    def shape(model: ModelConfig) -> dict:
        free = {"depth_scaled_init", "mask_tokens"} | ({"predictor"} if encoder_only else set())
        if {saved.positions, own.positions} != {"sincos"}:
            free.add("uniform_power")  # of a table that is not there
        found = model.model_dump(mode="json", exclude=free)
        if not encoder_only:
            found["predictor"]["heads"] = model.predictor_heads
        return found

    return list(recipe_changes(shape(saved), shape(own), ("model",)))


def with_own_folder(config: Config, overrides: Sequence[str]) -> Config:
    """Give a config whose recipe was overridden a run folder of its own, next to the file's.

    `runs/tiny` with `--set optim.steps=20` becomes `runs/tiny-optim.steps=20`, so a trial leaves
    the run of the config file alone, and the same command resumes the trial.

    Args:
        config: with the overrides applied.
        overrides: `key.path=value` each; if one of them sets `output`, the config is unchanged.
    """
    paths = [tuple(override.partition("=")[0].strip().split(".")) for override in overrides]
    if ("output",) in paths:
        return config
    changed = sorted(
        override.strip()
        for override, path in zip(overrides, paths, strict=True)
        if not any(path[: len(free)] == free for free in _NOT_PART_OF_RECIPE)
    )
    if not changed:
        return config
    whole = "-".join(changed)
    name = re.sub(r"[^\w.=+-]+", "_", whole)
    if len(name) > _MAX_NAME or name != whole:  # truncated names stay distinct
        name = f"{name[:_MAX_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return config.model_copy(update={"output": f"{config.output.rstrip('/')}-{name}"})
