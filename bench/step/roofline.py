"""What each part of a step has to do at least: operations and bytes, counted; milliseconds at the
device's measured rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vjepa_fast.commands.cost_of_config import clip_flops, parameter_counts
from vjepa_fast.config import Config
from vjepa_fast.models.cost import patch_values

INDEX = 8  # bytes


@dataclass(frozen=True)
class Work:
    """Of one part of one step."""

    flops: float
    bytes: float

    def floor(self, gemm: float, copy: float) -> float:
        """Seconds at these rates (FLOP/s, bytes/s): of the two, what takes longer."""
        return max(self.flops / gemm, self.bytes / copy)


def _block_values(rows: float, width: int, depth: int, mlp_ratio: float) -> float:
    """Numbers that go to and from memory in a forward pass through transformer blocks.

    Each of the four products and the attention reads its input and writes its output; norms, GELU
    and residuals ride along for nothing but the residual stream, which is read twice.
    """
    qkv, attention, out, mlp, residual = 1 + 3, 3 + 1, 1 + 1, 2 * (1 + mlp_ratio), 2
    return rows * depth * width * (qkv + attention + out + mlp + residual)


def step_work(
    config: Config, context: Sequence[Sequence[int]], target: Sequence[Sequence[int]], number: int
) -> dict[str, Work]:
    """Operations (see `models.cost`) and least bytes of a step by part.

    A product's backward is two products, so it moves twice the bytes. AdamW reads and writes
    weight and two moments and reads the gradient, which clipping reads once before. The average is
    read and written, its student read.

    Args:
        config: of the run; a step is one micro-batch.
        context, target: tokens under each mask spec, a row for each clip.
        number: bytes of a number: 2 in bf16, 4 in fp32.
    """
    model, encoder, predictor = config.model, config.model.encoder, config.model.predictor
    clips, depth = len(context), encoder.depth
    rows_c, rows_t = sum(map(sum, context)), sum(map(sum, target))
    rows_n = clips * config.grid[0] * config.grid[1] * config.grid[2]
    pixels = patch_values(model.patch_size, model.tubelet_size)
    width, narrow = encoder.width, predictor.width
    encoder_weights, predictor_weights = parameter_counts(config)
    weights = encoder_weights + predictor_weights
    copies = 2 if number == 2 else 0  # bytes of the low-precision copy that training in bf16 keeps

    per_clip = clip_flops(config, context, target)
    target_flops, encoder_flops, predictor_flops = (
        clips * part for part in (per_clip.target_encoder, per_clip.encoder, per_clip.predictor)
    )
    embed = 2.0 * pixels * width * rows_c
    context_forward = embed + (encoder_flops - 2 * embed) / 3
    predictor_forward = predictor_flops / 3
    backward = encoder_flops + predictor_flops - context_forward - predictor_forward

    def encoded(rows: int) -> float:
        """Numbers: patches in, embedded, through the blocks, features out."""
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
            rows_n * pixels * (1 + number) + number * (encoded(rows_n) + encoder_weights),
        ),
        "context": Work(
            context_forward,
            rows_c * pixels * (1 + number) + number * (encoded(rows_c) + encoder_weights),
        ),
        "predictor": Work(predictor_forward, number * (predicted + loss + predictor_weights)),
        "backward": Work(backward, number * (2 * (encoded(rows_c) + predicted) + 2 * weights)),
        "optimiser": Work(0.0, (7 * 4 + 4 + copies) * weights),
        "EMA": Work(0.0, (3 * 4 + copies) * encoder_weights),
    }


def mean_work(steps: Sequence[dict[str, Work]]) -> dict[str, Work]:
    """Of several steps, whose token counts differ."""
    return {
        part: Work(
            sum(step[part].flops for step in steps) / len(steps),
            sum(step[part].bytes for step in steps) / len(steps),
        )
        for part in steps[0]
    }
