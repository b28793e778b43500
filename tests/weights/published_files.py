"""Tiny weights in each published form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.helpers.paths import GOLDEN
from vjepa_fast.models.jepa import VJEPA, build_vjepa
from vjepa_fast.models.positions import position_table
from vjepa_fast.weights import encoder_to_published, predictor_to_published

GRID, CROP, FRAMES = (2, 3, 3), 24, 4
ENCODER = {"width": 24, "depth": 2, "heads": 2}
PREDICTOR = {"width": 12, "depth": 1, "heads": 2}
# What open_weights and import_weights have to be told of these models.
FIRST = {"heads": 2}
SECOND = {"heads": 2, "predictor_heads": 2, "crop_size": CROP, "num_frames": (FRAMES,)}


def tiny(seed: int = 0, mask_tokens: int = 2, *, second: bool = False) -> VJEPA:
    """A model with random weights everywhere, also where training starts with zeros."""
    model = build_vjepa(
        encoder=ENCODER,
        predictor=PREDICTOR,
        grid=GRID,
        patch_size=8,
        tubelet_size=2,
        num_mask_tokens=mask_tokens,
        positions="rope_tiled" if second else "sincos",
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def checkpoint(
    mask_tokens: int = 2,
    *,
    second: bool = False,
    tables: bool | None = None,
    prefix: str = "module.backbone.",
    target: str = "target_encoder",
) -> dict:
    """A published checkpoint, with another target encoder, and with what else such files hold.

    Args:
        mask_tokens: of the predictor.
        second: of the second generation.
        tables: whether it holds position tables; None: if it is of the first generation.
        prefix: of all names.
        target: key of the target encoder.
    """
    model, other = tiny(1, mask_tokens, second=second), tiny(2, second=second)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    content = {
        "encoder": encoder_to_published(model.encoder.state_dict()),
        "predictor": predictor_to_published(model.predictor.state_dict()),
        target: encoder_to_published(other.encoder.state_dict()),
    }
    if tables or (tables is None and not second):
        for part, name in (("encoder", ""), ("predictor", "predictor_"), (target, "")):
            width = PREDICTOR["width"] if part == "predictor" else ENCODER["width"]
            content[part][f"backbone.{name}pos_embed"] = position_table(width, GRID)[None]
    for part, state in content.items():
        content[part] = {
            prefix + name.removeprefix("backbone."): value for name, value in state.items()
        }
    return content | {
        "opt": optimizer.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
        "epoch": 300,
        "loss": 0.35,
        "batch_size": 24,
        "world_size": 128,
        "lr": 1e-6,
    }


def golden_checkpoint(file: str, prefix: str = "module.backbone.") -> tuple[dict, dict]:
    """A checkpoint with a golden file's weights as the public code trained them, and its numbers.

    The golden file has position tables, which never change, in the initial weights alone.
    """
    with np.load(GOLDEN / file) as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data.files if name != "meta"}
        meta = json.loads(str(data["meta"]))
    content: dict[str, dict[str, Tensor]] = {}
    for part in ("encoder", "predictor", "target_encoder"):
        first = "init/predictor/" if part == "predictor" else "init/encoder/"
        final = f"final/{part}/"
        state = {n.removeprefix(first): v for n, v in arrays.items() if n.startswith(first)}
        state = {n: v for n, v in state.items() if n.endswith("pos_embed")}
        state |= {n.removeprefix(final): v for n, v in arrays.items() if n.startswith(final)}
        content[part] = {prefix + n.removeprefix("backbone."): v for n, v in state.items()}
    return content, meta


def save(content: object, path: Path, *, legacy: bool = False) -> Path:
    """torch.save, also in the format of before PyTorch 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
