"""The layers of `AttentiveClassifier` for h heads at once.

Weights are a dict by the classifier's names, each with a leading dimension h. The functions follow
the pairs (head, clip) that are wanted: `pairs` [h, P] holds the clips of each head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vjepa_fast.models.attention import attention, choose_backend
from vjepa_fast.models.sequences import SeqLayout

Weights = Mapping[str, Tensor]


def layer(weights: Weights, name: str) -> Weights:
    """The weights below a name, by the rest of their names."""
    start = len(name) + 1
    return {key[start:]: value for key, value in weights.items() if key.startswith(f"{name}.")}


def linear(x: Tensor, weights: Weights) -> Tensor:
    """[h, rows, in] → [h, rows, out]."""
    # In this order the backward pass yields gradients that are laid out as the weights are.
    return torch.baddbmm(weights["bias"].unsqueeze(-1), weights["weight"], x.mT).mT


def normalize(x: Tensor, eps: float) -> Tensor:
    """A layer norm over the last dimension without its weight and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def norm(x: Tensor, weights: Weights, eps: float) -> Tensor:
    """Layer norm of [h, rows, D]."""
    return torch.addcmul(
        weights["bias"].unsqueeze(1), normalize(x, eps), weights["weight"].unsqueeze(1)
    )


def mlp(x: Tensor, weights: Weights) -> Tensor:
    """Linear, GELU, linear; [h, rows, D]."""
    return linear(F.gelu(linear(x, layer(weights, "fc1"))), layer(weights, "fc2"))


class CrossAttention:
    """The block that pools tokens by a learned query.

    The query is the same for all clips, so the keys' linear layer is applied to it instead of to
    the tokens, and so is the weight of the tokens' norm. The bias of that norm shifts all scores
    of a query alike: it matters in the values only. Thus the tokens enter as `normalize` leaves
    them, and these are the same for all heads.

    Args:
        weights: the pooler's.
        heads: of the attention.
        eps: of the layer norms.
    """

    def __init__(self, weights: Weights, heads: int, eps: float) -> None:
        self.block, self.eps = layer(weights, "cross_attention_block"), eps
        self.norm1, self.query = layer(self.block, "norm1"), weights["query_tokens"].flatten(1, 2)
        h, _, width = self.query.shape
        size = h, heads, width // heads
        q = linear(self.query, layer(self.block, "xattn.q")).view(size)
        key, self.value = self.block["xattn.kv.weight"].view(h, 2, *size[1:], width).unbind(1)
        self.bias = self.block["xattn.kv.bias"][:, None, width:]
        folded = torch.einsum("hkd,hkdw->hkw", q, key) * size[-1] ** -0.5
        self.folded = folded * self.norm1["weight"].unsqueeze(1)  # [h, heads, D]

    def of_shared(self, tokens: Tensor, pairs: Tensor) -> Tensor:
        """Tokens [B, N, D] of all heads, pairs int64 [h, P] → [h, P, D]."""
        rows = self.folded.flatten(0, 1)
        scores = rows @ tokens.flatten(0, 1).mT
        weights = scores.view(len(rows), *tokens.shape[:2]).softmax(-1)
        mean = (weights.transpose(0, 1) @ tokens).flatten(0, 1)  # [B · h · heads, D]
        wanted = pairs.repeat_interleave(self.folded.shape[1], 0) * len(rows)
        wanted = wanted + torch.arange(len(rows), device=pairs.device).unsqueeze(1)
        picked = mean.index_select(0, wanted.flatten())
        return self._after(picked.view(*self.folded.shape[:2], pairs.shape[1], -1))

    def of_own(self, tokens: Tensor) -> Tensor:
        """Each head's own tokens [h, P, N, D] → [h, P, D]."""
        weights = (self.folded.unsqueeze(1) @ tokens.mT).softmax(-1)  # [h, P, heads, N]
        return self._after((weights @ tokens).transpose(1, 2))

    def _after(self, mean: Tensor) -> Tensor:
        """From the means of the tokens by attention weight, [h, heads, P, D]."""
        scale, shift = (self.norm1[name][:, None, None] for name in ("weight", "bias"))
        values = torch.addcmul(shift, mean, scale) @ self.value.mT
        x = self.query + (values.transpose(1, 2).flatten(2) + self.bias)
        return x + mlp(norm(x, layer(self.block, "norm2"), self.eps), layer(self.block, "mlp"))


def self_attention(tokens: Tensor, weights: Weights, heads: int, eps: float) -> Tensor:
    """One `models.block.Block`; tokens of each head, [h, P, N, D].

    Its activations are recomputed in the backward pass: they take 16 times as much as its tokens.
    """
    h, clips, n, width = tokens.shape
    layout = SeqLayout.of([n] * (h * clips), tokens.device)
    names = list(weights)

    def block(x: Tensor, *values: Tensor) -> Tensor:
        own = dict(zip(names, values, strict=True))
        qkv = linear(norm(x, layer(own, "norm1"), eps), layer(own, "attn.qkv"))
        mixed = attention(qkv.reshape(-1, 3, heads, width // heads), layout).reshape(x.shape)
        x = x + linear(mixed, layer(own, "attn.proj"))
        return x + mlp(norm(x, layer(own, "norm2"), eps), layer(own, "mlp"))

    choose_backend(tokens.dtype, tokens.device, width // heads)  # its trial isn't to be recomputed
    args = tokens.flatten(1, 2), *weights.values()
    if not torch.is_grad_enabled():
        return block(*args).view(tokens.shape)
    out = checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
    return out.reshape(tokens.shape)
