"""A folder of the second generation that transformers loads as its own VJEPA2Model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.form import (
    Form,
    from_ours,
    random_clip,
    safetensors_size,
)
from vjepa_fast.exchange.export.hf.folder import (
    METADATA,
    WEIGHTS,
    check_names,
    load_quietly,
    preprocessed,
    write_folder,
)
from vjepa_fast.exchange.export.source import LazyTensor, Source, Tensors
from vjepa_fast.models.block import NORM_EPS, mlp_width
from vjepa_fast.weights.reading.transformers_folder import PACE

_KINDS = ("weight", "bias")
_LOAD = """from transformers import AutoModel, AutoVideoProcessor
model = AutoModel.from_pretrained("./NAME")
processor = AutoVideoProcessor.from_pretrained("./NAME")
"""


def exact_ratio(width: int, hidden: int) -> float:
    """A ratio r with int(r · width) = hidden, since transformers truncates where we round."""
    ratio = hidden / width
    while int(width * ratio) < hidden:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def block_tensors(tensors: Tensors, ours: str, theirs: str) -> dict[str, LazyTensor]:
    """One block's parameters in transformers' names, query, key and value apart.

    Args:
        tensors: of the network, by our names.
        ours, theirs: the block's prefix, e.g. "blocks.0." and "encoder.layer.0.".
    """
    found = {}
    for name, tensor in tensors.items():
        if not name.startswith(ours):
            continue
        name = name.removeprefix(ours).replace("attn.", "attention.")
        if ".qkv." not in name:
            found[theirs + name] = tensor
            continue
        third = tensor.shape[0] // 3
        for i, part in enumerate(("query", "key", "value")):
            found[theirs + name.replace("qkv", part)] = tensor.rows(i * third, third)
    return found


def encoder_tensors(source: Source) -> dict[str, LazyTensor]:
    """The exported network's parameters in transformers' names."""
    ours = source.part(source.network)
    embedding = "encoder.embeddings.patch_embeddings.proj"
    found = {f"{embedding}.{kind}": ours[f"patch_embed.proj.{kind}"] for kind in _KINDS}
    for i in range(source.config.model.encoder.depth):
        found |= block_tensors(ours, f"blocks.{i}.", f"encoder.layer.{i}.")
    return found | {f"encoder.layernorm.{kind}": ours[f"norm.{kind}"] for kind in _KINDS}


def predictor_tensors(source: Source) -> dict[str, LazyTensor]:
    """The predictor's parameters in transformers' names."""
    ours = source.part("predictor")
    tokens = ours["mask_tokens"]
    found = {
        f"predictor.embeddings.predictor_embeddings.{kind}": ours[f"embed.{kind}"]
        for kind in _KINDS
    }
    found["predictor.embeddings.mask_tokens"] = tokens.view(tokens.shape[0], 1, 1, tokens.shape[1])
    for i in range(source.config.model.predictor.depth):
        found |= block_tensors(ours, f"blocks.{i}.", f"predictor.layer.{i}.")
    for name, own in (("layernorm", "norm"), ("proj", "proj")):
        found |= {f"predictor.{name}.{kind}": ours[f"{own}.{kind}"] for kind in _KINDS}
    return found


def model_config(source: Source, **others: Any) -> Any:
    """The VJEPA2Config of a run of the second generation."""
    from transformers import VJEPA2Config

    model, data = source.config.model, source.config.data
    encoder, predictor = model.encoder, model.predictor
    hidden = mlp_width(encoder.width, encoder.mlp_ratio)
    return VJEPA2Config(
        patch_size=model.patch_size,
        crop_size=data.crop_size,
        frames_per_clip=source.num_frames,
        tubelet_size=model.tubelet_size,
        hidden_size=encoder.width,
        num_attention_heads=encoder.heads,
        num_hidden_layers=encoder.depth,
        mlp_ratio=exact_ratio(encoder.width, hidden),
        layer_norm_eps=NORM_EPS,
        pred_hidden_size=predictor.width,
        pred_num_attention_heads=model.predictor_heads,
        pred_num_hidden_layers=predictor.depth,
        pred_num_mask_tokens=source.num_mask_tokens,
        dtype="float32",
        **{PACE: source.pace},
        **others,
    )


def mask_token_sentence(source: Source) -> str:
    """Which mask token means what, and which one transformers takes by default."""
    count = source.num_mask_tokens
    if source.imported is not None:
        return (
            f"The predictor has the {count} mask tokens of the imported file; transformers takes "
            f"number {1 % count} by default, and training with clips of one length trains number 0 "
            "alone."
        )
    if count == 1:
        return "The predictor's one mask token is the trained one, whatever index is asked for."
    shared = source.config.model.mask_tokens == "shared"
    what = (
        f"clips of {' and '.join(map(str, source.config.data.lengths))} frames, in this order"
        if shared
        else "the mask specs, in their order"
    )
    return (
        f"The predictor's {count} mask tokens belong to {what}; transformers takes number "
        f"{1 % count} by default."
    )


def refuse_what_it_cannot_hold(source: Source) -> None:
    """Raise UserError for a model that VJEPA2Model cannot hold."""
    if source.config.model.positions == "rope":
        raise UserError(
            "--to transformers: found a model with positions rope, expected rope_tiled or sincos, "
            "since VJEPA2Model rotates by tiled angles; use --to safetensors, or "
            "train with model.positions=rope_tiled"
        )
    if not source.has_predictor:
        raise UserError(
            f"{source.checkpoint.folder}: found an encoder without a predictor, expected both, "
            "since VJEPA2Model would start with a random predictor; use --to safetensors"
        )


def second_generation(source: Source) -> Form:
    """The form "transformers" of the second generation.

    Raises:
        UserError: true rotations, or no predictor.
    """
    refuse_what_it_cannot_hold(source)
    from transformers import VJEPA2Model

    config = model_config(source, architectures=["VJEPA2Model"])
    tensors = encoder_tensors(source) | predictor_tensors(source)
    with torch.device("meta"):
        check_names(tensors, VJEPA2Model(config))

    def check(folder: Path) -> tuple[float, float]:
        video = random_clip(source)
        return from_ours(_their_features(folder, video), source, video)

    return Form(
        size=safetensors_size(tensors, METADATA) + 2**16,
        write=lambda folder: write_folder(folder, tensors, config, source.config.data.crop_size),
        check=check,
        library="transformers",
        tags=("feature-extraction",),
        title="VJEPA2Model of transformers",
        parts=(
            f"`config.json` and `{WEIGHTS}`: encoder and predictor in fp32, as VJEPA2Model.",
            "`video_preprocessor_config.json`: VJEPA2VideoProcessor for clips of "
            f"{source.config.data.crop_size} x {source.config.data.crop_size} pixels.",
            mask_token_sentence(source),
        ),
        load=_LOAD,
    )


@torch.no_grad()
def _their_features(folder: Path, video: Tensor) -> Tensor:
    from transformers import AutoModel

    pixels = preprocessed(folder, video)
    model = load_quietly(AutoModel, folder)
    return model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
