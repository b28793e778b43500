"""Compares batches of masks."""

import torch

from vjepa_fast.masks import Mixture, MultiBlock, RandomTokens, RandomTube

FIELDS = (
    "context_tokens",
    "context_seqlens",
    "context_cu_seqlens",
    "target_tokens",
    "target_seqlens",
    "target_cu_seqlens",
    "block_sizes",
)

EVERY_KIND = [
    MultiBlock(num_blocks=8, spatial_scale=(0.15, 0.15)),
    MultiBlock(num_blocks=2, spatial_scale=(0.7, 0.7)),
    MultiBlock(6, (0.1, 0.3), (0.5, 1.0), max_temporal_keep=0.5, max_keep=100),
    RandomTube(0.9),
    RandomTokens(0.75),
    Mixture([MultiBlock(1, (0.5, 0.5)), RandomTube(0.6), MultiBlock(2, (0.1, 0.4))], [3, 1, 2]),
]


def assert_same(a, b):
    assert a.num_tokens == b.num_tokens
    for name in FIELDS:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype, name
        assert torch.equal(left, right), name


def clip_tokens(tokens, seqlens):
    """The flat tokens as lists [spec][clip]."""
    parts = iter(tokens.split(seqlens.flatten().tolist()))
    return [[next(parts).tolist() for _ in row] for row in seqlens]
