"""Whether weights are those of an encoder and a predictor of ours, and of which shape."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from vjepa_fast.errors import UserError
from vjepa_fast.models.jepa import build_vjepa
from vjepa_fast.weights.reading.other_models import counted, listed, other_vjepa
from vjepa_fast.weights.weight_file import Weight

Parts = Mapping[str, Mapping[str, Weight]]
ANOTHER = "give a file of V-JEPA or V-JEPA 2 as its training wrote it"


def require_supported(path: Path, what: str, names: Collection[str]) -> None:
    """Raise UserError for a relative of V-JEPA, by names of its tensors or keys of its config.

    Args:
        what: has these names, for the message.
    """
    if relative := other_vjepa(names):
        raise UserError(
            f"{path}: found {what} of {relative}, which is not supported yet, expected weights of "
            "V-JEPA or V-JEPA 2; give one of those"
        )


def require_this_kind(path: Path, parts: Parts) -> str:
    """Refuse relatives of V-JEPA, and what has no patch embedding of tubelets.

    Returns:
        the part whose shape counts: "encoder", or "target_encoder" if it is the only one.

    Raises:
        UserError: the weights are of another model, or of a predictor alone.
    """
    for part, weights in parts.items():
        require_supported(path, f"the {part}", weights)
        embed = weights.get("patch_embed.proj.weight")
        if part == "predictor":
            continue
        if embed is None:
            raise UserError(
                f"{path}: found tensors of another model ({listed(list(weights))}), expected the "
                f"{part} of V-JEPA, with patch_embed.proj.weight and blocks; {ANOTHER}"
            )
        if len(embed.shape) == 4:
            raise UserError(
                f"{path}: found a patch embedding of images, of shape {embed.shape}, as I-JEPA and "
                f"other image models have it, expected one of tubelets; {ANOTHER}"
            )
        if len(embed.shape) != 5 or embed.shape[1] != 3 or embed.shape[3] != embed.shape[4]:
            raise UserError(
                f"{path}: found a patch embedding of shape {embed.shape}, expected [width, 3, "
                f"frames, side, side]; {ANOTHER}"
            )
    encoder = next((part for part in ("encoder", "target_encoder") if part in parts), None)
    if encoder is None:
        raise UserError(f"{path}: found no encoder, expected one; {ANOTHER}")
    return encoder


def encoder_shape(path: Path, part: str, weights: Mapping[str, Weight]) -> dict[str, int]:
    """Width, depth, hidden width of the MLP, patch_size and tubelet_size.

    Raises:
        UserError: blocks are missing.
    """
    width, _, tubelet_size, patch_size, _ = weights["patch_embed.proj.weight"].shape
    depth = _depth(path, part, weights)
    hidden = weights.get("blocks.0.mlp.fc1.weight")
    if hidden is None or len(hidden.shape) != 2:
        raise UserError(
            f"{path}: found no matrix blocks.0.mlp.fc1.weight in the {part}, expected the blocks "
            f"of a vision transformer; {ANOTHER}"
        )
    return {
        "width": width,
        "depth": depth,
        "hidden": hidden.shape[0],
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
    }


def predictor_shape(path: Path, weights: Mapping[str, Weight]) -> dict[str, int]:
    """Width, depth and number of mask tokens.

    Raises:
        UserError: blocks, embedding or mask tokens are missing.
    """
    depth = _depth(path, "predictor", weights)
    embed, tokens = weights.get("embed.weight"), weights.get("mask_tokens")
    if embed is None or tokens is None or len(embed.shape) != 2 or len(tokens.shape) != 2:
        raise UserError(
            f"{path}: found a predictor without an embedding or mask tokens "
            f"({listed(list(weights))}), expected that of V-JEPA; {ANOTHER}"
        )
    return {"width": embed.shape[0], "depth": depth, "mask_tokens": tokens.shape[0]}


def _depth(path: Path, part: str, weights: Mapping[str, Weight]) -> int:
    """Number of blocks, which are numbered from 0."""
    found = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    numbers = [str(i) for i in range(len(found))]
    if found != set(numbers) or not found:
        missing = [number for number in numbers if number not in found]
        raise UserError(
            f"{path}: found the {part} without block {listed(missing) or 0}, expected "
            f"blocks numbered from 0 without a gap; {ANOTHER}"
        )
    return len(found)


def require_exactly(
    path: Path, parts: Parts, model: Mapping, num_mask_tokens: int
) -> dict[str, dict[str, Weight]]:
    """Every parameter of the model is there in its shape, and nothing else is.

    Args:
        model: the `model` section of a config.

    Returns:
        the parts, their parameters in the order of the model's.

    Raises:
        UserError: names are unknown or missing, or a shape differs.
    """
    with torch.device("meta"):
        own = build_vjepa(
            encoder=model["encoder"],
            predictor=model["predictor"],
            grid=(1, 1, 1),
            patch_size=model["patch_size"],
            tubelet_size=model["tubelet_size"],
            num_mask_tokens=num_mask_tokens,
            positions="rope_tiled",  # has the same parameters, and no table to compute
            seed=None,
        )
    ordered = {}
    for part, weights in parts.items():
        network = own.predictor if part == "predictor" else own.encoder
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        missing = [name for name in shapes if name not in weights]
        unknown = [name for name in weights if name not in shapes]
        if missing or unknown:
            found = [counted("unknown tensor", unknown)] * bool(unknown)
            found += [counted("missing tensor", missing)] * bool(missing)
            raise UserError(
                f"{path}: found {' and '.join(found)} in the {part}, expected exactly those of "
                f"V-JEPA; {ANOTHER}"
            )
        for name, shape in shapes.items():
            if weights[name].shape != shape:
                raise UserError(
                    f"{path}: found {name} of shape {weights[name].shape} in the {part}, expected "
                    f"{shape}, as the other weights have it; {ANOTHER}"
                )
        ordered[part] = {name: weights[name] for name in shapes}
    return ordered
