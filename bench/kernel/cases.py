"""The cases of bench/kernels.py: each op beside the usual ways to write it in PyTorch.

A case's first provider is the baseline, as public trainers write it; its last is ours. All take the
same tensors and return the same elements in the same order, as one tensor or several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernel.shapes import MODELS, Case, Model, Provider, draw_masks, flat_rows, nbytes
from vjepa_fast.kernels import (
    apply_masks,
    ema_update_,
    masked_feature_loss,
    patchify,
    predictor_tokens,
    rotate_queries_keys,
)
from vjepa_fast.kernels.patchify import IMAGENET_MEAN, IMAGENET_STD
from vjepa_fast.kernels.rope import axis_width

MOMENTUM = 0.998


def repeat_gather(x: Tensor, mask: Tensor) -> Tensor:
    return torch.gather(x, 1, mask.unsqueeze(-1).repeat(1, 1, x.shape[-1]))


def expand_gather(x: Tensor, mask: Tensor) -> Tensor:
    return torch.gather(x, 1, mask.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def index_gather(x: Tensor, mask: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device)[:, None], mask]


def select_gather(x: Tensor, mask: Tensor) -> Tensor:
    return x.flatten(0, 1).index_select(0, flat_rows([mask], x.shape[1])).view(*mask.shape, -1)


def gather(model: Model, clips: int, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Gathers the tokens of two masks from x: the encoder's input, the loss's targets."""

    def each_mask(form: Provider) -> Provider:
        return lambda x, *masks: [form(x, mask) for mask in masks]

    for name, lengths in (("context", model.context), ("targets", model.targets)):
        x = torch.randn(clips, model.tokens, model.width, device=device).to(dtype)
        masks = draw_masks(model.tokens, lengths, clips, device)
        taken = clips * sum(lengths) * model.width * x.element_size()
        yield Case(
            "gather",
            f"{model.name} {name}, {'+'.join(map(str, lengths))} of {model.tokens}",
            (x, *masks),
            (0,),
            {
                "repeat": each_mask(repeat_gather),
                "expand": each_mask(expand_gather),
                "indexing": each_mask(index_gather),
                "index_select": each_mask(select_gather),
                "ours": lambda x, *masks: apply_masks(x, masks, concat=False),
            },
            2 * taken + nbytes(*masks),
            taken + nbytes(x, *masks),
        )


def loss(model: Model, clips: int, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Mean of |z - layer_norm(h)| over each mask, then over masks. z is packed: rows [R, D]."""
    d, tokens = model.width, model.tokens
    masks = draw_masks(tokens, model.targets, clips, device)
    rows = flat_rows(masks, tokens)
    h = torch.randn(clips, tokens, d, device=device).to(dtype)
    z = torch.randn(len(rows), d, device=device).to(dtype)
    seqlens = torch.tensor(model.targets, device=device).repeat_interleave(clips)
    spec_ids = torch.arange(len(masks), device=device).repeat_interleave(clips)

    def mean_of(z: Tensor, parts: Sequence[Tensor]) -> Tensor:
        predictions = z.split([part.shape[0] * part.shape[1] for part in parts])
        pairs = zip(predictions, parts, strict=True)
        return sum((p.view_as(y) - y).abs().mean() for p, y in pairs) / len(parts)

    def normalize_all(z, h, rows, seqlens, spec_ids, *masks):
        y = F.layer_norm(h, (d,))
        return mean_of(z, [repeat_gather(y, mask) for mask in masks])

    def normalize_targets(z, h, rows, seqlens, spec_ids, *masks):
        return mean_of(z, [F.layer_norm(index_gather(h, mask), (d,)) for mask in masks])

    def ours(z, h, rows, seqlens, spec_ids, *masks):
        return masked_feature_loss(z, h.view(-1, d), rows, seqlens, spec_ids)

    size = nbytes(z)
    yield Case(
        "loss",
        f"{model.name}, {'+'.join(map(str, model.targets))} of {tokens}",
        (z, h, rows, seqlens, spec_ids, *masks),
        (0,),
        {"norm all, repeat": normalize_all, "index, norm": normalize_targets, "ours": ours},
        2 * size + len(rows) * d * h.element_size() + nbytes(rows),  # the gradient is written too
        2 * size,
    )


def patch_rows(
    model: Model, clips: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Case]:
    """uint8 video to normalized patch rows: kept ones (encoder), all (target encoder)."""
    t, h, w = model.grid
    shape = (clips, 2 * t, 16 * h, 16 * w, 3)
    video = torch.randint(256, shape, dtype=torch.uint8, device=device)
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=device)
    like = torch.empty(0, dtype=dtype, device=device)  # passes the result's dtype

    def split(pixels):
        tubes = pixels.view(clips, t, 2, h, 16, w, 16, 3).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return tubes.reshape(-1, 3, 2 * 16 * 16)

    def normalize_all(video, like, mean, std, rows=None):
        patches = split(((video.to(mean.dtype) / 255 - mean) / std).to(like.dtype)).flatten(1)
        return patches if rows is None else patches[rows]

    def normalize_kept(video, like, mean, std, rows=None):
        kept = split(video) if rows is None else split(video)[rows]
        pixels = (kept.to(mean.dtype) / 255 - mean[:, None]) / std[:, None]
        return pixels.to(like.dtype).flatten(1)

    def ours(video, like, mean, std, rows=None):
        return patchify(video, rows, mean=IMAGENET_MEAN, std=IMAGENET_STD, dtype=like.dtype)

    forms = {"norm all, index": normalize_all, "index, norm": normalize_kept, "ours": ours}
    rows = flat_rows(draw_masks(model.tokens, model.context, clips, device), model.tokens)
    planes = video.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)  # [B, 3, T, H, W]
    given = {"context": (video, rows), "context, planar": (planes, rows), "all": (video,)}
    for name, (pixels, *kept) in given.items():
        patches = len(rows) if kept else clips * model.tokens
        title = f"{name}, {patches // clips} of {model.tokens} per clip"
        size = patches * 3 * 2 * 16 * 16 * (1 + like.element_size()) + nbytes(*kept)
        yield Case("patchify", title, (pixels, like, mean, std, *kept), (), forms, size)


def predictor(model: Model, clips: int, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Concatenates context + position and mask token + position, for each of two masks."""
    p, specs = model.predictor_width, len(model.context)
    lengths = [c + t for c, t in zip(model.context, model.targets, strict=True)]
    tokens = draw_masks(model.tokens, lengths, clips, device)  # context, then targets
    rows = [clips * c for c in model.context]
    context = torch.randn(sum(rows), p, device=device).to(dtype)
    pos = torch.randn(model.tokens, p, device=device)
    mask_tokens = torch.randn(specs, p, device=device).to(dtype)
    source = []
    for m, own in enumerate(torch.arange(sum(rows), device=device).split(rows)):
        hidden = torch.full((clips, model.targets[m]), sum(rows) + m, device=device)
        source.append(torch.cat([own.view(clips, -1), hidden], 1).flatten())
    source, position = torch.cat(source), torch.cat([part.flatten() for part in tokens])

    def repeat(context, pos, mask_tokens, source, position, *tokens):
        table, result = pos.repeat(clips, 1, 1), []
        for z, mask_token, part in zip(context.split(rows), mask_tokens, tokens, strict=True):
            z = z.view(clips, -1, p)
            seen, masked = part[:, : z.shape[1]], part[:, z.shape[1] :]
            z = z + repeat_gather(table, seen)
            hidden = mask_token.repeat(*masked.shape, 1) + repeat_gather(table, masked)
            result.append(torch.cat([z, hidden], 1).to(context.dtype))
        return result

    def expand(context, pos, mask_tokens, source, position, *tokens):
        result = []
        for z, mask_token, part in zip(context.split(rows), mask_tokens, tokens, strict=True):
            z = z.view(clips, -1, p)
            hidden = mask_token.expand(clips, part.shape[1] - z.shape[1], -1)
            result.append((torch.cat([z, hidden], 1) + pos[part]).to(context.dtype))
        return result

    def ours(context, pos, mask_tokens, source, position, *tokens):
        return predictor_tokens(context, pos, mask_tokens, source, position)

    written = len(source) * p * context.element_size()
    counts = zip(model.context, model.targets, strict=True)
    yield Case(
        "predictor_tokens",
        " and ".join(f"{c}+{t}" for c, t in counts),
        (context, pos, mask_tokens, source, position, *tokens),
        (0, 2),
        {"add, repeat, cat": repeat, "cat, add index": expand, "ours": ours},
        nbytes(context, pos, mask_tokens, source, position) + written,
        nbytes(context, mask_tokens, source) + written,
    )


def rope(model: Model, clips: int, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Rotates queries and keys of the packed context tokens of two masks; tiled angles."""
    (_, height, width), heads = model.grid, model.heads
    tokens = torch.cat(
        [m.flatten() for m in draw_masks(model.tokens, model.context, clips, device)]
    )
    qkv = torch.randn(len(tokens), 3, heads, model.width // heads, device=device).to(dtype)
    a = axis_width(qkv.shape[-1])

    def angles(tokens: Tensor, like: Tensor) -> list[Tensor]:
        """Of each axis [rows, a], at least in fp32."""
        wide = torch.promote_types(like.dtype, torch.float32)
        places = tokens // (height * width), tokens // width % height, tokens % width
        frequency = 10_000 ** -(torch.arange(a // 2, device=device, dtype=wide) / (a / 2))
        return [(place[:, None] * frequency).repeat(1, 2) for place in places]

    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        swapped = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * cos[:, None] + swapped * sin[:, None]

    def each_axis(qkv, tokens, cos, sin):
        q, k, v = qkv.unbind(1)
        turned = []
        for x in (q, k):
            parts = [
                turn(part, angle.cos().to(x.dtype), angle.sin().to(x.dtype))
                for part, angle in zip(x.split(a, -1), angles(tokens, x), strict=False)
            ]
            turned.append(torch.cat([*parts, x[..., 3 * a :]], -1))
        return [*turned, v]

    def tables(qkv, tokens, cos, sin):
        q, k, v = qkv.unbind(1)
        turned = [turn(x[..., : 3 * a], cos, sin) for x in (q, k)]
        return [
            *(torch.cat([t, x[..., 3 * a :]], -1) for t, x in zip(turned, (q, k), strict=True)),
            v,
        ]

    def ours(qkv, tokens, cos, sin):
        return rotate_queries_keys(qkv, tokens, model.grid).unbind(1)

    angle = torch.cat(angles(tokens, qkv), -1)
    size = nbytes(qkv)
    yield Case(
        "rope",
        f"{model.name}, {'+'.join(map(str, model.context))} of {model.tokens}",
        (qkv, tokens, angle.cos().to(dtype), angle.sin().to(dtype)),
        (0,),
        {"axis by axis": each_axis, "tables of rows": tables, "ours": ours},
        2 * (2 * size // 3) + nbytes(tokens),  # values stay where they are
        2 * size + nbytes(tokens),  # the gradients of all three are packed
    )


def ema(model: Model, clips: int, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Updates fp32 EMA weights from fp32 weights, and their bf16 copy for the forward pass."""
    d, blocks = model.width, model.blocks if device.type == "cuda" else 1
    matrices = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)]
    block = [(d,), (d,), *matrices, *((m[0],) for m in matrices), (d,), (d,)]
    shapes = [(d, 3, 2, 16, 16), (d,), *block * blocks, (d,), (d,)]
    teacher, student = ([torch.randn(s, device=device) for s in shapes] for _ in range(2))
    copies = [torch.empty_like(t, dtype=torch.bfloat16) for t in teacher]

    def provider(update: Callable[[list[Tensor], list[Tensor], list[Tensor]], None]) -> Provider:
        def run(*tensors: Tensor) -> list[Tensor]:
            parts = [list(tensors[i::3]) for i in range(3)]
            update(*parts)
            return parts[0] + parts[2]

        return run

    def loop(teacher, student, copies):
        for t, s, c in zip(teacher, student, copies, strict=True):
            t.mul_(MOMENTUM).add_((1 - MOMENTUM) * s)
            c.copy_(t)

    def foreach(teacher, student, copies):
        torch._foreach_mul_(teacher, MOMENTUM)
        torch._foreach_add_(teacher, student, alpha=1 - MOMENTUM)
        torch._foreach_copy_(copies, teacher)

    def foreach_lerp(teacher, student, copies):
        torch._foreach_lerp_(teacher, student, 1 - MOMENTUM)
        torch._foreach_copy_(copies, teacher)

    def ours(teacher, student, copies):
        ema_update_(teacher, student, MOMENTUM, copies)

    size = nbytes(*teacher)
    yield Case(
        "ema",
        f"{model.name}, {blocks} of {model.blocks} blocks, {size / 4e6:.1f} M parameters",
        tuple(t for three in zip(teacher, student, copies, strict=True) for t in three),
        (),
        {
            "loop": provider(loop),
            "_foreach mul, add": provider(foreach),
            "_foreach lerp": provider(foreach_lerp),
            "ours": provider(ours),
        },
        3 * size + nbytes(*copies),
    )


OPS = {
    "gather": gather,
    "loss": loss,
    "patchify": patch_rows,
    "predictor_tokens": predictor,
    "rope": rope,
    "ema": ema,
}
ONE_SIZE = {"patchify", "predictor_tokens"}  # that are the same for every model of the paper


def cases(
    clips: int, device: torch.device, dtype: torch.dtype, only: Sequence[str] = ()
) -> Iterator[Case]:
    """Make the cases one by one, so that only one is in memory."""
    for name, make in OPS.items():
        if not only or name in only:
            for model in MODELS[:1] if name in ONE_SIZE else MODELS:
                yield from make(model, clips, device, dtype)
