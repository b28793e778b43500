"""What a config amounts to, as a table: tokens, parameters, operations, memory, batch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from vjepa_fast.config import Config
from vjepa_fast.config.masks import AnyMask, MaskSpecConfig, RandomMaskConfig, sample_masks
from vjepa_fast.errors import UserError
from vjepa_fast.models.cost import (
    StepFlops,
    activation_memory,
    encoder_parameters,
    predictor_parameters,
    state_memory,
    step_flops,
)
from vjepa_fast.training.batches import split_batch

SAMPLED_STEPS = 400


def sampled_clips(config: Config) -> Iterator[tuple[int, range]]:
    """Step and sample ids of the clips that are counted: the first truncation group (or
    micro-batch) of each of the run's first steps, whose masks are those that will be drawn."""
    masks, optim = config.masks, config.optim
    clips = masks.truncate_group if masks.truncate != "none" else optim.micro_batch
    for step in range(SAMPLED_STEPS):
        first = step * optim.global_batch
        yield step, range(first, first + clips)


def count_tokens(config: Config) -> tuple[list[list[int]], list[list[int]]]:
    """Context and target tokens of `sampled_clips`, one row of counts by mask spec for each."""
    sampler = config.masks.sampler(config.grid, config.seed, num_threads=1)
    context, target = [], []
    for step, ids in sampled_clips(config):
        batch = sample_masks(sampler, step, ids)
        context += batch.context_seqlens.T.tolist()
        target += batch.target_seqlens.T.tolist()
    return context, target


def mask_name(spec: AnyMask) -> str:
    """A mask spec in a few words."""
    if isinstance(spec, MaskSpecConfig):
        return f"{spec.num_blocks} block{'s' * (spec.num_blocks > 1)}"
    if isinstance(spec, RandomMaskConfig):
        return f"{spec.strategy.replace('_', ' ')} {spec.ratio:g}"
    return f"mixture of {len(spec.specs)}"


def _means(rows: Sequence[Sequence[int]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def parameter_counts(config: Config) -> tuple[int, int]:
    """Parameters of the encoder and of the predictor."""
    model, encoder, predictor = config.model, config.model.encoder, config.model.predictor
    return (
        encoder_parameters(
            width=encoder.width,
            depth=encoder.depth,
            patch_size=model.patch_size,
            tubelet_size=model.tubelet_size,
            mlp_ratio=encoder.mlp_ratio,
        ),
        predictor_parameters(
            encoder_width=encoder.width,
            width=predictor.width,
            depth=predictor.depth,
            num_specs=len(config.masks.specs),
        ),
    )


def clip_flops(
    config: Config, context: Sequence[Sequence[int]], target: Sequence[Sequence[int]]
) -> StepFlops:
    """Operations per clip by part, the mean over clips with these token counts."""
    encoder, predictor, grid = config.model.encoder, config.model.predictor, config.grid
    # Clips of one group share their counts: work each pair of counts out once.
    pairs = Counter((tuple(c), tuple(t)) for c, t in zip(context, target, strict=True))
    total = [0.0, 0.0, 0.0]
    for (context_counts, target_counts), clips in pairs.items():
        flops = step_flops(
            num_tokens=grid[0] * grid[1] * grid[2],
            context=context_counts,
            target=target_counts,
            encoder_width=encoder.width,
            encoder_depth=encoder.depth,
            predictor_width=predictor.width,
            predictor_depth=predictor.depth,
            patch_size=config.model.patch_size,
            tubelet_size=config.model.tubelet_size,
            mlp_ratio=encoder.mlp_ratio,
        )
        parts = (flops.target_encoder, flops.encoder, flops.predictor)
        total = [
            so_far + part * clips / len(context) for so_far, part in zip(total, parts, strict=True)
        ]
    return StepFlops(*total)


def _worlds(config: Config) -> list[tuple[int, int, int]]:
    """Numbers of processes worth showing, each with its micro-batch and how many accumulate."""
    result = []
    for world in sorted({1, 8, config.optim.global_batch // config.optim.micro_batch}):
        try:
            result.append((world, *split_batch(config, world)))
        except UserError:
            continue
    return result


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    )


def info_text(config: Config) -> str:
    """Tokens, parameters, operations per clip by part, memory and effective batch, for people."""
    encoder, predictor, optim = config.model.encoder, config.model.predictor, config.optim
    frames, height, width = config.grid
    num_tokens = frames * height * width
    context, target = count_tokens(config)
    mean_context, mean_target = _means(context), _means(target)

    data = config.data
    pace = f"one in {data.frame_step}" if data.fps is None else f"{data.fps:g} a second"
    clip = (
        f"clip: {config.data.num_frames} frames, {pace}, "
        f"{config.data.crop_size} px = {frames} x {height} x {width} = {num_tokens} tokens"
    )
    tokens = [("tokens per clip", "context", "target", "predictor")]
    for index, spec in enumerate(config.masks.specs):
        counts = (mean_context[index], mean_target[index], mean_context[index] + mean_target[index])
        name = f"masks.specs[{index}] ({mask_name(spec)})"
        tokens.append((name, *(f"{count:.0f}" for count in counts)))

    encoder_count, predictor_count = parameter_counts(config)
    parameters = [
        ("parameters", "width", "depth", "heads", "count"),
        _shape("encoder", encoder.width, encoder.depth, encoder.heads, encoder_count),
        _shape(
            "predictor", predictor.width, predictor.depth, config.predictor_heads, predictor_count
        ),
    ]

    flops = clip_flops(config, context, target)
    all_context, all_target = sum(mean_context), sum(mean_target)
    operations = [
        ("operations per clip", "tokens", "TFLOP"),
        ("target encoder, forward", f"{num_tokens}", _tera(flops.target_encoder)),
        ("encoder, forward + backward", f"{all_context:.0f}", _tera(flops.encoder)),
        (
            "predictor, forward + backward",
            f"{all_context + all_target:.0f}",
            _tera(flops.predictor),
        ),
        ("all", "", _tera(flops.total)),
    ]

    precision = config.precision_on("cuda")
    activations = partial(
        activation_memory,
        num_tokens=num_tokens,
        context_tokens=all_context,
        predictor_tokens=all_context + all_target,
        encoder_width=encoder.width,
        encoder_depth=encoder.depth,
        predictor_width=predictor.width,
        predictor_depth=predictor.depth,
        precision=precision,
        mlp_ratio=encoder.mlp_ratio,
        activation_checkpointing=config.activation_checkpointing,
    )
    # The engine refuses bf16 at stage 0.
    stages = (0, 1, 2, 3) if precision == "fp32" else (1, 2, 3)
    columns = (f"stage {stage}" for stage in stages)
    memory = [("GPUs", "micro-batches", "effective batch", *columns)]
    for world, micro, accumulated in _worlds(config):
        totals = [
            state_memory(
                encoder_parameters=encoder_count,
                predictor_parameters=predictor_count,
                precision=precision,
                stage=stage,
                world_size=world,
                accumulates=accumulated > 1,
                activations=activations(micro_batch=micro),
            ).total
            for stage in stages
        ]
        batch = f"{world} x {accumulated} x {micro} = {optim.global_batch}"
        memory.append((f"{world}", f"{accumulated}", batch, *map(_giga, totals)))

    sampled = f"(means over {len(context)} clips of {SAMPLED_STEPS} steps)"
    most = _giga(activations(micro_batch=optim.micro_batch))
    estimate = (
        f"GB on each GPU in {precision}, of which about {most} are activations of "
        f"{optim.micro_batch} clips\n(this run: zero.stage {config.zero.stage}, "
        f"activation_checkpointing {config.activation_checkpointing})"
    )
    return "\n\n".join(
        [
            clip,
            f"{table(tokens)}\n{sampled}",
            table(parameters),
            table(operations),
            f"{table(memory)}\n{estimate}",
        ]
    )


def _shape(name: str, width: int, depth: int, heads: int, count: int) -> tuple[str, ...]:
    return name, f"{width}", f"{depth}", f"{heads}", f"{count:,}"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f}" if flops >= 1e10 else f"{flops / 1e12:.5f}"


def _giga(size: float) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.2f}"
