"""One head trained alone by an ordinary loop: what heads that are trained together must equal."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa_fast.evaluation.heads.spec import HeadSpec, ProbeForm, ProbeRecipe, make_head


def train_plainly(
    form: ProbeForm,
    spec: HeadSpec,
    recipe: ProbeRecipe,
    batches: list[tuple[Tensor, Tensor]],
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """An update on each batch of (tokens [B, N, D], targets [B]); the first seed's weights."""
    head = make_head(form, spec.outputs, recipe.seed + spec.draw).to(dtype)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, fused=True
    )
    rise = max(1, round(recipe.warmup_epochs * len(batches) / recipe.epochs))
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / rise, total_iters=rise)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for tokens, targets in batches:
        outputs = head(tokens.to(dtype))
        if spec.outputs == 1:
            loss = (outputs[:, 0] - targets.to(dtype)).square().mean()
        else:
            loss = F.cross_entropy(outputs, targets)
        loss.backward()
        if recipe.clip_grad is not None:
            nn.utils.clip_grad_norm_(head.parameters(), recipe.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
        decay.step()
    return head
