"""`vjepa-fast masks`: what a config's masks look like, over a real clip, and what they keep."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from vjepa_fast.commands.info import mask_name, sampled_clips, table
from vjepa_fast.config import Config
from vjepa_fast.config.masks import sample_masks
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.prepare.demo import FRAMES, render_clip
from vjepa_fast.errors import UserError
from vjepa_fast.masks import MaskBatch, MaskSampler
from vjepa_fast.masks.overlay import overlay, token_kinds

DEMO = Path("data/demo/train.csv")
CLIPS = 2  # masks of each spec that are drawn over the clip
SHOWN_FRAMES = 4  # at most, of each mask
MOST_SPECS = 6  # drawn; the table has all

log = logging.getLogger("vjepa_fast")


def masks_command(config: Config, output: Path) -> int:
    """Draw the config's masks to `output` and print the table of what they keep."""
    if not output.suffix or output.is_dir():  # matplotlib would write to another path
        found = f"the folder {output}" if output.is_dir() else f"{output}, a name without an ending"
        raise UserError(f"--output: found {found}, expected a picture's path; name e.g. masks.png")
    clip, source = find_clip(config)
    sampler = config.masks.sampler(config.grid, config.seed, num_threads=1)
    seen, text = count(config, sampler)
    draw(config, sample_masks(sampler, 0, range(CLIPS)), clip, seen, output)
    print(f"{text}\n\nmasks over {source}: {output}")
    return 0


def find_clip(config: Config) -> tuple[np.ndarray, str]:
    """A clip, uint8 [T, H, W, 3], and where it is from: the config's data if it is there, else the
    demo data, else a clip drawn as the demo's are. The demo's clips are short: their frames are
    spread over the config's."""
    data = config.data
    for path in map(Path, data.manifests):
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
    log.warning("found no manifest of this config and no demo data: a rendered demo clip instead")
    return pixels.permute(0, 2, 3, 1).numpy(), "a rendered demo clip"


def _first_clip(manifest: Path, crop_size: int, **frames: float | None) -> tuple[np.ndarray, str]:
    planner = ClipPlanner.in_order(open_manifest(manifest), **frames)
    (plan,) = planner.plan([0])
    video = decode_clip(plan, planner.entries[plan.video], crop_size)
    return video.numpy(), f"{plan.path} (of {manifest})"


def count(config: Config, sampler: MaskSampler) -> tuple[np.ndarray, str]:
    """How often each token is context, [M, T', H', W'] in 0 .. 1, and the table of token counts,
    both over the `sampled_clips`; `sampler` is the config's."""
    num_specs, grid = len(config.masks.specs), config.grid
    whole = MaskSampler(sampler.specs, grid, sampler.seed, truncate="none", num_threads=1)
    seen = np.zeros((num_specs, int(np.prod(grid))))
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
            seen[m] += np.bincount(tokens, minlength=seen.shape[1])
    rows = [("tokens per clip", "context", "kept", "target", "kept", "mask ratio", "lost to cuts")]
    for m, spec in enumerate(config.masks.specs):
        (context, target), (left, left_target) = drawn[m] / total, kept[m] / total
        lost = (seen.shape[1] * total - kept[m].sum()) / total  # of whole numbers: no -0
        rows.append(
            (
                f"masks.specs[{m}] ({mask_name(spec)})",
                f"{context:.0f}",
                f"{left:.0f}",
                f"{target:.0f}",
                f"{left_target:.0f}",
                f"{target / seen.shape[1]:.2f}",
                f"{lost:.0f} ({lost / seen.shape[1]:.0%})",
            )
        )
    text = (
        f"{table(rows)}\n(means over {total} clips of {total // clips} steps; of "
        f"{' x '.join(map(str, grid))} = {seen.shape[1]} tokens; truncate: {config.masks.truncate})"
    )
    return (seen / total).reshape(num_specs, *grid), text


def draw(
    config: Config, masks: MaskBatch, clip: np.ndarray, seen: np.ndarray, output: Path
) -> None:
    """For each spec, at some of the frames: the clip, the masks over it, the heat map."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grid, specs = config.grid, config.masks.specs[:MOST_SPECS]
    frames = np.unique(np.linspace(0, grid[0] - 1, SHOWN_FRAMES).round().astype(int))
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
            heat = panels[-1].imshow(seen[m, t], vmin=0, vmax=1, cmap="viridis")
        for row, name in zip(axes, names, strict=True):
            row[0].set_ylabel(name, fontsize=8)
        for panel in axes.flat:
            panel.set(xticks=[], yticks=[])
        bar = part.colorbar(heat, ax=axes[-1].tolist(), pad=0.02, aspect=12)
        bar.ax.tick_params(labelsize=7)
    colours = "bright: context     blue: target     orange: neither, cut away"
    figure.supxlabel(f"{colours}     (truncate: {config.masks.truncate})", fontsize=8)
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
