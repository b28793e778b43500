"""The model that weights belong to: its shape, from the weights and from what the user says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from vjepa_fast.errors import UserError
from vjepa_fast.models.jepa import build_vjepa
from vjepa_fast.weights.reading.clip_size import (
    Clip,
    clip_of_table,
    clip_without_table,
    require_table,
)
from vjepa_fast.weights.reading.names import Named
from vjepa_fast.weights.reading.other_models import listed, other_vjepa
from vjepa_fast.weights.weight_file import Weight, WeightFile

# Heads of the encoders of jepa and vjepa2, by width. Nothing in the weights shows them.
ENCODER_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
PREDICTOR_HEADS = {384: 12}  # of the second generation; in the first, the encoder's
ANOTHER = "give a file of V-JEPA or V-JEPA 2 as its training wrote it"


@dataclass(frozen=True)
class Known:
    """What is known of a model and its clips beside the weights.

    Attributes:
        heads, predictor_heads, crop_size: None: not known.
        num_frames: frames per clip, in the order of the mask tokens; None: not known.
        positions: of an own export; None: "sincos" if there is a position table, else "rope_tiled".
        uniform_power: of an own export without a table.
    """

    heads: int | None = None
    predictor_heads: int | None = None
    crop_size: int | None = None
    num_frames: tuple[int, ...] | None = None
    positions: Literal["sincos", "rope_tiled", "rope"] | None = None
    uniform_power: bool = True


def weight_file(
    path: Path,
    kind: Literal["published", "transformers", "safetensors"],
    named: Named,
    known: Known,
) -> WeightFile:
    """Check all weights, and find the model that they belong to.

    Raises:
        UserError: they are of another model, incomplete, contradict themselves or what is known, or
            something is not known.
    """
    parts = {part: weights for part, weights in named.parts.items() if weights}
    encoder = next((p for p in ("encoder", "target_encoder") if p in parts), None)
    if encoder is None:
        raise UserError(f"{path}: found no encoder, expected one; {ANOTHER}")
    _require_this_model(path, parts)
    shape = _encoder_shape(path, encoder, parts[encoder])
    width, patch_size, tubelet_size = shape["width"], shape["patch_size"], shape["tubelet_size"]
    table = named.tables.get(encoder)
    clip = (
        clip_of_table(table, width, patch_size, tubelet_size, known.num_frames, known.crop_size)
        if table
        else replace_power(
            clip_without_table(path, known.num_frames, known.crop_size, patch_size, tubelet_size),
            known.uniform_power,
        )
    )
    positions = known.positions or ("sincos" if table else "rope_tiled")
    first = positions == "sincos"
    if known.positions is None:
        _require_tables(path, named, parts, clip, patch_size, tubelet_size)
    heads = known.heads or ENCODER_HEADS.get(width)
    if heads is None or width % heads:
        raise UserError(_ask_heads(path, "--heads", "encoder", width, heads))
    predictor = _predictor_shape(path, parts.get("predictor"))
    narrow = predictor["width"]
    predictor_heads = known.predictor_heads or (heads if first else PREDICTOR_HEADS.get(narrow))
    if "predictor" not in parts:
        predictor_heads = predictor_heads or heads
    elif predictor_heads is None or narrow % predictor_heads:
        raise UserError(_ask_heads(path, "--predictor-heads", "predictor", narrow, predictor_heads))
    tokens = parts.get("predictor", {}).get("mask_tokens")
    if tokens and len(known.num_frames or ()) > 1:
        assert known.num_frames is not None
        parts["predictor"] = parts["predictor"] | {
            "mask_tokens": _by_length(path, tokens, known.num_frames)
        }
    model = {
        "encoder": {
            "width": width,
            "depth": shape["depth"],
            "heads": heads,
            "mlp_ratio": shape["hidden"] / width,
        },
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "positions": positions,
        "uniform_power": clip.uniform_power,
        "predictor": {"width": narrow, "depth": predictor["depth"], "heads": predictor_heads},
        "mask_tokens": "per_spec" if first else "shared",
        "depth_scaled_init": not first,
    }
    _require_exactly(path, parts, model, predictor["mask_tokens"])
    return WeightFile(
        path=path,
        kind=kind,
        generation=1 if first else 2,
        model=model,
        num_frames=clip.num_frames,
        crop_size=clip.crop_size,
        parts=parts,
        left_out=named.left_out,
    )


def replace_power(clip: Clip, uniform_power: bool) -> Clip:
    """The clip of weights without a table whose channels were split so."""
    return clip._replace(uniform_power=uniform_power)


def _require_this_model(path: Path, parts: Mapping[str, Mapping[str, Weight]]) -> None:
    """Name relatives of V-JEPA, and refuse what has no patch embedding of tubelets."""
    for part, weights in parts.items():
        if relative := other_vjepa(weights):
            raise UserError(
                f"{path}: found the {part} of {relative}, which is not supported yet, expected "
                "weights of V-JEPA or V-JEPA 2; give one of those"
            )
        if part == "predictor":
            continue
        embed = weights.get("patch_embed.proj.weight")
        if embed is None:
            raise UserError(
                f"{path}: found tensors of another model ({listed(list(weights))}), expected the "
                f"{part} of V-JEPA, with patch_embed.proj.weight and blocks; {ANOTHER}"
            )
        if len(embed.shape) == 4:
            raise UserError(
                f"{path}: found a patch embedding of images, of shape {embed.shape}, as I-JEPA "
                "has it, expected one of tubelets [width, 3, frames, side, side]; "
                f"{ANOTHER}"
            )
        if len(embed.shape) != 5 or embed.shape[1] != 3 or embed.shape[3] != embed.shape[4]:
            raise UserError(
                f"{path}: found a patch embedding of shape {embed.shape}, expected [width, 3, "
                f"frames, side, side]; {ANOTHER}"
            )


def _depth(path: Path, part: str, weights: Mapping[str, Weight]) -> int:
    """Number of blocks; they are numbered from 0."""
    found = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    numbers = [str(i) for i in range(len(found))]
    if found != set(numbers) or not found:
        missing = [number for number in numbers if number not in found]
        raise UserError(
            f"{path}: found {len(found)} blocks in the {part}, without {listed(missing) or 'any'}, "
            f"expected blocks numbered from 0 without a gap; {ANOTHER}"
        )
    return len(found)


def _encoder_shape(path: Path, part: str, weights: Mapping[str, Weight]) -> dict[str, int]:
    width, _, tubelet_size, patch_size, _ = weights["patch_embed.proj.weight"].shape
    depth = _depth(path, part, weights)
    hidden = weights.get("blocks.0.mlp.fc1.weight")
    if hidden is None:
        raise UserError(
            f"{path}: found no blocks.0.mlp.fc1.weight in the {part}, expected the blocks of a "
            f"vision transformer; {ANOTHER}"
        )
    return {
        "width": width,
        "depth": depth,
        "hidden": hidden.shape[0] if hidden.shape else 0,
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
    }


def _predictor_shape(path: Path, weights: Mapping[str, Weight] | None) -> dict[str, int]:
    """Shape of the predictor; that of the published ones if there is none."""
    if weights is None:
        return {"width": 384, "depth": 12, "mask_tokens": 1}
    depth = _depth(path, "predictor", weights)
    embed, tokens = weights.get("embed.weight"), weights.get("mask_tokens")
    if embed is None or tokens is None or len(embed.shape) != 2 or len(tokens.shape) != 2:
        raise UserError(
            f"{path}: found a predictor without an embedding or mask tokens "
            f"({listed(list(weights))}), expected V-JEPA's; {ANOTHER}"
        )
    return {"width": embed.shape[0], "depth": depth, "mask_tokens": tokens.shape[0]}


def _ask_heads(path: Path, flag: str, part: str, width: int, heads: int | None) -> str:
    if heads is None:
        return (
            f"{path}: found the {part} width {width}, which no published model has, expected "
            f"its number of attention heads, which the weights do not show; give {flag}"
        )
    return (
        f"{flag}: found {heads} heads, expected a divisor of {width}, the width of the {part} in "
        f"{path}; give the number that it was trained with"
    )


def _require_tables(
    path: Path,
    named: Named,
    parts: Mapping[str, Mapping[str, Weight]],
    clip: Clip,
    patch_size: int,
    tubelet_size: int,
) -> None:
    """All parts have the table of the same clips, or none has one."""
    if not named.tables:
        return
    without = [part for part in parts if part not in named.tables]
    if without:
        raise UserError(
            f"{path}: found a position table in the {' and '.join(named.tables)} and none in the "
            f"{' and '.join(without)}, expected it in all of them, or in none; {ANOTHER}"
        )
    side = clip.crop_size // patch_size
    grid = (clip.num_frames[0] // tubelet_size, side, side)
    for part, table in named.tables.items():
        if part in parts:
            norm = parts[part].get("norm.weight")
            width = norm.shape[0] if norm and norm.shape else 0
            require_table(table, width, grid, clip.uniform_power)


def _by_length(path: Path, tokens: Weight, lengths: tuple[int, ...]) -> Weight:
    """Mask tokens, of which token i is that of clips of lengths[i], by ascending length."""
    if tokens.shape[0] < len(lengths):
        raise UserError(
            f"--num-frames: found {len(lengths)} lengths, expected at most {tokens.shape[0]}, the "
            f"number of mask tokens in {path}; give the lengths that it was trained on"
        )
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    order += range(len(lengths), tokens.shape[0])
    if order == sorted(order):
        return tokens
    return replace(tokens, pieces=(lambda: tokens.read()[order],))


def _require_exactly(
    path: Path, parts: Mapping[str, Mapping[str, Weight]], model: dict, num_mask_tokens: int
) -> None:
    """Every parameter of the model is there in its shape, and nothing else."""
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
    for part, weights in parts.items():
        network = own.predictor if part == "predictor" else own.encoder
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        missing = [name for name in shapes if name not in weights]
        unknown = [name for name in weights if name not in shapes]
        if missing or unknown:
            found = [f"{len(unknown)} unknown tensors ({listed(unknown)})"] * bool(unknown)
            found += [f"{len(missing)} missing ones ({listed(missing)})"] * bool(missing)
            raise UserError(
                f"{path}: found {' and '.join(found)} in the {part}, expected exactly those of "
                f"V-JEPA's, by our names; {ANOTHER}"
            )
        for name, shape in shapes.items():
            if weights[name].shape != shape:
                raise UserError(
                    f"{path}: found {name} of shape {weights[name].shape} in the {part}, expected "
                    f"{shape}, as the other weights have it; {ANOTHER}"
                )


def whole_numbers(flag: str, values: tuple[int, ...]) -> None:
    """Raise UserError unless all are positive and differ."""
    if not values or min(values) < 1 or len(set(values)) < len(values) or math.prod(values) < 1:
        raise UserError(
            f"{flag}: found {','.join(map(str, values)) or 'nothing'}, expected different numbers "
            "of at least 1; correct it"
        )
