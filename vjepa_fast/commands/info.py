"""`vjepa-fast info`: what a config costs, or several as the stages of one training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vjepa_fast.commands.terminal import add_config_arguments, text_table

if TYPE_CHECKING:
    from vjepa_fast.config import Config
    from vjepa_fast.config.masks import AnyMask

HELP = (
    "print a config's tokens, parameters, FLOPs and memory, or what the stages of a training cost"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config for one config or several, and --set."""
    add_config_arguments(parser, several=True)


def run(options: argparse.Namespace) -> int:
    """Print the tables of one config, or the one table of several."""
    from vjepa_fast.config import load_config

    configs = [load_config(path, options.set) for path in options.config]
    print(info_text(configs[0]) if len(configs) == 1 else stages_text(configs))
    return 0


def stages_text(configs: Sequence[Config]) -> str:
    """FLOPs of each stage of a training and of all, beside all steps at the last stage's size.

    Args:
        configs: of the stages, in order. Each stage is a run of its own.
    """
    from vjepa_fast.commands import cost_of_config as cost

    rows = [("stage", "frames", "px", "steps", "clips per step", "TFLOP per clip", "EFLOP")]
    steps = clips = 0
    spent = per_clip = 0.0
    for config in configs:
        optim, data = config.optim, config.data
        per_clip = cost.mean_clip_flops(config)
        here = optim.steps * optim.global_batch
        steps, clips, spent = steps + optim.steps, clips + here, spent + here * per_clip
        frames = "+".join(map(str, data.lengths))
        costs = (f"{optim.global_batch:,}", _tera(per_clip), _exa(here * per_clip))
        rows.append((config.output, frames, f"{data.crop_size}", f"{optim.steps:,}", *costs))
    rows.append(("all stages", "", "", f"{steps:,}", "", "", _exa(spent)))
    full = clips * per_clip
    size = ("all at the last size", *rows[-2][1:3], f"{steps:,}")
    rows.append((*size, "", _tera(per_clip), _exa(full)))
    return f"{text_table(rows)}\n({full / spent:.1f} times as much as the stages)"


def info_text(config: Config) -> str:
    """Tokens, parameters, FLOPs per clip by part, memory and effective batch.

    With clips of several lengths: a table of them, and the rest for the longest.
    """
    from vjepa_fast.commands import cost_of_config as cost

    lengths = [_lengths_text(config)] if len(config.data.lengths) > 1 else []
    config = cost.by_length(config)[-1][0]
    encoder, predictor, optim = config.model.encoder, config.model.predictor, config.optim
    frames, height, width = config.grid
    num_tokens = frames * height * width
    context, target = cost.count_tokens(config)
    mean_context, mean_target = (
        [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        for rows in (context, target)
    )

    data = config.data
    pace = f", one in {data.frame_step}" if data.fps is None else f", {data.fps:g} a second"
    if any(manifest.frame_step or manifest.fps for manifest in data.manifests):
        pace = ""
    clip = (
        f"clip: {data.num_frames} frames{pace}, {data.crop_size} px = "
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
    if parts.target_encoder:
        whole = _tera(parts.target_encoder)
        flops.append(("target encoder, forward", f"{num_tokens:.0f}", whole))
    for name, count, value in (
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
            *lengths,
            clip,
            f"{text_table(tokens)}\n{sampled}",
            f"{text_table(parameters)}\n({_details(config)})",
            text_table(flops),
            f"{text_table(memory)}\n{note}",
        ]
    )


def _lengths_text(config: Config) -> str:
    """Clips, tokens and FLOPs by length."""
    from vjepa_fast.commands import cost_of_config as cost

    rows, mean_tokens, mean_flops = [("frames", "clips", "tokens", "TFLOP per clip")], 0.0, 0.0
    for own, part in cost.by_length(config):
        frames, height, width = own.grid
        tokens = frames * height * width
        flops = cost.clip_flops(own, *cost.count_tokens(own)).total
        rows.append((f"{own.data.num_frames}", f"{part:.1%}", f"{tokens}", _tera(flops)))
        mean_tokens, mean_flops = mean_tokens + part * tokens, mean_flops + part * flops
    rows.append(("mean", "", f"{mean_tokens:.0f}", _tera(mean_flops)))
    unknown = "" if config.data.weights else "as if all manifests were equally large; "
    return f"{text_table(rows)}\n({unknown}what follows is for the longest clips)"


def _details(config: Config) -> str:
    """What the parameters' shapes don't show."""
    tokens = config.num_mask_tokens
    predicts = "" if config.objective == "features" else f", predicts {config.objective}"
    return f"positions {config.model.positions}, {tokens} mask token{'s' * (tokens > 1)}{predicts}"


def mask_name(spec: AnyMask) -> str:
    """A mask spec in a few words."""
    from vjepa_fast.config.masks import MaskSpecConfig, RandomMaskConfig

    if isinstance(spec, MaskSpecConfig):
        return f"{spec.num_blocks} block{'s' * (spec.num_blocks > 1)}"
    if isinstance(spec, RandomMaskConfig):
        return f"{spec.strategy.replace('_', ' ')} {spec.ratio:g}"
    return f"mixture of {len(spec.specs)}"


def _exa(flops: float) -> str:
    return f"{flops / 1e18:,.0f}" if flops >= 1e20 else f"{flops / 1e18:.2g}"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f}" if flops >= 1e10 else f"{flops / 1e12:.5f}"


def _giga(size: float) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.2f}"
