"""Tiny checkpoints as `vjepa-fast import` writes them, made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from vjepa_fast.config import parse_config
from vjepa_fast.config.model import build_model
from vjepa_fast.training.checkpoint.format import (
    FORMAT,
    shard_name,
    state_checksum,
    write_shard,
)
from vjepa_fast.training.recipe import settings_of
from vjepa_fast.training.zero.engine import parameter_groups

BOTH, ENCODER = ("encoder", "target_encoder", "predictor"), ("encoder",)


def write_imported(
    run: Path,
    model: dict,
    *,
    mask_tokens: int = 2,
    parts: tuple[str, ...] = BOTH,
    file: str = "vit.pt",
) -> Path:
    """Write a run folder with random weights of a file; returns it.

    Args:
        run: the folder to make.
        model: the config's model section.
        mask_tokens: as many as the file has.
        parts: the networks of the file. Without "target_encoder", the encoder stands for it.
        file: its name.
    """
    data = {"manifests": ["imported"], "num_frames": 8, "crop_size": 24}
    config = parse_config({"output": str(run), "data": data, "model": model})
    network = build_model(config)
    network.predictor.mask_tokens = nn.Parameter(
        torch.empty(mask_tokens, network.predictor.mask_tokens.shape[1])
    )
    generator = torch.Generator().manual_seed(3)
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups, tensors = {}, {}
    for group in parameter_groups(network, 0.0):
        if group["part"] not in parts:
            continue
        name, owned = group["name"], group["params"]
        groups[name] = [[names[parameter], list(parameter.shape)] for parameter in owned]

        def drawn(owned: list[Tensor] = owned) -> Tensor:
            noise = torch.randn(sum(p.numel() for p in owned), generator=generator)
            return 0.05 * noise + (1.0 if owned[0].ndim == 1 else 0.0)  # norms, and biases

        tensors[f"{name}/master"] = drawn()
        if group["part"] == "encoder":
            own = "target_encoder" in parts
            tensors[f"{name}/teacher"] = drawn() if own else tensors[f"{name}/master"]
    folder = run / "checkpoints" / "step_00000000"
    folder.mkdir(parents=True)
    ranges = {name: [[0, len(tensors[f"{name}/master"])]] for name in groups}
    rotary = config.model.positions != "sincos"
    state = {
        "format": FORMAT,
        "step": 0,
        "shards": [{"ranges": ranges, **write_shard(folder / shard_name(0), tensors)}],
        "groups": groups,
        "config": settings_of(config),
        "videos": "",
        "imported": {
            "file": file,
            "kind": "published",
            "generation": 2 if rotary else 1,
            "parts": list(parts),
        },
    }
    state["checksum"] = state_checksum(state)
    (folder / "state.json").write_text(json.dumps(state))
    (run / "config.json").write_text(json.dumps(settings_of(config)))
    return run
