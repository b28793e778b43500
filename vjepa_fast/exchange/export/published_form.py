"""One file as facebookresearch/jepa and facebookresearch/vjepa2 write their checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.form import Form, difference, features, own_features, random_clip
from vjepa_fast.exchange.export.source import LazyTensor, Source
from vjepa_fast.models.positions import position_table
from vjepa_fast.weights import (
    encoder_from_published,
    encoder_to_published,
    predictor_to_published,
)

HUB_MASK_TOKENS = 10  # of the predictor that vjepa2's src/hub/backbones.py builds
_TENSOR_OVERHEAD = 1024  # bytes at most of a tensor's entry in the file, alignment included
_LOAD = """import torch
state = torch.load("./NAME/FILE", map_location="cpu", weights_only=True)
weights = {name.removeprefix("module.backbone."): value for name, value in state["NETWORK"].items()}
"""


def published_mask_tokens(tokens: Tensor, least: int) -> Tensor:
    """The mask tokens of a published file, [M, P]: a run's, repeated in turn up to `least`.

    First generation: the public code uses the index of the mask spec.

    Second generation: it uses the index of the clip's length among the lengths of its config in
    training, and index 1 in the predictor's own default; the predictor that its hub builds has 10.
    A run of ours has one token for each length, ascending. So the first ones are those of the
    lengths, and no index is one that nothing trained.
    """
    count = max(len(tokens), least)
    return tokens[torch.arange(count) % len(tokens)]


def _least_mask_tokens(source: Source) -> int:
    """How many of them the public code wants; an imported checkpoint has what its file had."""
    if source.imported is not None:
        return 0
    return HUB_MASK_TOKENS if source.generation == 2 else len(source.config.masks.specs)


def _mask_token_note(source: Source) -> tuple[str, ...]:
    """Where the public predictor cannot take the run's mask tokens as the run does."""
    if source.imported is not None or not source.has_predictor or source.num_mask_tokens == 1:
        return ()
    shared = source.config.model.mask_tokens == "shared"
    if shared == (source.generation == 2):
        return ()
    ours, theirs = ("clip length", "mask spec") if shared else ("mask spec", "clip length")
    return (
        f"The run has a mask token for each {ours}, the public code takes one for each {theirs}: "
        "its predictions are not the run's, features are.",
    )


def fresh_optimizer(parts: Mapping[str, Mapping[str, Tensor]], source: Source) -> dict:
    """State of a fresh AdamW, which both public loaders want beside the weights.

    Its groups are theirs: encoder and predictor with weight decay, then both without. They count
    the position tables as well.
    """
    optim = source.config.optim
    groups = []
    for decays in (True, False):
        for part in ("encoder", "predictor"):
            count = sum(
                decays == ("bias" not in name and value.ndim != 1)
                for name, value in parts[part].items()
            )
            decay = optim.weight_decay if decays else 0.0
            own = {"params": [torch.zeros(1) for _ in range(count)], "weight_decay": decay}
            groups.append(own if decays else own | {"WD_exclude": True})
    adam = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    return adam.state_dict()


# of a new torch GradScaler
_FRESH_SCALER = {
    "scale": 65536.0,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
    "_growth_tracker": 0,
}


def published_state(source: Source) -> dict:
    """The content of the file: tensors, numbers and names only.

    Keys: encoder, target_encoder and, if the checkpoint has a predictor, predictor; names as under
    torch's DistributedDataParallel (`module.backbone.…`), with the position tables in the first
    generation; opt, scaler and epoch (0: their schedules start anew) as their loaders read them.
    """
    first = source.generation == 1
    model = source.config.model
    grid = source.config.grid_of(source.num_frames)
    parts: dict[str, dict[str, Tensor]] = {}
    for part in ("encoder", "target_encoder"):
        named = encoder_to_published(source.state(part))
        if first:
            table = position_table(model.encoder.width, grid, model.uniform_power)
            named = {"backbone.pos_embed": table.unsqueeze(0)} | named
        parts[part] = {f"module.{name}": value for name, value in named.items()}
    if not source.has_predictor:
        return {**parts, "epoch": 0}
    own = source.state("predictor")
    own["mask_tokens"] = published_mask_tokens(own["mask_tokens"], _least_mask_tokens(source))
    named = {name: value.clone() for name, value in predictor_to_published(own).items()}
    if first:
        table = position_table(model.predictor.width, grid, model.uniform_power)
        named = {"backbone.predictor_pos_embed": table.unsqueeze(0)} | named
    parts["predictor"] = {f"module.{name}": value for name, value in named.items()}
    optimizer = fresh_optimizer(parts, source)
    return {**parts, "opt": optimizer, "scaler": _FRESH_SCALER, "epoch": 0}


def _size(source: Source) -> int:
    parts = ["encoder", "target_encoder"] + ["predictor"] * source.has_predictor
    tensors: list[LazyTensor] = [t for part in parts for t in source.part(part).values()]
    tokens = source.config.grid_of(source.num_frames)
    table = tokens[0] * tokens[1] * tokens[2] if source.generation == 1 else 0
    widths = 2 * source.config.model.encoder.width + source.config.model.predictor.width
    own = sum(4 * tensor.size + _TENSOR_OVERHEAD for tensor in tensors)
    return own + 4 * table * widths + 2**20


def published_form(source: Source) -> Form:
    """The form "published".

    Raises:
        UserError: true rotations, which no published code computes.
    """
    if source.config.model.positions == "rope":
        raise UserError(
            "--to published: found a model with positions rope, expected sincos or rope_tiled, "
            "since the public code would rotate by other angles; use --to safetensors, or "
            "train with model.positions=rope_tiled"
        )
    second = source.generation == 2
    file = "vjepa2.pt" if second else "vjepa.pth.tar"

    def write(folder: Path) -> None:
        with open(folder / file, "wb") as opened:
            try:
                torch.save(published_state(source), opened)
            except RuntimeError as error:  # how torch reports a write that failed
                cause = error.__context__
                raise (cause if isinstance(cause, OSError) else error) from None
            opened.flush()
            os.fsync(opened.fileno())

    def check(folder: Path) -> tuple[float, float]:
        state = torch.load(folder / file, map_location="cpu", weights_only=True, mmap=True)
        weights = encoder_from_published(state[source.network])
        video = random_clip(source)
        found = features(source.build_encoder(weights), video)
        return difference(found, own_features(source, video)), 0.0

    code = "facebookresearch/" + ("vjepa2" if second else "jepa")
    parts = (
        f"`{file}`: encoder, target encoder and predictor in fp32, as {code} saves them."
        if source.has_predictor
        else f"`{file}`: encoder and target encoder in fp32, as {code} saves them.",
        "Its optimizer state is a fresh one."
        if source.has_predictor
        else "There is no predictor: the public evaluations load it, pretraining does not.",
        *_mask_token_note(source),
    )
    return Form(
        size=_size(source),
        write=write,
        check=check,
        library="pytorch",
        tags=("feature-extraction",),
        title="checkpoint for the public code",
        parts=parts,
        load=_LOAD.replace("FILE", file).replace("NETWORK", source.network),
    )
