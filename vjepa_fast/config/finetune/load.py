"""Reads the config of a fine-tuning: a JSON file, `--set` options, then all checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vjepa_fast.config.checks import check_compile
from vjepa_fast.config.fields import multiple
from vjepa_fast.config.finetune.schema import FinetuneConfig
from vjepa_fast.config.load import read_overridden
from vjepa_fast.config.messages import sentence
from vjepa_fast.errors import UserError


def load_finetune_config(path: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read a JSON file, apply overrides in order, and check the whole.

    Args:
        path: the JSON file.
        overrides: `key.path=value` each, as `--set` takes them.

    Raises:
        UserError: one sentence with the key, what was found, what was expected and the fix.
    """
    return parse_finetune_config(read_overridden(path, overrides, FinetuneConfig))


def parse_finetune_config(data: Any) -> FinetuneConfig:
    """Check a config that is given as plain data; see `load_finetune_config`."""
    try:
        config = FinetuneConfig.model_validate(data)
    except ValidationError as error:
        raise sentence(error, FinetuneConfig) from None
    _check_batch(config)
    check_compile(config.compile, config.activation_checkpointing, config.zero.stage)
    if config.zero.stage == 3 and config.activation_checkpointing == "selective":
        raise UserError(
            "activation_checkpointing: found selective at zero.stage 3, expected none or full, "
            "since torch does not find what it saved where the weights are gathered anew; set it "
            "to full, or zero.stage to 2"
        )
    return config


def _check_batch(config: FinetuneConfig) -> None:
    total, micro, group = config.optim.global_batch, config.optim.micro_batch, config.clip_group
    why = "clips of one video" + (", and videos are mixed in pairs" if config.mixes else "")
    for key, found in (("optim.global_batch", total), ("optim.micro_batch", micro)):
        if found % group:
            raise UserError(
                f"{key}: found {found}, expected a multiple of {group}, since a step has "
                f"{config.data.clips_per_video} {why}; choose e.g. {multiple(found, group)}"
            )
    if total % micro:
        raise UserError(
            f"optim.micro_batch: found {micro}, expected a divisor of optim.global_batch {total}; "
            f"choose e.g. {max(d for d in range(group, micro, group) if total % d == 0)}"
        )
