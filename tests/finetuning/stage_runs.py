"""Fine-tunes at every ZeRO stage in one launch, and a plain AdamW loop as their reference.

Each process of a group runs this file as a program, as tests/training/zero/stage_runs.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.ranks import run_ranks
from vjepa_fast.config.finetune.load import parse_finetune_config
from vjepa_fast.config.finetune.schema import FinetuneConfig
from vjepa_fast.evaluation.heads.spec import ProbeForm, make_head
from vjepa_fast.finetuning.model import ClipClassifier
from vjepa_fast.finetuning.trainer import FinetuneTrainer, LabeledClips, make_schedules
from vjepa_fast.masks.philox import STREAM_DROP_PATH, STREAM_DROPOUT, draw, uniform
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.sequences import drop_path_factors
from vjepa_fast.training.distributed.launch import end_process_group, init_process_group

CLIPS, CLASSES, DEPTH, WIDTH = 4, 3, 3, 72
LR, DECAY, LAYER_DECAY, CLIP = 1e-3, 0.05, 0.5, 0.5
DROP_PATH, DROPOUT = 0.5, 0.25


def settings(stage: int, kind: str) -> FinetuneConfig:
    return parse_finetune_config(
        {
            "output": "unused",
            "init": {"checkpoint": "unused"},
            "label": "unused",
            "data": {"train": "unused", "test": "unused", "clips_per_video": 1},
            "augment": {"mixup": 0.0, "cutmix": 0.0},
            "classifier": {"kind": kind},
            "optim": {
                "epochs": 1,
                "warmup_epochs": 0.25,
                "global_batch": CLIPS,
                "micro_batch": CLIPS,
                "lr": LR,
                "layer_decay": LAYER_DECAY,
                "clip_grad": CLIP,
                "drop_path": DROP_PATH,
                "head_dropout": DROPOUT,
            },
            "zero": {"stage": stage},
            "precision": "fp32",
        }
    )


def make(config: FinetuneConfig) -> ClipClassifier:
    torch.manual_seed(0)
    encoder = VisionTransformer(
        width=WIDTH, depth=DEPTH, heads=2, grid=(2, 3, 3), patch_size=8, tubelet_size=2
    )
    form = ProbeForm.of(config.classifier.kind, WIDTH, 2, config.classifier.blocks)
    head = make_head(form, CLASSES, seed=0)
    head.linear.weight.data.mul_(20)  # gradients of the encoder that matter
    return ClipClassifier(encoder, head)


def batch(step: int, rank: int = 0, world: int = 1) -> LabeledClips:
    generator = torch.Generator().manual_seed(step)
    shape = (CLIPS, 4, 24, 24, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    targets = torch.rand(CLIPS, CLASSES, generator=generator).softmax(1)
    ids = np.arange(step * CLIPS, (step + 1) * CLIPS)
    own = slice(rank * CLIPS // world, (rank + 1) * CLIPS // world)
    return LabeledClips(video[own], targets[own], ids[own])


def plain_loop(kind: str, steps: int, dtype: torch.dtype) -> list[list[float]]:
    """Loss, gradient norm and, at the end, the norm of each layer's weights, without DeepSpeed.

    AdamW (Loshchilov and Hutter, algorithm 2), layer-wise rates and clipping are written out.
    """
    config = settings(0, kind)
    model = make(config).to(dtype)
    own = dict(model.named_parameters())
    means, squares = ({name: torch.zeros_like(p) for name, p in own.items()} for _ in range(2))
    found = []
    for step in range(steps):
        clips = batch(step)
        numbers = uniform(draw(0, STREAM_DROP_PATH, clips.sample_ids, 2 * DEPTH))
        numbers = torch.from_numpy(numbers).view(CLIPS, DEPTH, 2).permute(1, 2, 0)
        kept = torch.from_numpy(uniform(draw(0, STREAM_DROPOUT, clips.sample_ids, WIDTH)))
        dropout = ((kept >= DROPOUT) / (1 - DROPOUT)).to(dtype)
        logits = model(clips.video, drop_path_factors(numbers, DROP_PATH).to(dtype), dropout)
        loss = -(clips.targets * F.log_softmax(logits, 1)).sum(1).mean()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in own.values()]).norm().item()
        found.append([loss.item(), norm])
        rate = make_schedules(config, steps).lr(step)
        with torch.no_grad():
            for name, p in own.items():
                lr = rate * LAYER_DECAY ** (DEPTH + 1 - _layer(name))
                gradient = p.grad * min(1.0, CLIP / (norm + 1e-6))
                means[name] = 0.9 * means[name] + 0.1 * gradient
                squares[name] = 0.999 * squares[name] + 0.001 * gradient**2
                if p.ndim > 1:
                    p -= lr * DECAY * p
                root = (squares[name] / (1 - 0.999 ** (step + 1))).sqrt()
                p -= lr * means[name] / (1 - 0.9 ** (step + 1)) / (root + 1e-8)
                p.grad = None
    return [*found, [sum(p.double().norm().item() for p in part) for part in _halves(own)]]


def _layer(name: str) -> int:
    if "patch_embed" in name:
        return 0
    return int(name.split(".")[2]) + 1 if "encoder.blocks" in name else DEPTH + 1


def _halves(own: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    """The weights of the lower layers, where rates are small, and of the others."""
    for low in (True, False):
        yield [p for name, p in own.items() if (_layer(name) < 2) == low]


def run_case(stage: int, kind: str, steps: int) -> dict:
    """Train one case. Collective."""
    rank, world = dist.get_rank(), dist.get_world_size()
    config = settings(stage, kind)
    trainer = FinetuneTrainer(
        make(config), config, steps, micro_batch=CLIPS // world, accumulation=1, bf16=False
    )
    # as the loop does, from weights by name
    trainer.load({name: p.detach() for name, p in make(config).named_parameters()})
    found = []
    for step in range(steps):
        result = trainer.step([batch(step, rank, world)])
        found.append([result.global_loss().item(), result.grad_norms["model"].item()])
    weights: dict[str, Tensor] = {}
    for shard in trainer.shards:
        shards = [None] * world
        dist.all_gather_object(
            shards, ([(r.start, r.count) for r in shard.ranges], shard.read(shard.masters))
        )
        flat = torch.full((shard.size,), float("nan"))
        for ranges, values in shards:
            pieces = values.split([count for _, count in ranges])
            for (start, count), piece in zip(ranges, pieces, strict=True):
                flat[start : start + count] = piece
        sizes = [int(np.prod(shape)) for shape in shard.shapes]
        weights |= dict(zip(shard.names, flat.split(sizes), strict=True))
    norms = [sum(p.double().norm().item() for p in part) for part in _halves(weights)]
    return {"class": type(trainer.engine.optimizer).__name__, "found": [*found, norms]}


def launch(cases: list[tuple[int, str]], steps: int, world: int) -> list[list[dict]]:
    """Results of each case, for each process."""
    return run_ranks([__file__, json.dumps([cases, steps])], world, seconds=900)


if __name__ == "__main__":
    torch.set_num_threads(1)
    init_process_group()
    all_cases, number = json.loads(sys.argv[1])
    print("FOUND" + json.dumps([run_case(*case, number) for case in all_cases]), flush=True)
    end_process_group()
