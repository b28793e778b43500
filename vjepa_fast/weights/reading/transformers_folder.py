"""Opens the models of `transformers`: a folder, or its one file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vjepa_fast.errors import UserError
from vjepa_fast.weights.reading.check_weights import require_supported
from vjepa_fast.weights.reading.find_model import (
    Known,
    require_agreement,
    told_pace,
    weight_file,
)
from vjepa_fast.weights.reading.names import Named
from vjepa_fast.weights.reading.read_tensors import Stored, no_weights, read_safetensors
from vjepa_fast.weights.weight_file import WeightFile

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
PACE = "vjepa_fast_pace"  # key of a config.json that we wrote
# What VJEPA2Config is where a config.json leaves a key out.
_DEFAULTS: dict[str, Any] = {
    "patch_size": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
    "tubelet_size": 2,
    "hidden_size": 1024,
    "in_chans": 3,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "pred_hidden_size": 384,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
    "pred_mlp_ratio": 4.0,
    "uniform_power": True,  # of the first generation, in our export
}
# VJEPA2Model, and our own export of the first generation, by model_type.
_GENERATIONS: dict[str, Literal[1, 2]] = {"vjepa2": 2, "vjepa": 1}
_FIXED = {"in_chans": 3, "layer_norm_eps": 1e-6, "qkv_bias": True, "hidden_act": "gelu"}


def is_transformers(names: Iterable[str]) -> bool:
    """Whether these are names of `transformers`, of a whole model or of one in a classifier."""
    return any(name.removeprefix("vjepa2.").startswith("encoder.embeddings.") for name in names)


def open_transformers(path: Path, known: Known) -> WeightFile:
    """Open a folder of `transformers`, or its file.

    A file without config.json beside it is like a published one: what the weights don't show must
    be known.

    Raises:
        UserError: see `open_weights`.
    """
    folder = path if path.is_dir() else path.parent
    config_file = folder / "config.json"
    config = None
    if path.is_dir() or config_file.is_file():
        config = read_json(config_file)
        require_supported(path, "a config.json", config)
        if config.get("model_type") not in _GENERATIONS:
            found = config.get("model_type")
            raise no_weights(path, f"a config.json {f'of model_type {found}' if found else ''}")
    tensors = _tensors(folder) if path.is_dir() else read_safetensors(path)[0]
    named = Named()
    named.add_transformers(path, tensors.values())
    if config is None:
        return weight_file(path, "transformers", named, known)
    values = _DEFAULTS | {key: value for key, value in config.items() if key in _DEFAULTS}
    _require_fixed(config_file, values)
    generation = _GENERATIONS[config["model_type"]]
    known = _from_config(config_file, values, known, generation)
    known = replace(known, pace=told_pace(config_file, config.get(PACE)))
    file = weight_file(path, "transformers", named, known)
    _require_numbers(config_file, values, file)
    return file


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that belongs to weights.

    Raises:
        UserError: there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise no_weights(path, f"a file that is no JSON text ({reason})") from None
    if not isinstance(content, dict):
        raise no_weights(path, "JSON text that is no object")
    return content


def _tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder's one file, or of all files that its index names."""
    if (folder / _FILE).is_file():
        return read_safetensors(folder / _FILE)[0]
    if not (folder / _INDEX).is_file():
        raise no_weights(folder, f"a folder without {_FILE} and without {_INDEX}")
    index = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise no_weights(folder / _INDEX, "no weight_map of names")
    tensors: dict[str, Stored] = {}
    for name in sorted(set(index.values())):
        file = folder / name
        if not file.is_file():
            raise no_weights(folder, f"no {name}, which {_INDEX} names")
        tensors |= read_safetensors(file)[0]
    if lost := sorted(index.keys() ^ tensors.keys()):
        raise UserError(
            f"{folder}: found {lost[0]} in only one of {_INDEX} and the files that it names, "
            "expected the same tensors in both; copy or download the folder again"
        )
    return tensors


def _require_fixed(config_file: Path, values: Mapping[str, Any]) -> None:
    for key, expected in _FIXED.items():
        if values[key] != expected:
            raise UserError(
                f"{config_file}: found {key} {values[key]}, expected {expected}, as every V-JEPA 2 "
                "has it; give weights of V-JEPA 2"
            )


def _from_config(
    config_file: Path, values: Mapping[str, Any], known: Known, generation: Literal[1, 2]
) -> Known:
    """What the config knows; what the user says must agree with it."""
    for key in ("num_attention_heads", "pred_num_attention_heads", "crop_size", "frames_per_clip"):
        if not isinstance(values[key], int) or values[key] < 1:
            raise no_weights(config_file, f"{key} {values[key]!r} in a config")
    told = {
        "heads": values["num_attention_heads"],
        "predictor_heads": values["pred_num_attention_heads"] if generation == 2 else None,
        "crop_size": values["crop_size"],
        "generation": generation,
    }
    require_agreement(config_file, known, told)
    if generation == 1:
        require_agreement(config_file, known, {"num_frames": (values["frames_per_clip"],)})
    return replace(
        known,
        **told,
        num_frames=known.num_frames or (values["frames_per_clip"],),
        by="config.json",
        positions="sincos" if generation == 1 else "rope_tiled",
        uniform_power=bool(values["uniform_power"]),
    )


def _require_numbers(config_file: Path, values: Mapping[str, Any], file: WeightFile) -> None:
    """The config's numbers are those of the tensors."""
    model, encoder = file.model, file.model["encoder"]
    found = {
        "hidden_size": encoder["width"],
        "num_hidden_layers": encoder["depth"],
        "mlp_ratio": encoder["mlp_ratio"],
        "patch_size": model["patch_size"],
        "tubelet_size": model["tubelet_size"],
    }
    if "predictor" in file.parts:
        found["pred_hidden_size"] = model["predictor"]["width"]
        found["pred_num_hidden_layers"] = model["predictor"]["depth"]
        found["pred_num_mask_tokens"] = file.parts["predictor"]["mask_tokens"].shape[0]
    for key, value in found.items():
        said = values[key]
        same = said == value
        if key == "mlp_ratio" and isinstance(said, int | float):  # the hidden width is rounded
            same = encoder["width"] * abs(said - value) < 1
        if not same:
            raise UserError(
                f"{config_file}: found {key} {said} beside tensors of {value}, expected the same; "
                "give the folder as it was saved"
            )
