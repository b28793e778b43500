"""Compares a file of recorded mask statistics with the sampler.

Per strategy the file has its `config`, block_size_by_step [steps, 3],
keep_per_clip [steps * clips], visible_probability [T', H', W'] and the token counts after
truncation to the batch minimum, context_kept_batch<clips> and target_kept_batch<clips> [steps].
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from vjepa_fast.masks import MaskSampler, MultiBlock

Check = tuple[str, float, float]
"""(item, error, tolerance)"""

_DRAWS = 20_000
_REPLAYS = 4  # the minimum of a batch varies far more than a mean over clips
_GRID_KEYS = {"crop_size", "num_frames", "patch_size", "tubelet_size"}


def check_mask_statistics(path: str | Path) -> list[Check]:
    """Every check of every strategy in the file; an error above its tolerance is a failure.

    Replayed block sizes: mean of keep_per_clip 2 %, its quartiles 3 %, each cell of
    visible_probability 0.03, means after truncation 3 % or four standard errors. Our own block
    sizes: total variation against the file's frequencies 0.12. Raises ValueError for a file of
    another form.
    """
    with np.load(path, allow_pickle=False) as arrays:
        file = {name: arrays[name] for name in arrays.files}
    strategies = [name.removesuffix("/config") for name in file if name.endswith("/config")]
    if not strategies:
        raise ValueError(
            f"{path}: found no <strategy>/config, expected mask statistics; pass such a file"
        )
    checks = []
    for strategy in strategies:
        recorded = {
            name.removeprefix(f"{strategy}/"): value
            for name, value in file.items()
            if name.startswith(f"{strategy}/")
        }
        spec, grid = _read_config(json.loads(str(recorded["config"])))
        results = _check_replay(recorded, spec, grid) + _check_truncation(recorded, spec, grid)
        results += _check_block_sizes(recorded, spec, grid)
        checks += [(f"{strategy}: {item}", error, limit) for item, error, limit in results]
    return checks


def _read_config(config: dict) -> tuple[MultiBlock, tuple[int, int, int]]:
    fields = {key: value for key, value in config.items() if key not in _GRID_KEYS}
    unknown = fields.keys() - MultiBlock.__dataclass_fields__.keys()
    if unknown or _GRID_KEYS - config.keys():
        raise ValueError(
            f"config: found {config}, expected the keys of MultiBlock and {sorted(_GRID_KEYS)}; "
            "record such a config"
        )
    height, width = np.broadcast_to(config["crop_size"], 2) // config["patch_size"]
    return MultiBlock(**fields), (
        config["num_frames"] // config["tubelet_size"],
        int(height),
        int(width),
    )


def _check_replay(recorded: dict, spec: MultiBlock, grid: tuple[int, int, int]) -> list[Check]:
    sizes = recorded["block_size_by_step"].astype(np.int64)
    clips = len(recorded["keep_per_clip"]) // len(sizes)
    sampler = MaskSampler([spec], grid, seed=1, truncate="none", num_threads=1)
    keep, visible = [], np.zeros(grid)
    for step, size in enumerate(sizes):
        ids = range(step * clips, (step + 1) * clips)
        masks = sampler.sample(step, ids, block_sizes=[size])
        # Counted through the targets, since max_keep caps the context.
        keep.append(masks.num_tokens - masks.target_seqlens[0].numpy())
        hidden = np.bincount(masks.target_tokens.numpy(), minlength=masks.num_tokens)
        visible += (clips - hidden).reshape(grid)
    keep = np.concatenate(keep)
    expected = recorded["keep_per_clip"].astype(np.float64)
    visible /= keep.size
    checks = [("mean of keep_per_clip", _relative(keep.mean(), expected.mean()), 0.02)]
    for percent in (25, 50, 75):
        error = _relative(np.percentile(keep, percent), np.percentile(expected, percent))
        checks.append((f"{percent} % quantile of keep_per_clip", error, 0.03))
    worst = float(np.abs(visible - recorded["visible_probability"]).max())
    checks.append(("worst cell of visible_probability", worst, 0.03))
    return checks


def _check_truncation(recorded: dict, spec: MultiBlock, grid: tuple[int, int, int]) -> list[Check]:
    sizes = recorded["block_size_by_step"].astype(np.int64)
    clips = len(recorded["keep_per_clip"]) // len(sizes)
    kept = {"context": np.empty((_REPLAYS, len(sizes))), "target": np.empty((_REPLAYS, len(sizes)))}
    for replay in range(_REPLAYS):
        sampler = MaskSampler([spec], grid, seed=10 + replay, truncate_group=clips, num_threads=1)
        for step, size in enumerate(sizes):
            ids = range(step * clips, (step + 1) * clips)
            masks = sampler.sample(step, ids, block_sizes=[size])
            kept["context"][replay, step] = masks.context_seqlens[0, 0]
            kept["target"][replay, step] = masks.target_seqlens[0, 0]
    checks = []
    for name, counts in kept.items():
        for key in recorded:
            if key.startswith(f"{name}_kept_batch"):
                expected = recorded[key].mean()
                variance = counts.var(axis=0, ddof=1).mean() / len(sizes) * (1 + 1 / _REPLAYS)
                tolerance = max(0.03, 4 * float(np.sqrt(variance)) / expected)
                checks.append((f"mean of {key}", _relative(counts.mean(), expected), tolerance))
    return checks


def _check_block_sizes(recorded: dict, spec: MultiBlock, grid: tuple[int, int, int]) -> list[Check]:
    sampler = MaskSampler([spec], grid, seed=2, truncate="none", num_threads=1)
    ours = Counter(
        tuple(sampler.sample(step, [step]).block_sizes[0].tolist()) for step in range(_DRAWS)
    )
    theirs = Counter(map(tuple, recorded["block_size_by_step"].tolist()))
    variation = 0.5 * sum(
        abs(ours[size] / ours.total() - theirs[size] / theirs.total()) for size in ours | theirs
    )
    return [("total variation of block sizes", variation, 0.12)]


def _relative(value: float, expected: float) -> float:
    return float(abs(value - expected) / expected)
