"""Loads a frozen encoder from what holds one: a run, a checkpoint, an export, a published file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vjepa_fast.config import parse_config, translate_stored
from vjepa_fast.config.model import empty_encoder
from vjepa_fast.config.networks import ModelConfig
from vjepa_fast.errors import UserError
from vjepa_fast.inference.clips import Sampling
from vjepa_fast.inference.encoder import Network, VideoEncoder
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints
from vjepa_fast.weights import load_exactly
from vjepa_fast.weights.open_file import open_weights
from vjepa_fast.weights.weight_file import WeightFile

_FRAMES = 16  # of a clip, where a file of the second generation does not tell


def load_encoder(
    path: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    heads: int | None = None,
    crop_size: int | None = None,
    num_frames: int | None = None,
    generation: Literal[1, 2] | None = None,
) -> VideoEncoder:
    """Load the encoder whose features are the result of a training.

    From a run or a checkpoint that is the target encoder (of a run with a frozen one, the encoder).
    Video files are sampled as the run did, also from an export for transformers or as safetensors;
    published files of the first generation at every fourth frame, of the second at four frames per
    second.

    Args:
        path: a run's folder (its newest checkpoint counts), a checkpoint's, an exported folder or
            file, a published checkpoint, or a folder or file of `transformers`.
        device: of the weights; None: the GPU where there is one.
        dtype: of the weights and the computation; None: bf16 on a GPU, fp32 on a CPU.
        heads: attention heads, where they are not known.
        crop_size, num_frames: size in pixels and length of clips, where they are not known or
            others are wanted. A position table is computed for them.
        generation: of a published file that does not show whether it is of V-JEPA (1) or of
            V-JEPA 2 (2).

    Raises:
        UserError: nothing that can be read is there; what cannot be known is asked for; a size does
            not fit; the weights are not finite.
    """
    path = Path(path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    found = read_encoder(
        path,
        dtype=dtype,
        heads=heads,
        crop_size=crop_size,
        num_frames=num_frames,
        generation=generation,
    )
    sampling = replace(
        found.sampling,
        num_frames=num_frames or found.sampling.num_frames,
        crop_size=crop_size or found.sampling.crop_size,
    )
    longest = replace(sampling, num_frames=num_frames or found.longest)
    for clip in (sampling, longest):
        _check_sizes(clip, found.model)
    encoder = _filled(empty_encoder(found.model, _grid(longest, found.model)), found.state, path)
    for parameter in encoder.parameters():  # not the position table, which is added in fp32
        parameter.data = parameter.data.to(device, dtype)
    return VideoEncoder(encoder.to(device), sampling, path, found.network)


def read_encoder(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    heads: int | None = None,
    crop_size: int | None = None,
    num_frames: int | None = None,
    generation: Literal[1, 2] | None = None,
) -> FoundEncoder:
    """Read the weights that `load_encoder` loads, and what they are of; arguments as there.

    Weights of a run are fp32, whatever `dtype` says.
    """
    if not path.exists():
        raise UserError(
            f"{path}: found no such file or folder, expected a run, a checkpoint, an export or a "
            "published file; check the path"
        )
    if _is_ours(path):
        return _read_run(path, heads)
    return _read_file(_open_file(path, heads, crop_size, num_frames, generation), dtype)


def load_target_encoder(checkpoint: Checkpoint) -> VisionTransformer:
    """The encoder with the run's `Checkpoint.result_weights`, fp32, without gradients."""
    config = parse_config(translate_stored(checkpoint.state["config"]))
    grid = config.grid_of(max(config.data.lengths))
    state = checkpoint.weights("encoder", checkpoint.result_weights)
    return _filled(empty_encoder(config.model, grid), state, checkpoint.folder)


def _is_ours(path: Path) -> bool:
    """Whether a folder is a run, with or without checkpoints, or a checkpoint."""
    if not path.is_dir():
        return False
    if checkpoints(path) or (path / "state.json").is_file():
        return True
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"data", "model", "output"} <= config.keys()


@dataclass(frozen=True)
class FoundEncoder:
    """What a run or a file holds.

    Attributes:
        model: shapes of the networks.
        sampling: of a clip from a video file.
        longest: frames of the longest clips that it was trained on.
        network: which encoder `state` is.
        state: its weights.
    """

    model: ModelConfig
    sampling: Sampling
    longest: int
    network: Network
    state: dict[str, Tensor]


def _read_run(path: Path, heads: int | None) -> FoundEncoder:
    checkpoint = Checkpoint.find(path)
    config = parse_config(translate_stored(checkpoint.state["config"]))
    model, data = config.model, config.data
    if heads not in (None, model.encoder.heads):
        raise UserError(
            f"heads: found {heads}, expected {model.encoder.heads}, with which {path} was trained; "
            "leave heads out"
        )
    which = checkpoint.result_weights
    return FoundEncoder(
        model,
        Sampling(data.num_frames, data.crop_size, data.frame_step, data.fps),
        max(data.lengths),
        "target_encoder" if which == "teacher" else "encoder",
        checkpoint.weights("encoder", which),
    )


def _read_file(file: WeightFile, dtype: torch.dtype) -> FoundEncoder:
    sampling = Sampling(max(file.num_frames), file.crop_size, **file.pace)
    part = file.target_encoder
    state = {}
    for name, weight in file.parts[part].items():  # one at a time: fp32 is twice as large as bf16
        value = weight.read()
        check_finite(name, value, file.path)
        state[name] = value.to(dtype)
    model = ModelConfig.model_validate(file.model)
    return FoundEncoder(model, sampling, sampling.num_frames, part, state)


def _open_file(
    path: Path,
    heads: int | None,
    crop_size: int | None,
    num_frames: int | None,
    generation: Literal[1, 2] | None,
) -> WeightFile:
    """Open a file or folder of weights.

    What the caller says about clips counts only where the file does not tell, since an encoder can
    be used with other clips. The predictor's heads are of no concern.
    """
    try:
        return open_weights(path, heads=heads, generation=generation)
    except UserError as error:
        first = error
    clip = {"crop_size": crop_size, "num_frames": [num_frames or _FRAMES]} if crop_size else {}
    try:
        return open_weights(path, heads=heads, predictor_heads=1, generation=generation, **clip)
    except UserError as error:
        # A config knows other heads than our 1: then the first error is the true one.
        raise (first if str(error).startswith("--predictor-heads") else error) from None


def _check_sizes(sampling: Sampling, model: ModelConfig) -> None:
    for name, found, unit in (
        ("num_frames", sampling.num_frames, model.tubelet_size),
        ("crop_size", sampling.crop_size, model.patch_size),
    ):
        if found < 1 or found % unit:
            raise UserError(
                f"{name}: found {found}, expected a multiple of {unit}, which is the size of a "
                f"token; set e.g. {name}={max(found // unit, 1) * unit}"
            )


def _grid(sampling: Sampling, model: ModelConfig) -> tuple[int, int, int]:
    side = sampling.crop_size // model.patch_size
    return sampling.num_frames // model.tubelet_size, side, side


def _filled(
    encoder: VisionTransformer, state: Mapping[str, Tensor], source: Path
) -> VisionTransformer:
    """Give the weights to an empty encoder."""
    load_exactly(encoder, state, str(source), assign=True)
    for name, parameter in encoder.named_parameters():
        check_finite(name, parameter, source)
    return encoder.requires_grad_(False)


def check_finite(name: str, value: Tensor, source: Path) -> None:
    """Raise UserError where the parameter of that name is not finite."""
    if not value.isfinite().all():
        raise UserError(
            f"{source}: found NaN or infinite numbers in the encoder's {name}, expected finite "
            "weights; use another checkpoint"
        )
