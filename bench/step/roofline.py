"""Counts FLOPs and least bytes of each part of a step, for its roofline bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vjepa_fast.commands.cost_of_config import clip_flops, parameter_counts
from vjepa_fast.config import Config
from vjepa_fast.models.cost import patch_values

INDEX = 8  # bytes


@dataclass(frozen=True)
class Work:
    """FLOPs and least bytes of one part of a step."""

    flops: float
    bytes: float

    def seconds(self, gemm: float, copy: float) -> float:
        """The roofline bound: the longer of FLOPs at `gemm` FLOP/s and bytes at `copy` bytes/s."""
        return max(self.flops / gemm, self.bytes / copy)


def _block_values(rows: float, width: int, depth: int, mlp_ratio: float) -> float:
    """Values read and written in a forward pass through transformer blocks.

    Each of the four GEMMs and the attention reads its input and writes its output. Norms, GELU and
    residuals are taken as fused into them, except for two reads of the residual stream.
    """
    qkv, attention, out, mlp, residual = 1 + 3, 3 + 1, 1 + 1, 2 * (1 + mlp_ratio), 2
    return rows * depth * width * (qkv + attention + out + mlp + residual)


def step_work(
    config: Config,
    context: Sequence[Sequence[int]],
    target: Sequence[Sequence[int]],
    value_bytes: int,
) -> dict[str, Work]:
    """FLOPs (see `models.cost`) and least bytes of a step by part.

    The backward pass of a GEMM is two GEMMs, so it moves twice the bytes. AdamW reads and writes
    the weight and two moments and reads the gradient, which clipping has read once before. The EMA
    update reads and writes the EMA weight and reads the student's.

    Args:
        config: the run's config; a step is one micro-batch.
        context, target: tokens under each mask spec, a row for each clip.
        value_bytes: bytes of an activation or weight: 2 in bf16, 4 in fp32.
    """
    model, encoder, predictor = config.model, config.model.encoder, config.model.predictor
    clips, depth = len(context), encoder.depth
    rows_c, rows_t = sum(map(sum, context)), sum(map(sum, target))
    rows_n = clips * config.grid[0] * config.grid[1] * config.grid[2]
    pixels = patch_values(model.patch_size, model.tubelet_size)
    width, narrow = encoder.width, predictor.width
    encoder_weights, predictor_weights = parameter_counts(config)
    weights = encoder_weights + predictor_weights
    copies = 2 if value_bytes == 2 else 0  # bytes of the bf16 copy of an fp32 master weight

    per_clip = clip_flops(config, context, target)
    target_flops, encoder_flops, predictor_flops = (
        clips * part for part in (per_clip.target_encoder, per_clip.encoder, per_clip.predictor)
    )
    embed = 2.0 * pixels * width * rows_c
    context_forward = embed + (encoder_flops - 2 * embed) / 3
    predictor_forward = predictor_flops / 3
    backward = encoder_flops + predictor_flops - context_forward - predictor_forward

    def encoded(rows: int) -> float:
        """Values: patches in, embedded, through the blocks, features out."""
        blocks = _block_values(rows, width, depth, encoder.mlp_ratio)
        return rows * (pixels + width) + blocks + rows * 2 * width

    predicted = (
        rows_c * (width + narrow)
        + _block_values(rows_c + rows_t, narrow, predictor.depth, 4.0)
        + rows_t * (narrow + width)
    )
    loss = 3 * rows_t * width  # prediction and target read, gradient written
    return {
        "masks": Work(0.0, INDEX * (2 * rows_c + rows_t + 2 * (rows_c + rows_t) + rows_t)),
        "target": Work(
            target_flops,
            rows_n * pixels * (1 + value_bytes) + value_bytes * (encoded(rows_n) + encoder_weights),
        ),
        "context": Work(
            context_forward,
            rows_c * pixels * (1 + value_bytes) + value_bytes * (encoded(rows_c) + encoder_weights),
        ),
        "predictor": Work(predictor_forward, value_bytes * (predicted + loss + predictor_weights)),
        "backward": Work(backward, value_bytes * (2 * (encoded(rows_c) + predicted) + 2 * weights)),
        "optimizer": Work(0.0, (7 * 4 + 4 + copies) * weights),
        "ema": Work(0.0, (3 * 4 + copies) * encoder_weights),
    }


def mean_work(steps: Sequence[dict[str, Work]]) -> dict[str, Work]:
    """The mean of several steps, whose token counts differ."""
    return {
        part: Work(
            sum(step[part].flops for step in steps) / len(steps),
            sum(step[part].bytes for step in steps) / len(steps),
        )
        for part in steps[0]
    }
