"""`vjepa-fast masks`: draw a config's masks over a real clip, and count their tokens."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vjepa_fast.commands.info import mask_name
from vjepa_fast.commands.terminal import add_config_arguments, path_argument, text_table
from vjepa_fast.errors import UserError

if TYPE_CHECKING:
    from vjepa_fast.config import Config
    from vjepa_fast.masks import MaskBatch, MaskSampler

HELP = "draw a config's masks over a clip and count their tokens"
DEMO = Path("data/demo/train.csv")
CLIPS = 2  # masks of each spec that are drawn over the clip
MOST_SPECS = 6  # drawn; the table has all

log = logging.getLogger("vjepa_fast")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    add_config_arguments(parser)
    parser.add_argument(
        "--output",
        type=path_argument,
        default=Path("masks.png"),
        help="picture to write (default: masks.png)",
    )


def run(options: argparse.Namespace) -> int:
    """Draw the picture and print the table of token counts.

    Raises:
        UserError: the output cannot be written.
    """
    from vjepa_fast.config import load_config
    from vjepa_fast.config.masks import sample_masks

    config, output = load_config(options.config, options.set), options.output
    if not output.suffix or output.is_dir():  # matplotlib would write to another path
        found = f"the folder {output}" if output.is_dir() else f"{output}, a name without an ending"
        raise UserError(
            f"--output: found {found}, expected the path of a picture; name e.g. masks.png"
        )
    clip, source = find_clip(config)
    sampler = config.masks.sampler(config.grid, config.seed, num_threads=1)
    context_rate, text = count(config, sampler)
    draw(config, sample_masks(sampler, 0, range(CLIPS)), clip, context_rate, output)
    print(f"{text}\n\nmasks over {source}: {output}")
    return 0


def find_clip(config: Config) -> tuple[np.ndarray, str]:
    """A clip, uint8 [T, H, W, 3], and its source.

    It is the first clip of the config's data if there is any, else of the demo data, else a
    rendered demo clip. Demo clips are short: their frames are spread over the config's frames.
    """
    import torch

    from vjepa_fast.data.prepare.demo.clip import FRAMES
    from vjepa_fast.data.prepare.demo.digits import render_clip

    data = config.data
    for path in (Path(manifest.path) for manifest in data.manifests):
        if path.is_file():
            frames = {"num_frames": data.num_frames, "frame_step": data.frame_step, "fps": data.fps}
            return _first_clip(path, data.crop_size, **frames)
    spread = np.arange(data.num_frames) * FRAMES // data.num_frames
    if DEMO.is_file():
        clip, source = _first_clip(DEMO, data.crop_size, num_frames=FRAMES, frame_step=1)
        return clip[spread], source
    video, _ = render_clip(seed=0, split="train", index=0)
    side = (data.crop_size, data.crop_size)
    pixels = torch.from_numpy(video[spread]).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate(pixels, side, mode="bilinear", antialias=True)
    log.warning(
        "found neither a manifest of this config nor the demo data; using a rendered demo clip"
    )
    return pixels.permute(0, 2, 3, 1).numpy(), "a rendered demo clip"


def _first_clip(manifest: Path, crop_size: int, **frames: float | None) -> tuple[np.ndarray, str]:
    from vjepa_fast.data.decode.pyav import decode_clip
    from vjepa_fast.data.open_manifest import open_manifest
    from vjepa_fast.data.plan.planner import ClipPlanner

    planner = ClipPlanner.in_order(open_manifest(manifest), **frames)
    (plan,) = planner.plan([0])
    video = decode_clip(plan, planner.entries[plan.video], crop_size)
    return video.numpy(), f"{plan.path} (of {manifest})"


def count(config: Config, sampler: MaskSampler) -> tuple[np.ndarray, str]:
    """Count tokens over the `sampled_clips`.

    Args:
        config: with M mask specs.
        sampler: the config's.

    Returns:
        how often each token is context, [M, T', H', W'] in 0 … 1, and the table of token counts.
    """
    from vjepa_fast.commands.cost_of_config import sampled_clips
    from vjepa_fast.config.masks import sample_masks
    from vjepa_fast.masks import MaskSampler

    num_specs, grid = len(config.masks.specs), config.grid
    whole = MaskSampler(sampler.specs, grid, sampler.seed, truncate="none", num_threads=1)
    times_context = np.zeros((num_specs, int(np.prod(grid))))
    kept, drawn = np.zeros((num_specs, 2)), np.zeros((num_specs, 2))
    total = 0
    for step, ids in sampled_clips(config):
        clips = len(ids)
        total += clips
        masks = sample_masks(sampler, step, ids)
        targets = sample_masks(whole, step, ids).target_seqlens.numpy().sum(axis=1)
        drawn += np.stack([clips * masks.num_tokens - targets, targets], axis=1)
        for side, seqlens in enumerate((masks.context_seqlens, masks.target_seqlens)):
            kept[:, side] += seqlens.numpy().sum(axis=1)
        ends = masks.context_cu_seqlens[::clips].tolist()
        for m in range(num_specs):
            tokens = masks.context_tokens[ends[m] : ends[m + 1]].numpy()
            times_context[m] += np.bincount(tokens, minlength=times_context.shape[1])
    num_tokens = times_context.shape[1]
    rows = [("tokens per clip", "context", "kept", "target", "kept", "mask ratio", "truncated")]
    for m, spec in enumerate(config.masks.specs):
        (context, target), (kept_context, kept_target) = drawn[m] / total, kept[m] / total
        truncated = (num_tokens * total - kept[m].sum()) / total  # of whole numbers: no -0
        rows.append(
            (
                f"masks.specs[{m}] ({mask_name(spec)})",
                f"{context:.0f}",
                f"{kept_context:.0f}",
                f"{target:.0f}",
                f"{kept_target:.0f}",
                f"{target / num_tokens:.2f}",
                f"{truncated:.0f} ({truncated / num_tokens:.0%})",
            )
        )
    text = (
        f"{text_table(rows)}\n(means over {total} clips of {total // clips} steps; of "
        f"{' x '.join(map(str, grid))} = {num_tokens} tokens; truncate: {config.masks.truncate})"
    )
    return (times_context / total).reshape(num_specs, *grid), text


def draw(
    config: Config, masks: MaskBatch, clip: np.ndarray, context_rate: np.ndarray, output: Path
) -> None:
    """Draw, for each spec and some frames, the clip, the masks over it and the heat map.

    Args:
        config: with M mask specs.
        masks: masks of `CLIPS` clips.
        clip: uint8 [T, H, W, 3].
        context_rate: how often each token is context, [M, T', H', W'].
        output: picture to write.

    Raises:
        UserError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from vjepa_fast.masks.overlay import overlay, token_kinds
    from vjepa_fast.training.monitoring.pictures import shown_frames

    grid, specs = config.grid, config.masks.specs[:MOST_SPECS]
    frames = shown_frames(grid[0])
    kinds = token_kinds(masks, grid)
    names = ["the clip", *(f"mask {i + 1}" for i in range(CLIPS)), "how often\ncontext"]
    width = 1.25 * len(frames) + 0.7  # inches
    figure = plt.figure(figsize=(width * len(specs), 1.25 * len(names) + 1), layout="constrained")
    parts = figure.subfigures(1, len(specs), squeeze=False)[0]
    for m, (spec, part) in enumerate(zip(specs, parts, strict=True)):
        part.suptitle(f"masks.specs[{m}]: {mask_name(spec)}", fontsize=9)
        axes = part.subplots(len(names), len(frames), squeeze=False)
        for column, t in enumerate(frames):
            picture = clip[t * config.model.tubelet_size]
            panels = axes[:, column]
            panels[0].imshow(picture)
            panels[0].set_title(f"t = {t}", fontsize=8)
            for panel, mask in zip(panels[1:], kinds[m], strict=False):
                panel.imshow(overlay(picture, mask[t], config.model.patch_size))
            heat = panels[-1].imshow(context_rate[m, t], vmin=0, vmax=1, cmap="viridis")
        for row, name in zip(axes, names, strict=True):
            row[0].set_ylabel(name, fontsize=8)
        for panel in axes.flat:
            panel.set(xticks=[], yticks=[])
        bar = part.colorbar(heat, ax=axes[-1].tolist(), pad=0.02, aspect=12)
        bar.ax.tick_params(labelsize=7)
    legend = "bright: context     blue: target     orange: neither (truncated)"
    figure.supxlabel(f"{legend}     (truncate: {config.masks.truncate})", fontsize=8)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=80)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--output: found {output}, which cannot be written ({error}), expected a picture's "
            "path; name e.g. masks.png"
        ) from None
    finally:
        plt.close(figure)
