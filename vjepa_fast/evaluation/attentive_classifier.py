"""The attentive classifier: one learned query attends to all tokens.

With one block it is V-JEPA's (section 4.1). With four, three self-attention blocks over the tokens
come first, as in V-JEPA 2 (appendix C.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vjepa_fast.models.activation_checkpointing import run_blocks
from vjepa_fast.models.block import Block, Mlp, init_weights, scale_init_by_depth
from vjepa_fast.models.sequences import SeqLayout

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

    def __init__(self, width: int, heads: int, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.xattn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        x = query + self.xattn(query, self.norm1(tokens))
        return x + self.mlp(self.norm2(x))


class AttentivePooler(nn.Module):
    """Pools tokens [B, N, D] to one vector [B, D] by a learned query.

    All blocks but the last are self-attention blocks over the tokens. Their output projections
    start as in the encoder of V-JEPA 2, those of block l divided by sqrt(2 l).
    """

    def __init__(self, width: int, heads: int, blocks: int, norm_eps: float) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks: found {blocks}, expected 1 or more; the last one pools")
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.cross_attention_block = CrossAttentionBlock(width, heads, norm_eps)
        self.blocks = nn.ModuleList(
            Block(width, heads, norm_eps=norm_eps) for _ in range(blocks - 1)
        )
        self.apply(init_weights)
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        if self.blocks:
            scale_init_by_depth(self.blocks)
            self.cross_attention_block.mlp.fc2.weight.data.div_(math.sqrt(2 * len(self.blocks)))

    def forward(self, tokens: Tensor) -> Tensor:
        b, n, width = tokens.shape
        if self.blocks:
            # Recomputed in the backward pass: of a batch, a block would save 16 times its tokens.
            flat, layout = tokens.reshape(b * n, width), SeqLayout.of([n] * b, tokens.device)
            tokens = run_blocks(self.blocks, flat, layout, "full").view(b, n, width)
        query = self.query_tokens.expand(b, -1, -1)
        return self.cross_attention_block(query, tokens).squeeze(1)


class AttentiveClassifier(nn.Module):
    """Attentive pooling, then a linear layer: [B, N, D] → logits [B, classes].

    Equal to `VJEPA2ForVideoClassification` of `transformers` behind its encoder, if heads and
    norm_eps are that encoder's, which is how `ProbeRecipe` makes a probe of four blocks. The public
    code of V-JEPA 2 has 16 heads and 1e-5 there, whatever the encoder.

    Args:
        width: D.
        heads: of the attention in each block.
        num_classes: number of logits.
        blocks: the cross-attention block and the self-attention blocks before it.
        norm_eps: of every layer norm.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        num_classes: int,
        blocks: int = 1,
        norm_eps: float = PROBE_NORM_EPS,
    ) -> None:
        super().__init__()
        self.width, self.heads, self.norm_eps = width, heads, norm_eps
        self.pooler = AttentivePooler(width, heads, blocks, norm_eps)
        self.linear = nn.Linear(width, num_classes)
        init_weights(self.linear)

    @property
    def num_blocks(self) -> int:
        """Number of blocks, the cross-attention block included."""
        return 1 + len(self.pooler.blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.pooler(tokens))
