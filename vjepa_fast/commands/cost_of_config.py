"""What a config costs: tokens, parameters, FLOPs and memory, by the formulas of models/cost.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from vjepa_fast.config import Config
from vjepa_fast.config.masks import sample_masks
from vjepa_fast.errors import UserError
from vjepa_fast.models.cost import (
    StepFlops,
    activation_memory,
    encoder_parameters,
    patch_values,
    predictor_parameters,
    state_memory,
    step_flops,
)
from vjepa_fast.training.batches import split_batch

SAMPLED_STEPS = 400


def sampled_clips(config: Config) -> Iterator[tuple[int, range]]:
    """Step and sample ids of the clips whose tokens are counted: the first truncation group (or
    micro-batch) of each of the run's first `SAMPLED_STEPS` steps, with the masks of those steps."""
    masks, optim = config.masks, config.optim
    clips = masks.truncate_group if masks.truncate != "none" else optim.micro_batch
    for step in range(SAMPLED_STEPS):
        first = step * optim.global_batch
        yield step, range(first, first + clips)


def count_tokens(config: Config) -> tuple[list[list[int]], list[list[int]]]:
    """Context and target tokens of `sampled_clips`: of each clip a row with a count per mask."""
    sampler = config.masks.sampler(config.grid, config.seed, num_threads=1)
    context, target = [], []
    for step, ids in sampled_clips(config):
        batch = sample_masks(sampler, step, ids)
        context += batch.context_seqlens.T.tolist()
        target += batch.target_seqlens.T.tolist()
    return context, target


def parameter_counts(config: Config) -> tuple[int, int]:
    """Parameters of the encoder and of the predictor."""
    model, encoder, predictor = config.model, config.model.encoder, config.model.predictor
    pixels = patch_values(model.patch_size, model.tubelet_size)
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
            num_mask_tokens=config.num_mask_tokens,
            target_width=pixels if config.objective == "pixels" else None,
        ),
    )


def clip_flops(
    config: Config, context: Sequence[Sequence[int]], target: Sequence[Sequence[int]]
) -> StepFlops:
    """FLOPs per clip by part: the mean over clips with these token counts, see `count_tokens`."""
    encoder, predictor, grid = config.model.encoder, config.model.predictor, config.grid
    # Clips of one truncation group have equal counts: compute each pair of counts once.
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
            objective=config.objective,
        )
        parts = (flops.target_encoder, flops.encoder, flops.predictor)
        total = [
            so_far + part * clips / len(context) for so_far, part in zip(total, parts, strict=True)
        ]
    return StepFlops(*total)


def by_length(config: Config) -> list[tuple[Config, float]]:
    """The config with each of its lengths, ascending, as data.num_frames, and the fraction of clips
    of that length by the weights; without weights, manifests count as equally large.
    """
    data = config.data
    weights = data.weights or [1.0] * len(data.manifests)
    manifests = [
        manifest.model_copy(update={"num_frames": manifest.num_frames or data.num_frames})
        for manifest in data.manifests
    ]
    found = []
    for length in sorted(data.lengths):
        update = {"num_frames": length, "manifests": manifests}
        own = config.model_copy(update={"data": data.model_copy(update=update)})
        its = sum(w for w, m in zip(weights, manifests, strict=True) if m.num_frames == length)
        found.append((own, its / sum(weights)))
    return found


def mean_clip_flops(config: Config) -> float:
    """FLOPs of a clip, the mean over the lengths of clips, see `by_length`."""
    return sum(part * clip_flops(c, *count_tokens(c)).total for c, part in by_length(config))


def activation_bytes(
    config: Config, context_tokens: float, target_tokens: float, micro_batch: int
) -> float:
    """Memory of one micro-batch's activations on a GPU, see `models.cost.activation_memory`.

    Args:
        config: the run's config.
        context_tokens, target_tokens: mean per clip, of all masks together.
        micro_batch: clips.
    """
    encoder, predictor = config.model.encoder, config.model.predictor
    frames, height, width = config.grid
    return activation_memory(
        micro_batch=micro_batch,
        num_tokens=frames * height * width,
        context_tokens=context_tokens,
        predictor_tokens=context_tokens + target_tokens,
        encoder_width=encoder.width,
        encoder_depth=encoder.depth,
        predictor_width=predictor.width,
        predictor_depth=predictor.depth,
        precision=config.precision_on("cuda"),
        mlp_ratio=encoder.mlp_ratio,
        activation_checkpointing=config.activation_checkpointing,
    )


def zero_stages(config: Config) -> tuple[int, ...]:
    """The ZeRO stages that the engine runs this config at on a GPU: no stage 0 in bf16."""
    return (0, 1, 2, 3) if config.precision_on("cuda") == "fp32" else (1, 2, 3)


def memory_by_world(
    config: Config, context_tokens: float, target_tokens: float
) -> list[tuple[int, int, int, list[float]]]:
    """Memory at the world sizes worth showing: 1, 8, and one micro-batch per GPU.

    Args:
        config: the run's config.
        context_tokens, target_tokens: mean per clip, of all masks together.

    Returns:
        GPUs, clips of a micro-batch, micro-batches per step, and bytes on a GPU at each of
        `zero_stages`, for each world size.
    """
    encoder_count, predictor_count = parameter_counts(config)
    found = []
    for world in sorted({1, 8, config.optim.global_batch // config.optim.micro_batch}):
        try:
            micro_batch, accumulation = split_batch(config, world)
        except UserError:
            continue
        activations = activation_bytes(config, context_tokens, target_tokens, micro_batch)
        totals = [
            state_memory(
                encoder_parameters=encoder_count,
                predictor_parameters=predictor_count,
                precision=config.precision_on("cuda"),
                stage=stage,
                world_size=world,
                accumulates=accumulation > 1,
                activations=activations,
                target_encoder=config.objective == "features",
            ).total
            for stage in zero_stages(config)
        ]
        found.append((world, micro_batch, accumulation, totals))
    return found
