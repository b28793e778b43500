"""Opens the models of `transformers`: a folder, or its one file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vjepa_fast.errors import UserError
from vjepa_fast.weights.reading.find_model import Known, weight_file
from vjepa_fast.weights.reading.names import Named
from vjepa_fast.weights.reading.other_models import other_vjepa
from vjepa_fast.weights.reading.read_tensors import Stored, no_weights, read_safetensors
from vjepa_fast.weights.weight_file import WeightFile

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
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
}
_FIXED = {"in_chans": 3, "layer_norm_eps": 1e-6, "qkv_bias": True, "hidden_act": "gelu"}


def is_transformers(path: Path, tensors: Collection[str], metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file is one of `transformers`, by the names of its tensors."""
    first = ("encoder.embeddings.", "vjepa2.encoder.embeddings.")
    return any(name.startswith(first) for name in tensors)


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
    if config_file.is_file():
        config = _read_json(config_file)
        if config.get("model_type") != "vjepa2":
            raise no_weights(
                config_file, f"the model_type {config.get('model_type', 'of nothing')}"
            )
        if relative := other_vjepa(config):
            raise UserError(
                f"{path}: found {relative}, which is not supported yet, expected VJEPA2Model; give "
                "weights of V-JEPA or V-JEPA 2"
            )
    elif path.is_dir():
        raise no_weights(path, "a folder without config.json")
    tensors = _tensors(folder) if path.is_dir() else read_safetensors(path)[0]
    named = Named()
    named.add_transformers(path, tensors.values())
    if config is None:
        return weight_file(path, "transformers", named, known)
    values = _DEFAULTS | {key: value for key, value in config.items() if key in _DEFAULTS}
    _require_fixed(config_file, values)
    file = weight_file(path, "transformers", named, _from_config(config_file, values, known))
    _require_numbers(config_file, values, file)
    return file


def _read_json(path: Path) -> dict[str, Any]:
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
    index = _read_json(folder / _INDEX).get("weight_map")
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


def _from_config(config_file: Path, values: Mapping[str, Any], known: Known) -> Known:
    """What the config knows; what the user says must agree with it."""
    of_config = {
        "heads": ("--heads", values["num_attention_heads"]),
        "predictor_heads": ("--predictor-heads", values["pred_num_attention_heads"]),
        "crop_size": ("--crop-size", values["crop_size"]),
    }
    for name, (flag, value) in of_config.items():
        said = getattr(known, name)
        if not isinstance(value, int) or value < 1:
            raise no_weights(config_file, f"{value!r} where {flag.strip('-')} belongs")
        if said not in (None, value):
            raise UserError(
                f"{flag}: found {said}, expected {value}, as {config_file} says; leave it out"
            )
    frames = values["frames_per_clip"]
    if not isinstance(frames, int) or frames < 1:
        raise no_weights(config_file, f"{frames!r} where frames_per_clip belongs")
    if known.generation == 1:
        raise UserError(f"--generation: found 1, expected 2, as {config_file} says; leave it out")
    return replace(
        known,
        generation=2,
        generation_by="model_type vjepa2",
        num_frames=known.num_frames or (frames,),
        **{name: value for name, (_, value) in of_config.items()},
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
        hidden = encoder["width"] * value if key == "mlp_ratio" else None
        same = int(encoder["width"] * said) == round(hidden) if hidden else said == value
        if not same:
            raise UserError(
                f"{config_file}: found {key} {said} beside tensors of {value}, expected the same; "
                "give the folder as it was saved"
            )
