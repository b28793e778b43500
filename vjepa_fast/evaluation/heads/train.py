"""Trains all heads of a stack together, each as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vjepa_fast.evaluation.heads.spec import ProbeRecipe
from vjepa_fast.evaluation.heads.stack import HeadStack

_NO_CLASS = -100  # what F.cross_entropy skips
_COUNTERS = "losses", "diverged", "seen", "_pending"


class HeadTrainer:
    """AdamW for every head of a stack, on batches of which each head counts its own videos.

    A head makes an update once the processes together have seen about `recipe.batch` of its videos
    (or all of its videos, if they are fewer) since its last one: it does not wait for another part
    that would lead further beyond. Its learning rate falls to 0 by a
    cosine over its own `recipe.epochs`. Weight decay is on all parameters, as in V-JEPA 2 and as
    torch.optim.AdamW has it; V-JEPA 1 spares biases and norms. A head whose gradient is not finite
    keeps its last weights and learns no more; the others do not notice.

    Args:
        stack: on its device, where it stays; its weights change in place.
        recipe: the settings that all heads share.
        videos: how many videos each head learns from, int64 [H].
        group: the processes that share each batch; None: all; this one alone if torch.distributed
            is not initialized.

    Attributes:
        losses: mean over the videos of each head's last update, NaN before, fp64 [H] on the host.
        diverged: heads that learn no more, bool [H] on the host.
        seen: videos of each head's updates, int64 [H] on the host.
    """

    def __init__(
        self,
        stack: HeadStack,
        recipe: ProbeRecipe,
        videos: Tensor,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.stack, self.recipe, self._group = stack, recipe, group
        self._alone = not dist.is_initialized() or dist.get_world_size(group) == 1
        self._videos, heads = videos.cpu(), len(stack.specs)
        if self._videos.shape != (heads,) or self._videos.min() < 1:
            raise ValueError(
                f"videos: found {self._videos.tolist()}, expected 1 or more for each of {heads} "
                "heads; leave out a head that learns from none"
            )
        self._need = self._videos.clamp(max=recipe.batch)
        self.losses = torch.full((heads,), math.nan, dtype=torch.float64)
        self.diverged = torch.zeros(heads, dtype=torch.bool)
        self.seen = torch.zeros(heads, dtype=torch.int64)
        # Since the last update of each head: its videos, and the sum of their losses.
        self._pending = torch.zeros(2, heads, dtype=torch.float64)
        # A head is one row of all weights and one of all gradients, for the optimizer and the
        # all-reduce; the stack's parameters become views of them.
        weights = stack.weights()
        sizes = [w[0].numel() for w in weights.values()]
        flat = torch.cat([w.detach().flatten(1) for w in weights.values()], 1)
        self._gradient = torch.zeros_like(flat)
        views = zip(flat.split(sizes, 1), self._gradient.split(sizes, 1), strict=True)
        self._views = {}
        for (name, p), (own, gradient) in zip(weights.items(), views, strict=True):
            p.data = own.view(p.shape)
            self._views[name] = p.data, gradient.view(p.shape)
        self._rows = [torch.nn.Parameter(row) for row in flat]
        groups = [
            {"params": [row], "lr": spec.lr, "weight_decay": spec.weight_decay}
            for row, spec in zip(self._rows, stack.specs, strict=True)
        ]
        self._optimizer = torch.optim.AdamW(groups, fused=True)

    def step(self, tokens: Tensor, targets: Mapping[str, Tensor], counted: Tensor) -> None:
        """Learn from this process's part of a global batch; all processes call it, in step.

        Args:
            tokens: finite features, [b, N, D], any float dtype; b may differ between processes.
            targets: for each target [b]: classes int64, or values of a regression fp32. Those of
                clips that no head of the target counts may be anything.
            counted: which clips each head learns from, bool [H, b].
        """
        device = tokens.device
        counted = counted.to(device) & ~self.diverged.to(device).unsqueeze(1)
        counts, losses = counted.sum(1), torch.zeros(len(counted), device=device)
        if most := int(counts.max()) if counted.numel() else 0:
            pairs = counted.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
            valid = torch.arange(most, device=device) < counts.unsqueeze(1)
            prepared = self.stack.prepare(tokens)
            for part in self.stack.parts(prepared, pairs):
                own = {name: w[part].requires_grad_() for name, (w, _) in self._views.items()}
                logits = self.stack.logits(own, prepared, pairs[part])
                found = self._losses(logits, targets, part, pairs[part], valid[part])
                gradients = torch.autograd.grad(found.sum(), list(own.values()))
                for (_, row), gradient in zip(self._views.values(), gradients, strict=True):
                    row[part] += gradient
                losses[part] = found.detach()
        seen = self._summed(torch.stack([counts, losses.double()])).cpu()
        self._pending += seen
        # Nearer to a whole batch now than after the next part, if that counts as many.
        enough = (self._pending[0] + seen[0] / 2 >= self._need) & (seen[0] > 0) & ~self.diverged
        if due := enough.nonzero().flatten().tolist():
            self._update(due)

    def _losses(
        self,
        logits: Tensor,
        targets: Mapping[str, Tensor],
        part: slice,
        pairs: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """Sum of each head's losses over its valid pairs, fp32 [h]."""
        specs = self.stack.specs[part]
        losses = [logits.new_zeros(())] * len(specs)
        for target, outputs in self.stack.outputs.items():
            if not (own := [i for i, spec in enumerate(specs) if spec.target == target]):
                continue
            found, here = logits[own][..., :outputs], valid[own]
            wanted = targets[target].to(logits.device)[pairs[own]]
            if outputs == 1:
                wanted = wanted.float().where(here, 0)  # a missing value may be NaN
                each = (found[..., 0] - wanted).square().where(here, 0)
            else:
                wanted = wanted.where(here, _NO_CLASS)
                each = F.cross_entropy(found.flatten(0, 1), wanted.flatten(), reduction="none")
            for i, loss in zip(own, each.view(here.shape).sum(1), strict=True):
                losses[i] = loss
        return torch.stack(losses)

    def _update(self, due: list[int]) -> None:
        everyone = len(due) == len(self._rows)
        gradients = self._summed(self._gradient if everyone else self._gradient[due])
        counts, sums = self._pending[:, due]
        norms = torch.linalg.vector_norm(gradients, dim=1).double().cpu() / counts
        for head, gradient, count, norm in zip(
            due, gradients, counts.tolist(), norms.tolist(), strict=True
        ):
            row = self._rows[head]
            if not math.isfinite(norm):
                self.diverged[head] = True
                continue
            clip = self.recipe.clip_grad
            scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
            row.grad = gradient.mul_(scale / count)
            self._optimizer.param_groups[head]["lr"] = self._lr(head)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.losses[due] = sums / counts
        self.seen[due] += counts.long()
        self._pending[:, due] = 0
        self._gradient[due] = 0

    def _lr(self, head: int) -> float:
        """Learning rate of a head's next update."""
        seen, videos = int(self.seen[head]), int(self._videos[head])
        lr = self.stack.specs[head].lr
        lr *= (1 + math.cos(math.pi * min(1.0, seen / (self.recipe.epochs * videos)))) / 2
        if warmup := self.recipe.warmup_epochs * videos:
            start = min(1.0, int(self._need[head]) / warmup)
            lr *= start + (1 - start) * min(1.0, seen / warmup)
        return lr

    def _summed(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if not self._alone:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def state_dict(self) -> dict[str, Tensor]:
        """What `load_state_dict` needs to go on bit for bit; all processes call it, in step.

        The gradients since the last updates are summed onto the first process, here and there, so
        another number of processes may load it.
        """
        self._summed(self._gradient)
        state = {name: getattr(self, name).clone() for name in _COUNTERS}
        state["gradient"] = self._gradient.clone()
        self._keep_on_first()
        state["weights"] = torch.stack([row.detach() for row in self._rows])
        for head, own in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{head}.{name}": value.clone() for name, value in own.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of the same heads, recipe and videos; each process calls it."""
        for name in _COUNTERS:
            getattr(self, name).copy_(state[name])
        self._gradient.copy_(state["gradient"])
        self._keep_on_first()
        with torch.no_grad():
            for row, saved in zip(self._rows, state["weights"], strict=True):
                row.copy_(saved)
        optimizer = self._optimizer.state_dict()
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, head, key = name.split(".")
                optimizer["state"].setdefault(int(head), {})[key] = value
        self._optimizer.load_state_dict(optimizer)

    def _keep_on_first(self) -> None:
        if not self._alone and dist.get_rank(self._group):
            self._gradient.zero_()
