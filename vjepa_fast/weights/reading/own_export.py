"""Opens our own export of one encoder: safetensors with its config in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vjepa_fast.errors import UserError
from vjepa_fast.models.block import mlp_width
from vjepa_fast.weights.reading.find_model import (
    Known,
    require_agreement,
    told_pace,
    weight_file,
)
from vjepa_fast.weights.reading.names import Named
from vjepa_fast.weights.reading.read_tensors import Stored, no_weights
from vjepa_fast.weights.weight_file import WeightFile

KEY, FORMAT = "vjepa_fast", 1  # in the header's metadata, and in its JSON


def open_own_export(
    path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str], known: Known
) -> WeightFile:
    """Open a file whose header says which model it holds.

    Args:
        path: as named by the user.
        tensors, metadata: from `read_safetensors`.
        known: what the user says.

    Raises:
        UserError: see `open_weights`; the header is not one that this version writes.
    """
    try:
        header = json.loads(metadata[KEY])
        model, network = header["model"], header["network"]
        if header["format"] != FORMAT:
            raise UserError(
                f"{path}: found format {header['format']} of an export, expected {FORMAT}; read it "
                "with the version of vjepa_fast that wrote it"
            )
        told = {
            "heads": int(model["encoder"]["heads"]),
            "crop_size": int(header["crop_size"]),
            "num_frames": (int(header["num_frames"]),),
            "generation": header["generation"],
        }
        positions, uniform_power = model["positions"], model["uniform_power"]
        if told["generation"] != (1 if positions == "sincos" else 2):
            raise ValueError(f"generation {told['generation']} with positions {positions}")
        own = {key: model["encoder"][key] for key in ("width", "depth")}
        own["hidden width"] = mlp_width(own["width"], model["encoder"]["mlp_ratio"])
        own |= {key: model[key] for key in ("patch_size", "tubelet_size")}
    except (ValueError, KeyError, TypeError) as error:
        raise no_weights(path, f"a header of an export without a valid config ({error})") from None
    if network not in ("encoder", "target_encoder"):
        raise no_weights(path, f"the network {network!r} in the header of an export")
    require_agreement(path, known, told)
    named = Named()
    named.add_published(network, tensors.values(), "")
    known = replace(
        known,
        **told,
        by="its header",
        positions=positions,
        uniform_power=uniform_power,
        pace=told_pace(path, header.get("pace")),
    )
    file = weight_file(path, "safetensors", named, known)
    encoder = file.model["encoder"]
    found = file.model | encoder
    found["hidden width"] = mlp_width(encoder["width"], encoder["mlp_ratio"])
    for key, value in own.items():
        if found[key] != value:
            raise UserError(
                f"{path}: found {key} {value} in the header beside tensors of {found[key]}, "
                "expected the same; export it again"
            )
    return replace(file, model=model)
