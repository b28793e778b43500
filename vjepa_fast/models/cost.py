"""Cost of a model by formula: parameters, FLOPs and memory.

A multiply-add is two FLOPs, so a GEMM [m, k] x [k, n] has 2 m k n. Norms, softmax, GELU and the
loss are left out: they are memory-bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vjepa_fast.models.block import mlp_width

RGB = 3


def patch_values(patch_size: int, tubelet_size: int) -> int:
    """Values of one patch of pixels."""
    return RGB * tubelet_size * patch_size**2


# -------------------------------------------------------------------------------------- parameters


def block_parameters(width: int, mlp_ratio: float = 4.0) -> int:
    """Parameters of a block: two norms, qkv and projection, two MLP layers, all with biases."""
    hidden = mlp_width(width, mlp_ratio)
    attention = width * 3 * width + 3 * width + width * width + width
    mlp = width * hidden + hidden + hidden * width + width
    return 2 * 2 * width + attention + mlp


def encoder_parameters(
    *, width: int, depth: int, patch_size: int, tubelet_size: int, mlp_ratio: float = 4.0
) -> int:
    """Parameters of the encoder: patch embedding, blocks, final norm. Positions are fixed."""
    embedding = patch_values(patch_size, tubelet_size) * width + width
    return embedding + depth * block_parameters(width, mlp_ratio) + 2 * width


def predictor_parameters(
    *,
    encoder_width: int,
    width: int,
    depth: int,
    num_mask_tokens: int,
    target_width: int | None = None,
    mlp_ratio: float = 4.0,
) -> int:
    """Parameters of the predictor: embedding, mask tokens, blocks, final norm, projection.

    `target_width`: of a prediction; None: as wide as the encoder.
    """
    target_width = target_width or encoder_width
    ends = encoder_width * width + width + width * target_width + target_width
    return ends + num_mask_tokens * width + depth * block_parameters(width, mlp_ratio) + 2 * width


# -------------------------------------------------------------------------------------------- FLOPs


def transformer_flops(
    lengths: Iterable[float], *, width: int, depth: int, mlp_ratio: float = 4.0
) -> float:
    """FLOPs of one forward pass through the blocks over sequences of these lengths.

    In a block a token costs 2 (4 D^2 + 2 D hidden) in the GEMMs and a sequence of length L costs
    4 L^2 D in the attention.
    """
    hidden = mlp_width(width, mlp_ratio)
    per_token = 2 * (4 * width**2 + 2 * width * hidden)
    return depth * sum(per_token * n + 4 * n**2 * width for n in lengths)


@dataclass(frozen=True)
class StepFlops:
    """FLOPs by part; encoder and predictor include their backward pass. No target encoder: 0."""

    target_encoder: float
    encoder: float
    predictor: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.target_encoder + self.encoder + self.predictor


def step_flops(
    *,
    num_tokens: int,
    context: Iterable[float],
    target: Iterable[float],
    encoder_width: int,
    encoder_depth: int,
    predictor_width: int,
    predictor_depth: int,
    patch_size: int,
    tubelet_size: int,
    mlp_ratio: float = 4.0,
    predictor_mlp_ratio: float = 4.0,
    objective: Literal["features", "pixels"] = "features",
) -> StepFlops:
    """FLOPs of one clip in a training step.

    A backward pass costs twice its forward pass, except for the patch embedding, whose backward is
    one GEMM since pixels need no gradient.

    Args:
        num_tokens: N, the tokens that the target encoder sees, once and without a backward pass.
        context, target: the clip's token counts under each mask spec.
        encoder_width, encoder_depth, mlp_ratio: size of the encoder.
        predictor_width, predictor_depth, predictor_mlp_ratio: size of the predictor.
        patch_size, tubelet_size: pixels and frames of a token.
        objective: what is predicted; pixels need no target encoder.
    """
    context, target = list(context), list(target)
    values = patch_values(patch_size, tubelet_size)
    embed = 2 * values * encoder_width
    target_width = values if objective == "pixels" else encoder_width
    encoder = {"width": encoder_width, "depth": encoder_depth, "mlp_ratio": mlp_ratio}
    predictor = {
        "width": predictor_width,
        "depth": predictor_depth,
        "mlp_ratio": predictor_mlp_ratio,
    }
    both = [c + t for c, t in zip(context, target, strict=True)]
    ends = 2 * predictor_width * (encoder_width * sum(context) + target_width * sum(target))
    whole = embed * num_tokens + transformer_flops([num_tokens], **encoder)
    return StepFlops(
        target_encoder=0.0 if objective == "pixels" else whole,
        encoder=2 * embed * sum(context) + 3 * transformer_flops(context, **encoder),
        predictor=3 * (ends + transformer_flops(both, **predictor)),
    )


# ------------------------------------------------------------------------------------------ memory


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by kind of tensor."""

    weights: float
    gradients: float
    optimizer: float
    teacher: float
    activations: float

    @property
    def total(self) -> float:
        """Sum of all kinds."""
        return self.weights + self.gradients + self.optimizer + self.teacher + self.activations


def state_memory(
    *,
    encoder_parameters: int,
    predictor_parameters: int,
    precision: Literal["bf16", "fp32"],
    stage: int,
    world_size: int,
    accumulates: bool,
    activations: float = 0.0,
    target_encoder: bool = True,
) -> Memory:
    """Memory of one of `world_size` devices at a ZeRO stage (0 to 3), nothing offloaded.

    From stage 1 on, the fp32 master weights, Adam's two moments and the teacher's fp32 EMA weights
    are sharded, from stage 2 on the gradients, at stage 3 the weights (the layer in use is not
    counted). The teacher's working copy is never sharded; stage 3 adds the buffer of its gather.
    Gradients are fp32 if they accumulate over micro-batches, and at stages 1 and 2 always; the few
    buckets that stage 2 has in flight are not counted. One device in fp32 runs as stage 0.
    `target_encoder`: whether there is one.
    """
    trained = encoder_parameters + predictor_parameters
    low = 2 if precision == "bf16" else 4
    if precision == "fp32" and world_size == 1:
        stage = 0
    shards = world_size if stage >= 1 else 1
    separate = precision == "bf16" or stage >= 1
    # Unsharded fp32 weights are their own master weights, and the teacher its own EMA weights.
    copies = 2 if stage == 3 and world_size > 1 else 1
    gradient = 4 if accumulates or stage in (1, 2) else low
    # Stage 1 has all gradients of its own, and this device's slices of the reduced ones.
    gradients = {1: 1 + 1 / world_size if world_size > 1 else 1, 0: 1}.get(stage, 1 / world_size)
    teacher = copies * low * encoder_parameters + 4 * separate * encoder_parameters / shards
    return Memory(
        weights=low * trained / (world_size if stage == 3 else 1),
        gradients=gradient * trained * gradients,
        optimizer=(8 + 4 * separate) * trained / shards,
        teacher=teacher if target_encoder else 0.0,
        activations=activations,
    )


def activation_memory(
    *,
    num_tokens: int,
    context_tokens: float,
    predictor_tokens: float,
    micro_batch: int,
    encoder_width: int,
    encoder_depth: int,
    predictor_width: int,
    predictor_depth: int,
    precision: Literal["bf16", "fp32"],
    mlp_ratio: float = 4.0,
    predictor_mlp_ratio: float = 4.0,
    activation_checkpointing: Literal["none", "selective", "full"] = "none",
) -> float:
    """Estimated peak bytes of activations of a micro-batch.

    A block saves its two inputs, two norms, qkv, the attention's output and two hidden rows, 8 + 2
    mlp_ratio widths per token; `activation_checkpointing` says how much remains if some are
    recomputed, block by block, in the backward pass. The target encoder holds one block at a time,
    and its features.

    Args:
        num_tokens: tokens N of a clip.
        context_tokens, predictor_tokens: per clip, over all mask specs.
        micro_batch: clips on the device at a time.
        encoder_width, encoder_depth, mlp_ratio: size of the encoder.
        predictor_width, predictor_depth, predictor_mlp_ratio: size of the predictor.
        precision: dtype of the activations.
        activation_checkpointing: mode, see `activation_checkpointing.py`.
    """
    number = 2 if precision == "bf16" else 4

    def widths(depth: int, ratio: float) -> tuple[float, float]:
        """Saved per token when the backward begins, and after it recomputed the last block."""
        block = 8 + 2 * ratio
        kept = {"none": block, "selective": 6 + ratio, "full": 1.0}[activation_checkpointing]
        return depth * kept, depth * kept + block - kept

    kept, most = widths(encoder_depth, mlp_ratio)
    predictor_kept, predictor_most = widths(predictor_depth, predictor_mlp_ratio)
    predictor = predictor_tokens * predictor_width * predictor_most
    context = context_tokens * encoder_width
    backward = max(context * kept + predictor, context * most)
    features = num_tokens * encoder_width
    target_encoder = features * (8 + 2 * mlp_ratio)
    # The target encoder runs while everything saved for the backward pass is in memory.
    saved = context * kept + predictor_tokens * predictor_width * predictor_kept
    return number * micro_batch * max(saved + target_encoder, features + backward)
