"""The test of a fine-tuned model: probabilities averaged over segments and crops of each video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vjepa_fast.config.finetune.schema import FinetuneConfig
from vjepa_fast.evaluation.labels.targets import TEST
from vjepa_fast.evaluation.results import class_scores, rank_of_truth
from vjepa_fast.evaluation.views.decode import ViewDecoder
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.evaluation.views.source import Share
from vjepa_fast.finetuning.batches import FinetuneBatches
from vjepa_fast.finetuning.model import ClipClassifier
from vjepa_fast.inference.clips import Sampling
from vjepa_fast.progress import with_progress
from vjepa_fast.training.distributed.host_group import HostGroup

RESULTS = "results.json"


def tested(
    model: ClipClassifier,
    config: FinetuneConfig,
    batches: FinetuneBatches,
    device: torch.device,
    host_group: HostGroup,
) -> dict:
    """Classify all test videos, each process its share. Collective.

    Returns:
        JSON data: "accuracy", see `class_scores`; "videos": how many were "used", and why others
        were "left_out", by path.

    Raises:
        UserError: too many videos do not decode.
    """
    data, entries, truth = config.data, batches.test, batches.target.truth[TEST]
    sampling = Sampling(data.num_frames, data.crop_size, data.frame_step, data.fps)
    views = ViewDecoder(
        entries,
        ViewPlan(sampling, config.test.segments, config.test.crops),
        device=device,
        backend=data.backend,
        num_workers=data.num_workers,
        max_bad_fraction=data.max_bad_fraction,
    )
    rows = Share(host_group.rank, host_group.world).part(np.arange(len(entries)))
    size = max(1, config.optim.micro_batch // (config.test.segments * config.test.crops))
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    ranks, left_out = torch.full((len(entries),), -1), {}
    batches_of_views = views.batches((0, part) for part in parts)
    for batch in with_progress(batches_of_views, "test", len(parts), "batch", leave=False):
        left_out |= {entries[row].path: why for row, why in batch.left_out.items()}
        if len(batch.rows):
            scores = _probabilities(model, batch.video, config.optim.micro_batch).cpu()
            ranks[batch.rows] = rank_of_truth(scores, truth[batch.rows])
    for part, own, others in host_group.all_gather((rows, ranks[rows], left_out)):
        ranks[part] = own
        left_out |= others
    used = ranks >= 0
    return {
        "accuracy": class_scores(ranks[used], truth[used], batches.target.outputs),
        "videos": {"used": int(used.sum()), "left_out": left_out},
    }


@torch.no_grad()
def _probabilities(model: ClipClassifier, video: Tensor, micro_batch: int) -> Tensor:
    """Mean softmax over the views, uint8 [b, V, S, T, H, W, 3] → fp32 [b, C]."""
    clips = video.flatten(0, 2)
    found = [model(part).float().softmax(-1) for part in clips.split(micro_batch)]
    return torch.cat(found).view(len(video), -1, found[0].shape[-1]).mean(1)


def known_results(run: Path, asked: dict) -> dict | None:
    """What RUN/results.json says, if it is of this test."""
    try:
        found = json.loads((run / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and asked.items() <= found.items() else None


def results_table(results: dict) -> str:
    """The results as lines for the terminal."""
    return "\n".join(_lines(results))


def _lines(results: dict) -> Iterator[str]:
    names = {"top1": "top-1", "top5": "top-5", "per_class": "mean over classes"}
    views, videos = results["test"], results["videos"]
    yield (
        f"accuracy of {results['label']} ({results['num_classes']} classes) on {videos['used']} "
        f"videos, {views['segments']} x {views['crops']} views, step {results['step']}"
    )
    for name, value in results["accuracy"].items():
        yield f"{names[name]:20}{value:8.3f}"
    if left_out := len(videos["left_out"]):
        yield f"left out: {left_out} videos that do not decode"
