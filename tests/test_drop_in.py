"""A JEPA in plain PyTorch, written here, and the same with its calls swapped for ours, one by
one, as docs/drop_in.md tells: the losses of 20 steps agree."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vjepa_fast.kernels import (
    apply_masks,
    ema_update_,
    masked_feature_loss,
    patchify,
    predictor_tokens,
)

CLIPS, GRID, PATCH, WIDTH, NARROW, STEPS = 3, (2, 4, 4), 8, 24, 16, 20
TOKENS = GRID[0] * GRID[1] * GRID[2]
CONTEXT, TARGETS = (9, 5), (14, 20)  # tokens a clip, of two mask specs
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOMENTUM = 0.9


def vit(width):
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True, norm_first=True)
    return nn.Sequential(layer, nn.LayerNorm(width))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv3d(3, WIDTH, (2, PATCH, PATCH), (2, PATCH, PATCH))
        self.register_buffer("pos", torch.randn(TOKENS, WIDTH))
        self.blocks = vit(WIDTH)


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(WIDTH, NARROW)
        self.register_buffer("pos", torch.randn(TOKENS, NARROW))
        self.mask_tokens = nn.Parameter(torch.zeros(len(CONTEXT), NARROW))
        self.blocks = vit(NARROW)
        self.proj = nn.Linear(NARROW, WIDTH)


# --- what such code bases do -------------------------------------------------------------------


def plain_gather(x, masks):
    return [torch.gather(x, 1, m.unsqueeze(-1).expand(-1, -1, x.shape[-1])) for m in masks]


def plain_embed(encoder, video, masks, gather):
    pixels = (video.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    x = encoder.proj(pixels.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2) + encoder.pos
    return [x] if masks is None else gather(x, masks)


def plain_tokens(predictor, x, context, targets):
    tokens = []
    for z, token, seen, hidden in zip(x, predictor.mask_tokens, context, targets, strict=True):
        table = predictor.pos.expand(CLIPS, -1, -1)
        (seen,), (hidden,) = plain_gather(table, [seen]), plain_gather(table, [hidden])
        tokens.append(torch.cat([predictor.embed(z) + seen, token + hidden], 1))
    return tokens


def plain_loss(z, h, targets):
    y = plain_gather(F.layer_norm(h, h.shape[-1:]), targets)
    return sum((a - b).abs().mean() for a, b in zip(z, y, strict=True)) / len(z)


def plain_ema(teacher, student):
    with torch.no_grad():
        for t, s in zip(teacher, student, strict=True):
            t.mul_(MOMENTUM).add_(s, alpha=1 - MOMENTUM)


# --- the same with ours ------------------------------------------------------------------------


def our_gather(x, masks):
    return apply_masks(x, masks, concat=False)


def rows_of(masks):
    return torch.cat([(TOKENS * torch.arange(CLIPS)[:, None] + m).flatten() for m in masks])


def our_embed(encoder, video, masks, gather):
    rows = None if masks is None else rows_of(masks)
    patches = patchify(video, rows, patch_size=PATCH, mean=MEAN, std=STD)
    x = F.linear(patches, encoder.proj.weight.flatten(1), encoder.proj.bias)
    if masks is None:
        return [x.view(CLIPS, TOKENS, -1) + encoder.pos]
    parts = x.split([m.numel() for m in masks])
    return [p.view(*m.shape, -1) + encoder.pos[m] for p, m in zip(parts, masks, strict=True)]


def our_tokens(predictor, x, context, targets):
    flat = torch.cat([part.flatten(0, 1) for part in x])
    source, position, first = [], [], 0
    for m, (seen, hidden) in enumerate(zip(context, targets, strict=True)):
        own = first + torch.arange(seen.numel()).view_as(seen)
        source.append(torch.cat([own, torch.full_like(hidden, len(flat) + m)], 1))
        position.append(torch.cat([seen, hidden], 1))
        first += seen.numel()
    rows = predictor_tokens(
        predictor.embed(flat),
        predictor.pos,
        predictor.mask_tokens,
        torch.cat([s.flatten() for s in source]),
        torch.cat([p.flatten() for p in position]),
    )
    parts = rows.split([s.numel() for s in source])
    return [part.view(*s.shape, -1) for part, s in zip(parts, source, strict=True)]


def our_loss(z, h, targets):
    return masked_feature_loss(
        torch.cat([part.flatten(0, 1) for part in z]),
        h.flatten(0, 1),
        rows_of(targets),
        torch.tensor([m.shape[1] for m in targets]).repeat_interleave(CLIPS),
        torch.arange(len(targets)).repeat_interleave(CLIPS),
    )


def our_ema(teacher, student):
    ema_update_(teacher, student, MOMENTUM)


@dataclass(frozen=True)
class Calls:
    """What one swaps."""

    gather: Callable = plain_gather
    embed: Callable = plain_embed
    tokens: Callable = plain_tokens
    loss: Callable = plain_loss
    ema: Callable = plain_ema


PLAIN = Calls()
OURS = {
    "gather": our_gather,
    "embed": our_embed,
    "tokens": our_tokens,
    "loss": our_loss,
    "ema": our_ema,
}


def train(calls):
    """The loss of each step and, at the end, the teacher's parameters."""
    torch.manual_seed(0)
    encoder, predictor = Encoder(), Predictor()
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=2e-3)
    losses = []
    for _ in range(STEPS):
        video = torch.randint(256, (CLIPS, 4, 32, 32, 3), dtype=torch.uint8)
        drawn = [torch.rand(CLIPS, TOKENS).argsort(1) for _ in CONTEXT]
        context = [d[:, :n].sort(1).values for d, n in zip(drawn, CONTEXT, strict=True)]
        targets = [d[:, -n:].sort(1).values for d, n in zip(drawn, TARGETS, strict=True)]
        with torch.no_grad():
            (h,) = (teacher.blocks(x) for x in calls.embed(teacher, video, None, calls.gather))
        x = [encoder.blocks(x) for x in calls.embed(encoder, video, context, calls.gather)]
        z = [predictor.blocks(t) for t in calls.tokens(predictor, x, context, targets)]
        z = [predictor.proj(t[:, n:]) for t, n in zip(z, CONTEXT, strict=True)]
        loss = calls.loss(z, h, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        calls.ema(list(teacher.parameters()), list(encoder.parameters()))
        losses.append(loss.detach())
    return torch.stack(losses), nn.utils.parameters_to_vector(teacher.parameters())


@pytest.fixture(scope="module")
def plain():
    return train(PLAIN)


def far(run, plain):
    """Largest difference in a loss and in a teacher's parameter."""
    return [(a - b).abs().max().item() for a, b in zip(run, plain, strict=True)]


def test_the_plain_model_learns(plain):
    losses, _ = plain
    assert losses[-5:].mean() < 0.85 * losses[:5].mean()


@pytest.mark.parametrize("name", [*OURS, "all"])
def test_each_call_swapped_gives_the_same_losses(name, plain):
    calls = Calls(**OURS) if name == "all" else replace(PLAIN, **{name: OURS[name]})
    loss, parameter = far(train(calls), plain)
    assert loss <= 2e-6  # 16 ulp of a loss of 1
    assert parameter <= 1e-4  # AdamW takes steps of lr = 2e-3 even where gradients are noise


def next_tokens(x, masks):
    return our_gather(x, [(m + 1) % TOKENS for m in masks])


def blue_first(encoder, video, masks, gather):
    return our_embed(encoder, video.flip(-1), masks, gather)


def next_positions(predictor, x, context, targets):
    return our_tokens(predictor, x, context, [(t + 1) % TOKENS for t in targets])


def one_mean_of_all_targets(z, h, targets):
    return sum(our_loss([a], h, [m]) * m.numel() for a, m in zip(z, targets, strict=True)) / sum(
        m.numel() for m in targets
    )


def other_momentum(teacher, student):
    ema_update_(teacher, student, MOMENTUM - 1e-3)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gather", next_tokens),
        ("embed", blue_first),
        ("tokens", next_positions),
        ("loss", one_mean_of_all_targets),
        ("ema", other_momentum),
    ],
)
def test_a_wrong_swap_shows(name, wrong, plain):
    """The test above can fail: these are ten times further off than it allows, or more."""
    loss, _ = far(train(replace(PLAIN, **{name: wrong})), plain)
    assert loss > 2e-5
