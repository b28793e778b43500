"""Rotary positions: queries and keys turned by their places in time, height and width."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._dispatch import (
    LAUNCH,
    require,
    require_floating,
    require_index,
    require_same_device,
    require_tensor,
    use_triton,
)

Form = Literal["tiled", "rotation"]
BASE = 10_000.0


def axis_width(head_dim: int) -> int:
    """Channels of a head that each axis rotates: 2 · ⌊⌊head_dim / 3⌋ / 2⌋, e.g. 20 of 64."""
    return 2 * (head_dim // 3 // 2)


def wide_dtype(x: Tensor) -> torch.dtype:
    """Of angles and arithmetic."""
    return torch.promote_types(x.dtype, torch.float32)


def cos_sin(places: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """cos and sin of place · 10000^(-2i / width), i < width / 2: [2, places, width / 2]."""
    i = torch.arange(width // 2, device=device, dtype=dtype)
    angle = torch.arange(places, device=device, dtype=dtype)[:, None] / BASE ** (2 * i / width)
    return torch.stack([angle.cos(), angle.sin()])


def rotate_queries_keys_reference_(
    qkv: Tensor,
    tokens: Tensor,
    grid: tuple[int, int, int],
    form: Form = "tiled",
    transposed: bool = False,
) -> Tensor:
    """The specification of `rotate_queries_keys_`, in plain PyTorch.

    With `transposed` the transpose of the map, which its backward applies to gradients.
    """
    _, height, width = grid
    a = axis_width(qkv.shape[-1])
    places = [tokens // (height * width), tokens // width % height, tokens % width]
    place = torch.stack(places, 1).flatten()
    cos, sin = cos_sin(max(grid), a, qkv.device, wide_dtype(qkv)).unbind(0)
    part = qkv[:, :2, :, : 3 * a]
    wide = part.to(cos.dtype)
    if form == "rotation":
        _turn_(wide, torch.complex(cos, -sin if transposed else sin)[place])
    else:
        _turn_tiled_(wide, *(table[place] for table in _tiled(cos, sin, transposed)))
    part.copy_(wide)
    return qkv


def _turn_(x: Tensor, factors: Tensor) -> None:
    """Pairs of channels of x [rows, 2, heads, 3a] times complex [rows · 3, a / 2], in place."""
    whole = x  # a view as complex numbers has to begin at even places
    if x.storage_offset() % 2 or any(stride % 2 for stride in x.stride()[:-1]):
        whole = x.clone(memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(whole.unflatten(-1, (-1, 2)))
    pairs.mul_(factors.view(len(x), 1, 1, pairs.shape[-1]))
    x.copy_(whole)


def _tiled(cos: Tensor, sin: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    """Tables [places, a] of the angles 0 1 2 0 1 2: factors of a channel and of its partner."""
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    if transposed:
        sin = -sin.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return cos, torch.stack([-sin[:, ::2], sin[:, 1::2]], -1).flatten(-2)


def _turn_tiled_(x: Tensor, own: Tensor, partner: Tensor) -> None:
    """Each channel of x [rows, 2, heads, 3a] becomes it times `own` plus the other channel of its
    pair times `partner`, [rows · 3, a], in place."""
    own, partner = (table.view(len(x), 1, 1, x.shape[-1]) for table in (own, partner))
    swapped = torch.stack([x[..., 1::2], x[..., ::2]], -1).flatten(-2)  # flip is slower
    x.mul_(own).add_(swapped.mul_(partner))


def rotate_queries_keys_reference(
    qkv: Tensor,
    tokens: Tensor,
    grid: tuple[int, int, int],
    form: Form = "tiled",
    transposed: bool = False,
) -> Tensor:
    """The specification of `rotate_queries_keys`, in plain PyTorch."""
    out = qkv.clone(memory_format=torch.contiguous_format)
    return rotate_queries_keys_reference_(out, tokens, grid, form, transposed)


@triton.jit
def rotate(b_x, b_cos0, b_cos1, b_sin0, b_sin1, m_rotated):
    """The 2 × 2 map of every pair of channels of a tile [rows, heads, channels]."""
    b_wide = b_x.to(b_cos0.dtype)
    b_pairs = tl.reshape(b_wide, [b_x.shape[0], b_x.shape[1], b_x.shape[2] // 2, 2])
    b_0, b_1 = tl.split(b_pairs)
    b_new0 = tl.where(m_rotated, b_0 * b_cos0 - b_1 * b_sin0, b_0)
    b_new1 = tl.where(m_rotated, b_1 * b_cos1 + b_0 * b_sin1, b_1)
    return tl.reshape(tl.join(b_new0, b_new1), b_x.shape).to(b_x.dtype)


@triton.jit(do_not_specialize=["rows", "size", "height", "width"])
def rope_kernel(
    p_qkv,
    p_tokens,
    p_cos,
    p_sin,
    p_out,
    rows,
    size,
    height,
    width,
    A: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    TILED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    IN_PLACE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some rows and heads; NaN where a token is outside the grid of `size` tokens.

    IN_PLACE (p_out is p_qkv): values are not touched. All of a pair is loaded before it is stored,
    by the same program.
    """
    blocks: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    half: tl.constexpr = A // 2
    o_row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    o_head = tl.program_id(0) % blocks * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    o_d = tl.arange(0, BLOCK_D)
    m_row = o_row < rows
    m = m_row[:, None, None] & (o_head < HEADS)[None, :, None] & (o_d < D)[None, None, :]
    o = o_row.to(tl.int64)[:, None, None] * (3 * HEADS * D)
    o += o_head[None, :, None] * D + o_d[None, None, :]
    b_q = tl.load(p_qkv + o, m)
    b_k = tl.load(p_qkv + (o + HEADS * D), m)
    if not IN_PLACE:
        b_v = tl.load(p_qkv + (o + 2 * HEADS * D), m)

    token = tl.load(p_tokens + o_row, m_row, other=-1).to(tl.int64)
    m_token = ((token >= 0) & (token < size))[:, None]
    token = token.to(tl.int32)[:, None]
    o_pair = 2 * tl.arange(0, BLOCK_D // 2)[None, :]  # the first channel of each pair
    axis = o_pair // A
    line = token // width
    place = tl.where(axis == 0, line // height, tl.where(axis == 1, line % height, token % width))
    o_first = place * half + (o_pair % A % half if TILED else o_pair % A // 2)
    o_second = place * half + ((o_pair % A + 1) % half if TILED else o_pair % A // 2)
    m_rotated = o_pair < 3 * A
    m_load = m_token & m_rotated
    b_cos0 = tl.load(p_cos + o_first, m_load, other=float("nan"))[:, None, :]
    b_cos1 = tl.load(p_cos + o_second, m_load, other=float("nan"))[:, None, :]
    b_sin0 = tl.load(p_sin + o_first, m_load, other=float("nan"))[:, None, :]
    b_sin1 = tl.load(p_sin + o_second, m_load, other=float("nan"))[:, None, :]
    if TRANSPOSED:
        b_sin0, b_sin1 = -b_sin1, -b_sin0
    m_rotated = m_rotated[:, None, :]

    if not IN_PLACE:
        tl.store(p_out + (o + 2 * HEADS * D), b_v, m)
    b_q = rotate(b_q, b_cos0, b_cos1, b_sin0, b_sin1, m_rotated)
    tl.store(p_out + o, b_q, m)
    b_k = rotate(b_k, b_cos0, b_cos1, b_sin0, b_sin1, m_rotated)
    tl.store(p_out + (o + HEADS * D), b_k, m)


cached_cos_sin = lru_cache(cos_sin)  # constants, of at most a few kilobytes


def launch_rope(
    qkv: Tensor,
    tokens: Tensor,
    grid: tuple[int, int, int],
    form: Form,
    transposed: bool = False,
    in_place: bool = False,
) -> Tensor:
    """One launch, see `rotate_queries_keys_reference`; in place, qkv is contiguous."""
    rows, _, heads, head_dim = qkv.shape
    a = axis_width(head_dim)
    out = qkv if in_place else torch.empty_like(qkv, memory_format=torch.contiguous_format)
    if a == 0 or out.numel() == 0:
        return out.copy_(qkv)
    table = cached_cos_sin(max(grid), a, qkv.device, wide_dtype(qkv))
    block = triton.next_power_of_2(head_dim)
    block_heads = min(triton.next_power_of_2(heads), max(1, 1024 // block))
    tile = {"ROWS": max(1, 1024 // (block * block_heads)), "BLOCK_HEADS": block_heads}
    blocks = triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(heads, block_heads)
    with torch.cuda.device_of(qkv):
        rope_kernel[(blocks,)](
            qkv.contiguous(),
            tokens.contiguous(),
            *table.unbind(0),
            out,
            rows,
            grid[0] * grid[1] * grid[2],
            *grid[1:],
            A=a,
            HEADS=heads,
            D=head_dim,
            TILED=form == "tiled",
            TRANSPOSED=transposed,
            IN_PLACE=in_place,
            BLOCK_D=block,
            **tile,
            **LAUNCH,
        )
    return out


def _check(qkv: Tensor, tokens: Tensor, grid: list[int]) -> None:
    """Of the op's body: traced by torch.compile, a message with a size would fix that size."""
    require(
        qkv.ndim == 4 and qkv.shape[1] == 3,
        f"qkv: found shape {tuple(qkv.shape)}, expected [rows, 3, heads, head_dim]",
    )
    require(
        tokens.ndim == 1 and tokens.shape[0] == qkv.shape[0],
        f"tokens: found shape {tuple(tokens.shape)}, expected [{qkv.shape[0]}], one for each row "
        "of qkv",
    )
    require(
        len(grid) == 3 and min(grid) > 0,
        f"grid: found {tuple(grid)}, expected (T', H', W'), each 1 or more; pass the tokens' grid",
    )
    require_floating("qkv", qkv)
    require_same_device("tokens", tokens, "qkv", qkv)


@torch.library.custom_op(
    "vjepa_fast::rotate_queries_keys",
    mutates_args=(),
    schema="(Tensor qkv, Tensor tokens, SymInt[] grid, str form, bool transposed) -> Tensor",
)
def rotate_queries_keys_op(
    qkv: Tensor, tokens: Tensor, grid: list[int], form: Form, transposed: bool
) -> Tensor:
    """See `rotate_queries_keys_reference`."""
    _check(qkv, tokens, grid)
    require_index("tokens", tokens, grid[0] * grid[1] * grid[2])
    if use_triton("rotate_queries_keys", qkv):
        return launch_rope(qkv, tokens, tuple(grid), form, transposed)
    return rotate_queries_keys_reference(qkv, tokens, tuple(grid), form, transposed)


@rotate_queries_keys_op.register_fake
def _(qkv, tokens, grid, form, transposed):
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output) -> None:
    _, tokens, ctx.grid, ctx.form, ctx.transposed = inputs
    ctx.save_for_backward(tokens)


def _backward(ctx, grad: Tensor):
    (tokens,) = ctx.saved_tensors
    grad = rotate_queries_keys_op(grad, tokens, ctx.grid, ctx.form, not ctx.transposed)
    return grad, None, None, None, None


rotate_queries_keys_op.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op(
    "vjepa_fast::rotate_queries_keys_in_place",
    mutates_args=("qkv",),
    schema="(Tensor(a!) qkv, Tensor tokens, SymInt[] grid, str form) -> ()",
)
def rotate_queries_keys_in_place_op(
    qkv: Tensor, tokens: Tensor, grid: list[int], form: Form
) -> None:
    """See `rotate_queries_keys_reference_`."""
    _check(qkv, tokens, grid)
    require(
        qkv.is_contiguous(),
        f"qkv: found strides {qkv.stride()}, expected contiguous memory to write to; call "
        "rotate_queries_keys",
    )
    require_index("tokens", tokens, grid[0] * grid[1] * grid[2])
    if use_triton("rotate_queries_keys_", qkv):
        launch_rope(qkv, tokens, tuple(grid), form, in_place=True)
    else:
        rotate_queries_keys_reference_(qkv, tokens, tuple(grid), form)


@rotate_queries_keys_in_place_op.register_fake
def _(qkv, tokens, grid, form):
    return None


def _require_arguments(qkv: Tensor, tokens: Tensor, form: Form) -> None:
    require_tensor("qkv", qkv)
    require_tensor("tokens", tokens)
    require(
        form in get_args(Form),
        f'form: found {form!r}, expected "tiled" or "rotation"; released V-JEPA 2 weights need '
        '"tiled"',
    )


def rotate_queries_keys(
    qkv: Tensor, tokens: Tensor, grid: tuple[int, int, int], form: Form = "tiled"
) -> Tensor:
    """Rotary positions of V-JEPA 2 (arXiv 2506.09985, section 2.1).

    Time, height and width, in this order, take a = `axis_width(head_dim)` channels of a head each;
    the rest are not rotated. Channels 2k and 2k + 1 are a pair:
    (x, y) → (x cos α - y sin α, y cos β + x sin β), α and β the angles of the two channels. The
    angles of an axis are place · 10000^(-2i / a), i = 0 … a/2 - 1, in fp32.

    Args:
        qkv: queries, keys and values, [rows, 3, heads, head_dim], fp64, fp32, bf16 or fp16.
        tokens: place of each row in the raster of the grid (time is the slowest axis), [rows] int32
            or int64.
        grid: (T', H', W'). T' only bounds the tokens: with clips of several lengths, the longest.
        form: "tiled", as the released V-JEPA 2 was trained: channel j of an axis has angle
            j mod a/2, so that a pair has two angles and lengths are not kept; or "rotation":
            channels 2i and 2i + 1 have angle i.

    Returns:
        qkv with queries and keys rotated and values as they are, contiguous, rounded once.
        Differentiable any number of times in qkv. It is new memory: in place
        (`rotate_queries_keys_`) autograd would copy the whole gradient of the view that qkv is of a
        Linear's output, and selective checkpointing keeps that output.

    Raises:
        ValueError: not a tensor; wrong shape, dtype or device; another form; on CPU, or under
            VJEPA_FAST_CHECK_INDEX=1, a token outside the grid. Unchecked (CUDA), Triton returns NaN
            in queries and keys of such a row, and the reference (VJEPA_FAST_KERNELS=reference)
            wrong ones or PyTorch's device-side assertion.
    """
    _require_arguments(qkv, tokens, form)
    return rotate_queries_keys_op(qkv, tokens, list(grid), form, False)


def rotate_queries_keys_(
    qkv: Tensor, tokens: Tensor, grid: tuple[int, int, int], form: Form = "tiled"
) -> Tensor:
    """`rotate_queries_keys` in place, where no gradient is recorded; to the same bits.

    Values are neither read nor written: two thirds of the bytes.

    Args:
        qkv: as there, and contiguous; overwritten.
        tokens, grid, form: as there.

    Returns:
        qkv.

    Raises:
        ValueError: as there, before qkv is changed; qkv is not contiguous; autograd would record.
    """
    _require_arguments(qkv, tokens, form)
    require(
        not (torch.is_grad_enabled() and qkv.requires_grad),
        "qkv: found requires_grad=True, expected False where it is overwritten; call "
        "rotate_queries_keys, or this under torch.no_grad()",
    )
    rotate_queries_keys_in_place_op(qkv, tokens, list(grid), form)
    return qkv
