"""Runs without training: checkpoints of random weights, as a trainer of one rank saves them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.config import parse_config
from vjepa_fast.config.model import build_model
from vjepa_fast.models.jepa import VJEPA
from vjepa_fast.training.checkpoint.format import (
    FORMAT,
    shard_name,
    state_checksum,
    write_shard,
)

FIRST = {
    "encoder": {"width": 24, "depth": 2, "heads": 2},
    "predictor": {"width": 12, "depth": 2, "heads": 1},
    "patch_size": 8,
}
SECOND = FIRST | {"positions": "rope_tiled", "mask_tokens": "shared", "depth_scaled_init": True}


def config_of(folder: Path, model: dict, **sections: dict) -> dict:
    """A run's config as JSON data: 8 frames of 24 pixels."""
    data = {"manifests": ["/secret/place/train.csv"], "num_frames": 8, "crop_size": 24}
    specs = [
        {"num_blocks": 2, "spatial_scale": [0.3, 0.3]},
        {"num_blocks": 1, "spatial_scale": [0.6, 0.6]},
    ]
    own = {
        "output": str(folder),
        "data": data | sections.pop("data", {}),
        "model": model,
        "masks": {"specs": specs},
        "optim": {"steps": 100, "global_batch": 24, "micro_batch": 24, "warmup_steps": 10},
        **sections,
    }
    return json.loads(parse_config(own).model_dump_json())


def random_model(config: dict, seed: int = 1, std: float = 0.1) -> VJEPA:
    """The config's networks with weights that are far from their initial ones."""
    model = build_model(parse_config(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=std, generator=generator))
    return model


def write_run(
    folder: Path,
    model: dict,
    *,
    step: int = 40,
    mask_tokens: int | None = None,
    predictor: bool = True,
    imported: dict | None = None,
    std: float = 0.1,
    videos: str = "",
    **sections: dict,
) -> Path:
    """Write a run folder with one checkpoint of random weights; encoder and EMA differ.

    Args:
        folder: to make.
        model: the config's model section.
        step: of the checkpoint.
        mask_tokens: number of them in the weights; None: the config's.
        predictor: whether the checkpoint has one.
        imported: what state.json says of an imported checkpoint.
        std: of the weights.
        videos: hash of the videos, as a planner tells it.
        sections: of the config.
    """
    config = config_of(folder, model, **sections)
    networks, teacher = random_model(config, 1, std), random_model(config, 2, std).encoder
    frozen = config["teacher"]["mode"] == "frozen"
    groups: dict[str, list] = {}
    flat: dict[str, list[Tensor]] = {}
    parameters = dict(networks.named_parameters())
    if mask_tokens is not None:
        width = parameters["predictor.mask_tokens"].shape[1]
        generator = torch.Generator().manual_seed(3)
        parameters["predictor.mask_tokens"] = torch.randn(mask_tokens, width, generator=generator)
    for name, parameter in parameters.items():
        part, _, own = name.partition(".")
        if part == "predictor" and not predictor:
            continue
        group = f"{part}.{'decay' if parameter.ndim >= 2 else 'no_decay'}"
        groups.setdefault(group, []).append([name, list(parameter.shape)])
        flat.setdefault(f"{group}/master", []).append(parameter)
        if part == "encoder" and not frozen:
            flat.setdefault(f"{group}/teacher", []).append(teacher.get_parameter(own))
    tensors = {
        key: torch.cat([value.detach().reshape(-1) for value in values])
        for key, values in flat.items()
    }
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    written = write_shard(checkpoint / shard_name(0), tensors)
    ranges = {group: [[0, tensors[f"{group}/master"].numel()]] for group in groups}
    state = {
        "format": FORMAT,
        "step": step,
        "shards": [{"ranges": ranges, **written}],
        "groups": groups,
        "bad_steps": [0, 0, 0],
        "config": config,
        "videos": videos,
    }
    if imported is not None:
        state["imported"] = imported
    state["checksum"] = state_checksum(state)
    (checkpoint / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
