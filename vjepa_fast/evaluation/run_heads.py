"""Trains heads on a source of features, and tests them: loops over epochs, restarts, processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vjepa_fast.data.manifest.replaced import replaced_atomically
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.heads.spec import HeadSpec, ProbeForm, ProbeRecipe
from vjepa_fast.evaluation.heads.stack import HeadStack
from vjepa_fast.evaluation.heads.train import HeadTrainer
from vjepa_fast.evaluation.labels.draws import epoch_order
from vjepa_fast.evaluation.labels.targets import TRAIN, Target
from vjepa_fast.evaluation.results import class_scores, rank_of_truth, value_scores
from vjepa_fast.evaluation.views.source import FeatureSource
from vjepa_fast.progress import with_progress
from vjepa_fast.training.distributed.host_group import HostGroup

_TEST_BATCH = 64  # videos, of all processes
SAVE_EVERY = 300.0  # seconds between two saved states
log = logging.getLogger("vjepa_fast")


@dataclass(frozen=True)
class Restart:
    """Where the state of a training is kept.

    Attributes:
        file: of the state; it is removed by whoever removes its folder.
        key: what the training depends on, as text; the state of another key is not used.
    """

    file: Path
    key: str


def train_heads(
    source: FeatureSource,
    targets: Sequence[Target],
    specs: Sequence[HeadSpec],
    labeled: Sequence[Tensor],
    form: ProbeForm,
    recipe: ProbeRecipe,
    most: int,
    device: torch.device,
    group: HostGroup,
    restart: Restart,
    name: str,
) -> tuple[HeadStack, Tensor, Tensor]:
    """Train heads together, in one pass over the features for each epoch. Collective.

    Args:
        source: of the training manifest's features.
        targets: what the heads learn.
        specs: the heads.
        labeled: of each head, the rows of the videos that it learns from, int64 [m].
        form, recipe: of all heads.
        most: videos whose features are held at once, unless `recipe.batch` is more.
        device: of the heads.
        group: the processes.
        restart: a training that was interrupted goes on from there.
        name: of the features, for the progress.

    Returns:
        the heads; of each one the loss of its last update, fp64 [H], and how many videos it has
        seen, int64 [H]: 0 where none of its videos decodes.
    """
    union = torch.cat(list(labeled)).unique().numpy()
    # Where heads have few of the videos each, batches are larger, so that a head has about
    # recipe.batch of its own in each.
    wanted = round(recipe.batch * len(union) / max(map(len, labeled)))
    size = max(recipe.batch, min(wanted, most))
    total = recipe.epochs * -(-len(union) // size)
    member = torch.zeros(len(labeled), int(union.max()) + 1, dtype=torch.bool)
    for head, rows in enumerate(labeled):
        member[head, rows] = True
    stack = HeadStack(form, specs, recipe.seed).to(device)
    counts = torch.tensor([len(rows) for rows in labeled])
    trainer = HeadTrainer(stack, recipe, counts)
    first = _load(trainer, restart, group, device)
    truth = {target.name: target.learned(TRAIN) for target in targets}
    saved = time.monotonic()
    batches = source.batches(islice(_order(union, recipe, size), first, None))
    shown = with_progress(batches, f"probes of {name}", total, "batch", initial=first, leave=False)
    for done, batch in enumerate(shown, first + 1):
        rows = batch.rows.cpu()
        own = {key: values[rows].to(device) for key, values in truth.items()}
        trainer.step(batch.tokens[:, 0], own, member[:, rows].to(device))
        if group.any(time.monotonic() - saved >= SAVE_EVERY)[0]:
            _save(trainer, restart, group, done)
            saved = time.monotonic()
    for head in trainer.diverged.nonzero()[:, 0].tolist() if group.rank == 0 else ():
        log.warning(
            "probes of %s: found a gradient that is not finite in the probe of %s with learning "
            "rate %g and weight decay %g, which learned no more from there on; leave these out, or "
            "choose smaller ones",
            name,
            specs[head].target,
            specs[head].lr,
            specs[head].weight_decay,
        )
    return stack.eval(), trainer.losses, trainer.seen


def check_learned(
    specs: Sequence[HeadSpec], learned: Sequence[bool], manifest: Path, group: HostGroup, name: str
) -> None:
    """Warn of draws of labels of which no video decodes, so that their heads have learned nothing.

    One process warns, as all know the same.

    Args:
        specs: the heads.
        learned: whether each has seen any video.
        manifest: of the videos.
        group: the processes.
        name: of the features.

    Raises:
        UserError: no other draw of the same share is left.
    """
    draws: dict[tuple[str, float], dict[int, bool]] = {}
    for spec, its in zip(specs, learned, strict=True):
        draws.setdefault((spec.target, spec.share), {})[spec.draw] = its
    for (target, share), found in draws.items():
        empty = [str(draw) for draw, its in found.items() if not its]
        what = f"none of the videos with {100 * share:g} % of the labels of {target}"
        if len(empty) == len(found):
            raise UserError(
                f"{manifest}: found that {what} can be decoded, expected some; take a larger share "
                "of the labels, or index the videos again"
            )
        if empty and group.rank == 0:
            log.warning(
                "probes of %s: found that %s can be decoded in draw %s, which is left out of the "
                "results",
                name,
                what,
                ", ".join(empty),
            )


def _order(rows: np.ndarray, recipe: ProbeRecipe, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """The batches of all epochs."""
    for epoch in range(recipe.epochs):
        order = epoch_order(rows, epoch, recipe.seed)
        for first in range(0, len(order), size):
            yield epoch, order[first : first + size]


def _load(trainer: HeadTrainer, restart: Restart, group: HostGroup, device: torch.device) -> int:
    """Go on from a saved state, where there is one; returns the batches that are done."""
    state, done = {}, 0
    try:
        with safe_open(restart.file, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            if header.get("key") == restart.key:
                done = int(header["done"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError):
        state = {}  # none, or damaged: the training starts anew
    if not all(group.all_gather(bool(state))):
        return 0
    trainer.load_state_dict(state)
    return done


def _save(trainer: HeadTrainer, restart: Restart, group: HostGroup, done: int) -> None:
    state = {name: value.contiguous() for name, value in trainer.state_dict().items()}
    if group.rank == 0:
        try:
            with replaced_atomically(restart.file, binary=True) as file:
                file.write(save(state, {"key": restart.key, "done": str(done)}))
        except OSError as error:
            log.warning(
                "%s: found that it cannot be written (%s), so a restart would begin earlier",
                restart.file,
                error.strerror,
            )
    group.barrier()


@torch.no_grad()
def pooled(
    source: FeatureSource,
    rows: Tensor,
    count: int,
    device: torch.device,
    group: HostGroup,
    name: str,
) -> tuple[Tensor, Tensor]:
    """Mean features of videos, for nearest neighbors. Collective.

    Args:
        source: of a manifest of `count` videos.
        rows: the videos, int64 [m].
        device: of the result.
        group: the processes.
        name: of the features, for the progress.

    Returns:
        fp32 [count, D], and which rows are there, bool [count], on the host.
    """
    order = [(0, part.numpy()) for part in rows.split(_TEST_BATCH)]
    batches = with_progress(
        source.batches(order), f"neighbors of {name}", len(order), "batch", leave=False
    )
    found = [(batch.rows.cpu(), batch.tokens.float().mean((1, 2)).cpu()) for batch in batches]
    found = [pair for part in group.all_gather(found) for pair in part]
    bank, there = torch.zeros(count, found[0][1].shape[1]), torch.zeros(count, dtype=torch.bool)
    for own, features in found:
        bank[own], there[own] = features, True
    return bank.to(device), there


@dataclass(frozen=True)
class Predictions:
    """What heads say about the videos of a split; of one target.

    Attributes:
        target: what they predict.
        truth: of the videos that could be decoded, [n].
        guesses: classes, int64 [H, n]; or values in the column's unit, fp64.
        ranks: `rank_of_truth`, int64 [H, n]; of values nothing.
    """

    target: Target
    truth: Tensor
    guesses: Tensor
    ranks: Tensor

    def scores(self, head: int) -> dict[str, float]:
        """Figures of merit of a head, see `results`."""
        if self.target.has_values:
            return value_scores(self.guesses[head], self.truth)
        return class_scores(self.ranks[head], self.truth, self.target.outputs)


@torch.no_grad()
def predict(
    predictor: HeadStack,
    source: FeatureSource,
    rows: Tensor,
    targets: Sequence[Target],
    split: str,
    group: HostGroup,
    name: str,
) -> dict[str, Predictions]:
    """Test heads on videos; softmax is averaged over spatial views. Collective.

    Args:
        predictor: tokens [b, N, D] → {target: logits [H, b, outputs]}, standardized values.
        source: of the features of a manifest.
        rows: of its videos to test on, int64 [m].
        targets: what the heads predict.
        split: which key of the targets' truth that manifest is.
        group: the processes.
        name: of the features, for the progress.

    Returns:
        by target, on the host.
    """
    order = [(0, part.numpy()) for part in rows.split(_TEST_BATCH)]
    seen: list[Tensor] = []
    found: dict[str, list[tuple[Tensor, Tensor]]] = {target.name: [] for target in targets}
    batches = with_progress(
        source.batches(order), f"{split} of {name}", len(order), "batch", leave=False
    )
    for batch in batches:
        if not len(batch.rows):
            continue
        seen.append(batch.rows.cpu())
        for target, outputs in zip(targets, _mean(predictor, batch.tokens, targets), strict=True):
            found[target.name].append(_judge(target, outputs, target.truth[split][seen[-1]]))
    parts = group.all_gather((seen, found))
    if not any(seen for seen, _ in parts):
        raise UserError(
            f"{split}: found that none of {len(rows)} videos can be decoded, expected some to test "
            "on; index them again"
        )
    tested, place = torch.cat([rows for seen, _ in parts for rows in seen]).sort()
    result = {}
    for target in targets:
        pairs = [pair for _, found in parts for pair in found[target.name]]
        guesses, ranks = (torch.cat(list(p), 1)[:, place] for p in zip(*pairs, strict=True))
        result[target.name] = Predictions(target, target.truth[split][tested], guesses, ranks)
    return result


def _mean(predictor: HeadStack, tokens: Tensor, targets: Sequence[Target]) -> Iterator[Tensor]:
    """The mean over spatial views of probabilities or values, by target: [H, b, outputs]."""
    views: list[Mapping[str, Tensor]] = [predictor(tokens[:, v]) for v in range(tokens.shape[1])]
    for target in targets:
        outputs = [view[target.name].float() for view in views]
        if not target.has_values:
            outputs = [logits.softmax(-1) for logits in outputs]
        yield torch.stack(outputs).mean(0)


def _judge(target: Target, outputs: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Guesses and ranks of the truth of one batch, [H, b] each, on the host."""
    if target.has_values:
        guesses = outputs[..., 0].double().cpu() * target.std + target.mean
        return guesses, torch.zeros(len(outputs), len(truth), dtype=torch.int64)
    outputs = outputs.cpu()
    return outputs.argmax(-1), rank_of_truth(outputs, truth)
