"""`vjepa-fast info`: what a config costs, as tables of text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vjepa_fast.commands.terminal import add_config_arguments, text_table

if TYPE_CHECKING:
    from vjepa_fast.config import Config
    from vjepa_fast.config.masks import AnyMask

HELP = "print a config's tokens, parameters, FLOPs and memory"
add_arguments = add_config_arguments


def run(options: argparse.Namespace) -> int:
    """Print the tables."""
    from vjepa_fast.config import load_config

    print(info_text(load_config(options.config, options.set)))
    return 0


def info_text(config: Config) -> str:
    """Tokens, parameters, FLOPs per clip by part, memory and effective batch."""
    from vjepa_fast.commands import cost_of_config as cost

    encoder, predictor, optim = config.model.encoder, config.model.predictor, config.optim
    frames, height, width = config.grid
    num_tokens = frames * height * width
    context, target = cost.count_tokens(config)
    mean_context, mean_target = (
        [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        for rows in (context, target)
    )

    data = config.data
    pace = f"one in {data.frame_step}" if data.fps is None else f"{data.fps:g} a second"
    clip = (
        f"clip: {data.num_frames} frames, {pace}, {data.crop_size} px = "
        f"{frames} x {height} x {width} = {num_tokens} tokens"
    )

    tokens = [("tokens per clip", "context", "target", "predictor")]
    for index, spec in enumerate(config.masks.specs):
        counts = (mean_context[index], mean_target[index], mean_context[index] + mean_target[index])
        name = f"masks.specs[{index}] ({mask_name(spec)})"
        tokens.append((name, *(f"{count:.0f}" for count in counts)))
    sampled = f"(means over {len(context)} clips of {cost.SAMPLED_STEPS} steps)"

    parameters = [("parameters", "width", "depth", "heads", "count")]
    for name, part, heads, count in zip(
        ("encoder", "predictor"),
        (encoder, predictor),
        (encoder.heads, config.model.predictor_heads),
        cost.parameter_counts(config),
        strict=True,
    ):
        parameters.append((name, f"{part.width}", f"{part.depth}", f"{heads}", f"{count:,}"))

    parts = cost.clip_flops(config, context, target)
    all_context, all_target = sum(mean_context), sum(mean_target)
    flops = [("FLOPs per clip", "tokens", "TFLOP")]
    for name, count, value in (
        ("target encoder, forward", num_tokens, parts.target_encoder),
        ("encoder, forward + backward", all_context, parts.encoder),
        ("predictor, forward + backward", all_context + all_target, parts.predictor),
    ):
        flops.append((name, f"{count:.0f}", _tera(value)))
    flops.append(("all", "", _tera(parts.total)))

    stages = (f"stage {stage}" for stage in cost.zero_stages(config))
    memory = [("GPUs", "micro-batches", "effective batch", *stages)]
    for world, micro, accumulation, totals in cost.memory_by_world(config, all_context, all_target):
        batch = f"{world} x {accumulation} x {micro} = {optim.global_batch}"
        memory.append((f"{world}", f"{accumulation}", batch, *map(_giga, totals)))
    activations = cost.activation_bytes(config, all_context, all_target, optim.micro_batch)
    note = (
        f"GB on each GPU in {config.precision_on('cuda')}, of which about {_giga(activations)} are "
        f"activations of {optim.micro_batch} clips\n(this run: zero.stage {config.zero.stage}, "
        f"activation_checkpointing {config.activation_checkpointing})"
    )
    return "\n\n".join(
        [
            clip,
            f"{text_table(tokens)}\n{sampled}",
            text_table(parameters),
            text_table(flops),
            f"{text_table(memory)}\n{note}",
        ]
    )


def mask_name(spec: AnyMask) -> str:
    """A mask spec in a few words."""
    from vjepa_fast.config.masks import MaskSpecConfig, RandomMaskConfig

    if isinstance(spec, MaskSpecConfig):
        return f"{spec.num_blocks} block{'s' * (spec.num_blocks > 1)}"
    if isinstance(spec, RandomMaskConfig):
        return f"{spec.strategy.replace('_', ' ')} {spec.ratio:g}"
    return f"mixture of {len(spec.specs)}"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f}" if flops >= 1e10 else f"{flops / 1e12:.5f}"


def _giga(size: float) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.2f}"
