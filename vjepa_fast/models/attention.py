"""Self-attention over a SeqLayout, by whichever fast kernel this machine has.

In order of preference: torch's own variable-length FlashAttention, xformers' (both CUDA, half
precision), else scaled_dot_product_attention for each run of equal lengths, which is also the CPU
path. A dense block-diagonal mask is never built. The choice is logged once, by name.
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
    # Queries, keys and values apart first, then runs: the other way round the backward pass copies
    # the gradient once more, out of an order that is slow to read.
    rows = [sequences * length for sequences, length in layout.runs]
    outputs = []
    for run, *parts in zip(layout.runs, *(part.split(rows) for part in qkv.unbind(1)), strict=True):
        q, k, v = (part.view(*run, *part.shape[1:]).transpose(1, 2) for part in parts)
        out = F.scaled_dot_product_attention(q, k, v)  # [sequences, heads, length, head_dim]
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def varlen(qkv: Tensor, layout: SeqLayout) -> Tensor:
    """torch.nn.attention.varlen: FlashAttention with cumulative offsets."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.unbind(1)
    cu_seqlens, longest = layout.cu_seqlens, layout.longest
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)


def xformers(qkv: Tensor, layout: SeqLayout) -> Tensor:
    """xformers' FlashAttention with a block-diagonal bias that is never materialised."""
    from xformers.ops import fmha

    bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(layout.lengths), device=qkv.device)
    q, k, v = (part.unsqueeze(0) for part in qkv.unbind(1))
    return fmha.memory_efficient_attention(q, k, v, attn_bias=bias).squeeze(0)


def _works(backend: Backend, dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
    """Try a backend on a few tokens, forward and backward; the reason if it does not work here."""
    try:
        layout = SeqLayout.of([3, 5], device)
        with torch.enable_grad():
            qkv = torch.randn(8, 3, 2, head_dim, dtype=dtype, device=device, requires_grad=True)
            out = backend(qkv, layout)
            (gradient,) = torch.autograd.grad(out.sum(), qkv)
        expected = sdpa(qkv, layout)
        close = torch.allclose(out, expected, atol=0.05) and gradient.isfinite().all()
        return None if close else "wrong values"
    except (ImportError, RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


@lru_cache
def _log_once(message: str) -> None:
    log.info(message)


@lru_cache
def choose_backend(dtype: torch.dtype, device: torch.device, head_dim: int) -> Backend:
    """The fastest backend that works for this dtype, device and head width; logged once."""
    refused = []
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        for backend in (varlen, xformers):
            reason = _works(backend, dtype, device, head_dim)
            if reason is None:
                _log_once(f"attention: {backend.__name__} on {device.type} ({dtype})")
                return backend
            refused.append(f"{backend.__name__}: {reason}")
    note = "; ".join(refused)
    _log_once(f"attention: sdpa on {device.type} ({dtype})" + (f" since {note}" if note else ""))
    return sdpa


@torch.compiler.disable  # somebody else's kernel already; compiled, it would follow every length
def attention(qkv: Tensor, layout: SeqLayout) -> Tensor:
    """Softmax attention within each sequence of the layout.

    Args:
        qkv: queries, keys and values, [rows, 3, heads, head_dim].
        layout: the sequences along rows.

    Returns:
        [rows, heads, head_dim], dtype of qkv; the softmax is fp32 inside every backend.

    Raises:
        ValueError: rows that are not the layout's.
    """
    if qkv.shape[0] != layout.rows:
        raise ValueError(f"qkv: found {qkv.shape[0]} rows, expected the layout's {layout.rows}")
    if len(layout.runs) == 1:  # equal lengths: dense attention takes them without any offsets
        return sdpa(qkv, layout)
    return choose_backend(qkv.dtype, qkv.device, qkv.shape[-1])(qkv, layout)
