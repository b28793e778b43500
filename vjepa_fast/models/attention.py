"""Self-attention within the sequences of a SeqLayout, by the fastest kernel available.

In order of preference: torch's variable-length attention, xformers' (both on CUDA in half
precision), else one scaled_dot_product_attention for each run of equal lengths, which is also the
CPU path. A dense block-diagonal mask is never built. The choice is logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa_fast.models.sequences import SeqLayout

log = logging.getLogger("vjepa_fast")

Backend = Callable[[Tensor, SeqLayout], Tensor]


def sdpa(qkv: Tensor, layout: SeqLayout) -> Tensor:
    """One scaled_dot_product_attention call for each run of sequences of equal length."""
    # q, k and v are separated first, then split into runs: in the other order the backward pass
    # copies the gradient once more, from a layout that is slow to read.
    rows = [sequences * length for sequences, length in layout.runs]
    outputs = []
    for run, *parts in zip(layout.runs, *(part.split(rows) for part in qkv.unbind(1)), strict=True):
        q, k, v = (part.view(*run, *part.shape[1:]).transpose(1, 2) for part in parts)
        out = F.scaled_dot_product_attention(q, k, v)  # [sequences, heads, length, head_dim]
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def varlen(qkv: Tensor, layout: SeqLayout) -> Tensor:
    """torch.nn.attention.varlen: FlashAttention or cuDNN's, with cumulative offsets."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.unbind(1)
    cu_seqlens, longest = layout.cu_seqlens, layout.longest
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)


def xformers(qkv: Tensor, layout: SeqLayout) -> Tensor:
    """xformers' FlashAttention with a block-diagonal bias that is never materialized."""
    from xformers.ops import fmha

    bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(layout.lengths), device=qkv.device)
    q, k, v = (part.unsqueeze(0) for part in qkv.unbind(1))
    return fmha.memory_efficient_attention(q, k, v, attn_bias=bias).squeeze(0)


def _error(backend: Backend, dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
    """Try a backend on a few tokens, forward and backward; returns the reason if it fails."""
    try:
        # Above 128 tokens torch 2.14 takes cuDNN's kernels on GPUs that have them.
        layout = SeqLayout.of([3, 130], device)
        with torch.enable_grad():
            shape = (layout.rows, 3, 2, head_dim)
            qkv = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
            out = backend(qkv, layout)
            (gradient,) = torch.autograd.grad(out.sum(), qkv)
        expected = sdpa(qkv, layout)
        # two roundings of bf16 (2^-9), of weights and of the sum of values up to 4, on both sides
        close = torch.allclose(out, expected, rtol=0, atol=0.05) and gradient.isfinite().all()
        return None if close else "wrong values"
    except (ImportError, RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


@lru_cache
def _log_once(message: str) -> None:
    log.info(message)


@lru_cache
def choose_backend(dtype: torch.dtype, device: torch.device, head_dim: int) -> Backend:
    """The fastest backend that works for this dtype, device and head width; logs it once."""
    failures = []
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        for backend in (varlen, xformers):
            reason = _error(backend, dtype, device, head_dim)
            if reason is None:
                _log_once(f"attention: {backend.__name__} on {device.type} ({dtype})")
                return backend
            failures.append(f"{backend.__name__}: {reason}")
    note = "; ".join(failures)
    _log_once(f"attention: sdpa on {device.type} ({dtype})" + (f" since {note}" if note else ""))
    return sdpa


@torch.compiler.disable  # already a fused kernel; compiled, it would specialize on every length
def attention(qkv: Tensor, layout: SeqLayout) -> Tensor:
    """Softmax attention within each sequence of the layout.

    Args:
        qkv: queries, keys and values, [rows, 3, heads, head_dim].
        layout: the sequences along rows.

    Returns:
        [rows, heads, head_dim], dtype of qkv; every backend computes the softmax in fp32.

    Raises:
        ValueError: another number of rows than the layout's.
    """
    if qkv.shape[0] != layout.rows:
        raise ValueError(
            f"qkv: found {qkv.shape[0]} rows, expected the layout's {layout.rows}; pass the layout "
            "of these rows"
        )
    if len(layout.runs) == 1:  # equal lengths: dense attention needs no offsets
        return sdpa(qkv, layout)
    return choose_backend(qkv.dtype, qkv.device, qkv.shape[-1])(qkv, layout)
