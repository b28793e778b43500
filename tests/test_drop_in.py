"""A JEPA in plain PyTorch, and the same with its calls replaced by ours, one by one, as in
docs/drop_in.md: the losses of 20 steps agree."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.rounding.accuracy import assert_accurate
from tests.rounding.rotary import matrices
from tests.rounding.rotary import plain as plain_rotation
from vjepa_fast.kernels import PatchEmbed, ema_update_

PAGE = Path(__file__).resolve().parent.parent / "docs" / "drop_in.md"
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


def plain_patches(encoder, video):
    mean, std = (torch.tensor(t, dtype=encoder.pos.dtype) for t in (MEAN, STD))
    pixels = (video.to(encoder.pos.dtype) / 255 - mean) / std
    return encoder.proj(pixels.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2)


def plain_embed(encoder, video, masks, gather):
    x = plain_patches(encoder, video) + encoder.pos
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


def plain_ema(teacher, student, momentum):
    with torch.no_grad():
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            t.mul_(momentum).add_(s, alpha=1 - momentum)


# --- the same with ours: what the page says -----------------------------------------------------

OURS = {}  # names of the page's Python
for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
    exec(compile(block, str(PAGE), "exec"), OURS)


def our_gather(x, masks):
    return OURS["apply_masks"](x, masks, concat=False)


def our_gather_concatenated(x, masks):
    """As the call is by default: masks of one length, along the batch."""
    pairs = [OURS["apply_masks"](x, [mask, mask.flip(1)]).chunk(2) for mask in masks]
    return [(forth + back.flip(1)) / 2 for forth, back in pairs]


def our_gather_of_one(x, masks):
    return [OURS["gather"](x, mask) for mask in masks]


def our_embed(encoder, video, masks, gather):
    patch_embed = OURS["PatchEmbed"](WIDTH, PATCH)
    patch_embed.proj = encoder.proj  # trained where it is
    if masks is None:
        return [patch_embed(video) + encoder.pos]
    kept = OURS["embed_kept"](patch_embed, video, masks, TOKENS)
    return [x + encoder.pos[mask] for x, mask in zip(kept, masks, strict=True)]


def our_tokens(predictor, x, context, targets):
    projected = [predictor.embed(z) for z in x]
    pos, mask_tokens = OURS["published_tables"](
        predictor.pos[None], [token.view(1, 1, -1) for token in predictor.mask_tokens]
    )
    return OURS["predictor_input"](projected, pos, mask_tokens, context, targets)


def embed_in_place(encoder, video, masks, gather):
    """One mask a call, and what comes back is added to: published code does both."""
    if masks is None:
        return plain_embed(encoder, video, None, gather)
    x, table, tokens = plain_patches(encoder, video), encoder.pos.expand(CLIPS, -1, -1), []
    for mask in masks:
        kept = OURS["apply_masks"](x, [mask])
        kept += OURS["apply_masks"](table, [mask])
        tokens.append(kept)
    return tokens


def tokens_in_place(predictor, x, context, targets):
    table, tokens = predictor.pos.expand(CLIPS, -1, -1), []
    for z, token, seen, hidden in zip(x, predictor.mask_tokens, context, targets, strict=True):
        z = predictor.embed(z)
        z += OURS["apply_masks"](table, [seen])
        queries = OURS["apply_masks"](table, [hidden])
        queries += token
        tokens.append(torch.cat([z, queries], 1))
    return tokens


@dataclass(frozen=True)
class Calls:
    """What one swaps."""

    gather: Callable = plain_gather
    embed: Callable = plain_embed
    tokens: Callable = plain_tokens
    loss: Callable = plain_loss
    ema: Callable = plain_ema


PLAIN = Calls()
SWAPS = {
    "apply_masks": {"gather": our_gather},
    "apply_masks, concatenated": {"gather": our_gather_concatenated},
    "apply_masks, in place": {"embed": embed_in_place, "tokens": tokens_in_place},
    "gather_tokens": {"gather": our_gather_of_one},
    "PatchEmbed": {"embed": our_embed},
    "predictor_tokens": {"tokens": our_tokens},
    "masked_feature_loss": {"loss": OURS["feature_loss"]},
    "ema_update_": {"ema": OURS["update_target"]},
}
SWAPS["all"] = {call: ours for swap in SWAPS.values() for call, ours in swap.items()}


def train(calls, dtype=torch.float32):
    """The loss of each step and, at the end, the teacher's parameters."""
    torch.manual_seed(0)
    encoder, predictor = Encoder().to(dtype), Predictor().to(dtype)
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=2e-3)
    losses, random = [], torch.Generator().manual_seed(0)  # its own: PatchEmbed draws weights too
    for _ in range(STEPS):
        video = torch.randint(256, (CLIPS, 4, 32, 32, 3), dtype=torch.uint8, generator=random)
        drawn = [torch.rand(CLIPS, TOKENS, generator=random).argsort(1) for _ in CONTEXT]
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
        calls.ema(teacher, encoder, MOMENTUM)
        losses.append(loss.detach())
    return torch.stack(losses), nn.utils.parameters_to_vector(teacher.parameters())


@pytest.fixture(scope="module")
def plain():
    return train(PLAIN)


@pytest.fixture(scope="module")
def exact():
    return train(PLAIN, torch.float64)


def far(run, exact):
    """Largest error of a loss and of a teacher's parameter."""
    return [(a - b).abs().max().item() for a, b in zip(run, exact, strict=True)]


def allowed(plain, exact):
    """Twice the plain model's own errors, and 16 ulp of a loss of 1; of a parameter 1/20 of a step
    of AdamW, which goes its full length even where a gradient is only noise."""
    return [2 * error + least for error, least in zip(far(plain, exact), (2e-6, 1e-4), strict=True)]


def test_the_plain_model_learns(plain):
    losses, _ = plain
    assert losses[-5:].mean() < 0.85 * losses[:5].mean()


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_each_call_swapped_gives_the_same_losses(swap, plain, exact):
    found, limits = far(train(replace(PLAIN, **swap)), exact), allowed(plain, exact)
    assert all(f <= limit for f, limit in zip(found, limits, strict=True)), (found, limits)


def next_tokens(x, masks):
    return our_gather(x, [(m + 1) % TOKENS for m in masks])


def blue_first(encoder, video, masks, gather):
    return our_embed(encoder, video.flip(-1), masks, gather)


def next_positions(predictor, x, context, targets):
    return our_tokens(predictor, x, context, [(t + 1) % TOKENS for t in targets])


def one_mean_of_all_targets(z, h, targets):
    lengths = [mask.numel() for mask in targets]
    means = [OURS["feature_loss"]([a], h, [m]) for a, m in zip(z, targets, strict=True)]
    return sum(mean * n for mean, n in zip(means, lengths, strict=True)) / sum(lengths)


def other_momentum(teacher, student, momentum):
    ema_update_([*teacher.parameters()], [*student.parameters()], momentum - 1e-3)


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
def test_a_wrong_swap_shows(name, wrong, plain, exact):
    """The test above can fail: these are ten times further off than it allows, or more."""
    loss, _ = far(train(replace(PLAIN, **{name: wrong})), exact)
    assert loss > 10 * allowed(plain, exact)[0]


def test_images_take_a_conv2d_weight():
    """What the page says of image models."""
    images = torch.randint(256, (2, 32, 48, 3), dtype=torch.uint8)
    conv = nn.Conv2d(3, 10, 16, 16)

    def plain(conv):
        mean, std = (torch.tensor(t, dtype=conv.weight.dtype) for t in (MEAN, STD))
        pixels = (images.to(mean.dtype) / 255 - mean) / std
        return conv(pixels.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)

    patch_embed = PatchEmbed(10, tubelet_size=1)
    weights = {"proj.weight": conv.weight.unsqueeze(2), "proj.bias": conv.bias}
    patch_embed.load_state_dict(weights)
    found = patch_embed(images[:, None])
    assert_accurate(found, plain(conv), plain(copy.deepcopy(conv).double()))


def test_a_published_patch_embedding_loads_unchanged():
    encoder, patch_embed = Encoder(), PatchEmbed(WIDTH, PATCH)
    patch_embed.load_state_dict({f"proj.{k}": v for k, v in encoder.proj.state_dict().items()})
    video = torch.randint(256, (CLIPS, 3, 4, 32, 32), dtype=torch.uint8)  # planar, as published
    last = video.permute(0, 2, 3, 4, 1)
    exact = plain_patches(copy.deepcopy(encoder).double(), last)
    assert_accurate(patch_embed(video), plain_patches(encoder, last), exact)


@pytest.mark.parametrize("kept", [7, None], ids=["kept tokens", "all"])
def test_rotary_positions_as_in_the_published_attention(kept):
    heads, grid, clips = 2, (2, 3, 5), 3
    random = torch.Generator().manual_seed(0)
    order = torch.rand(clips, 30, generator=random).argsort(1)
    mask = order[:, :kept] if kept else torch.arange(30).expand(clips, -1)
    qkv = torch.randn(clips, mask.shape[1], 3 * heads * 16, generator=random)
    found = OURS["rotated"](qkv, heads, grid, mask if kept else None)
    for clip, tokens in enumerate(mask):
        packed = qkv[clip].view(-1, 3, heads, 16)
        expected = plain_rotation(packed, tokens, grid, "tiled").unbind(1)
        maps, (q, k, v) = matrices(tokens, grid, 16, "tiled"), packed.double().unbind(1)
        turned = [torch.einsum("rij,rhj->rhi", maps, x) for x in (q, k)]
        for ours, torchs, exact in zip(found, expected, (*turned, v), strict=True):
            assert_accurate(ours[clip].transpose(0, 1), torchs, exact)
