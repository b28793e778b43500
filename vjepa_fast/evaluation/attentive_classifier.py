"""The attentive classifier (paper, section 4.1): one learned query attends to all tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vjepa_fast.models.block import Mlp, init_weights

PROBE_NORM_EPS = 1e-5


class CrossAttention(nn.Module):
    """Queries [B, Q, D] attend to tokens [B, N, D].

    There is no output projection: the published classifier stores one but never applies it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        # Few queries attend to many tokens, so the linear layer is applied to the query and to the
        # mean of the tokens instead of to each token: q · (K x) = (q K) · x, and
        # sum a (V x) = V (sum a x). The keys' bias shifts all scores alike, and has no effect.
        b, _, width = tokens.shape
        q = self.q(query).view(b, -1, self.heads, width // self.heads)
        key, value = self.kv.weight.view(2, self.heads, -1, width)
        bias = self.kv.bias[width:].view(self.heads, -1)
        folded = torch.einsum("bqhd,hdw->bqhw", q, key).flatten(1, 2)
        scores = folded @ tokens.transpose(1, 2) * q.shape[-1] ** -0.5  # [B, Q · heads, N]
        mean = (scores.softmax(-1) @ tokens).view(*q.shape[:3], width)
        return (torch.einsum("bqhw,hdw->bqhd", mean, value) + bias).flatten(2)


class CrossAttentionBlock(nn.Module):
    """query + attention(query, norm(tokens)), then + mlp(norm(·))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=PROBE_NORM_EPS)
        self.xattn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=PROBE_NORM_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        x = query + self.xattn(query, self.norm1(tokens))
        return x + self.mlp(self.norm2(x))


class AttentivePooler(nn.Module):
    """Pools tokens [B, N, D] to one vector [B, D] by a learned query."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.cross_attention_block = CrossAttentionBlock(width, heads)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.query_tokens, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query_tokens.expand(tokens.shape[0], -1, -1)
        return self.cross_attention_block(query, tokens).squeeze(1)


class AttentiveClassifier(nn.Module):
    """Attentive pooling, then a linear layer: [B, N, D] → logits [B, classes]."""

    def __init__(self, width: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.pooler = AttentivePooler(width, heads)
        self.linear = nn.Linear(width, num_classes)
        init_weights(self.linear)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.pooler(tokens))
