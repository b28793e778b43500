"""Converts between our weight names and those of the published V-JEPA checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vjepa_fast.errors import UserError

_WRAPPERS = re.compile(r"^(module\.|backbone\.)+")
_PREDICTOR_TO_OURS = {
    "predictor_embed": "embed",
    "predictor_blocks": "blocks",
    "predictor_norm": "norm",
    "predictor_proj": "proj",
}
POSITION_TABLES = ("pos_embed", "predictor_pos_embed")


def strip_wrappers(name: str) -> str:
    """A published name without its stack of `module.` and `backbone.`."""
    return _WRAPPERS.sub("", name)


def our_name(published: str) -> str:
    """Our name for a published one; mask tokens keep their numbers, position tables their name."""
    name = strip_wrappers(published)
    head, _, rest = name.partition(".")
    return ".".join([_PREDICTOR_TO_OURS.get(head, head), *([rest] if rest else [])])


def encoder_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published encoder weights (`[module.]backbone.blocks.0.attn.qkv.weight` …) to ours.

    The position table is dropped: it is fixed, and our encoder computes it.
    """
    ours = {strip_wrappers(name): value for name, value in state.items()}
    return {name: value for name, value in ours.items() if name not in POSITION_TABLES}


def predictor_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published predictor weights to ours; `mask_tokens.i` [1, 1, P] become one [M, P].

    Raises:
        UserError: the numbers of the mask tokens have a gap.
    """
    ours, mask_tokens = {}, {}
    for published, value in state.items():
        name = our_name(published)
        head, _, rest = name.partition(".")
        if name in POSITION_TABLES:
            continue
        if head == "mask_tokens":
            mask_tokens[rest] = value.reshape(-1)
        else:
            ours[name] = value
    if mask_tokens:
        numbers = [str(i) for i in range(len(mask_tokens))]
        if set(numbers) != mask_tokens.keys():  # stacking would give them to other mask specs
            raise UserError(
                f"predictor: found mask tokens {sorted(mask_tokens)}, expected {numbers}; use the "
                "whole checkpoint"
            )
        ours["mask_tokens"] = torch.stack([mask_tokens[i] for i in numbers])
    return ours


def encoder_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our encoder's tensors (weights or gradients) to the published names."""
    return {f"backbone.{name}": value for name, value in state.items()}


def predictor_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our predictor's tensors (weights or gradients) to the published names."""
    names = {ours: published for published, ours in _PREDICTOR_TO_OURS.items()}
    published = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if name == "mask_tokens":
            for i, row in enumerate(value):
                published[f"backbone.mask_tokens.{i}"] = row.reshape(1, 1, -1)
        else:
            published[f"backbone.{names.get(head, head)}.{rest}"] = value
    return published


def load_exactly(
    module: nn.Module, state: Mapping[str, Tensor], what: str, *, assign: bool = False
) -> None:
    """Load weights into a module if all names and shapes match.

    Args:
        module: to load into.
        state: weights by name.
        what: source of the weights, for the error message.
        assign: the tensors become the module's own, not copies; for modules on "meta".

    Raises:
        UserError: names are missing or unknown, or shapes differ.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise UserError(
            f"{what}: found {len(unknown)} unknown names {unknown[:3]} and {len(missing)} missing "
            f"names {missing[:3]}, expected exactly the names of {type(module).__name__}; use the "
            "model section that these weights were trained with"
        )
    for name, shape in own.items():
        if tuple(state[name].shape) != shape:
            raise UserError(
                f"{what}: found {name} of shape {tuple(state[name].shape)}, expected {shape}; use "
                "the model section that these weights were trained with"
            )
    module.load_state_dict(dict(state), assign=assign)
