"""Named encoder sizes that `model.encoder` accepts in place of an object."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderPreset:
    """Size of a vision transformer; its MLP is `mlp_ratio` times as wide as its tokens."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


ENCODER_PRESETS: dict[str, EncoderPreset] = {
    "vit_tiny": EncoderPreset(width=192, depth=12, heads=3),
    "vit_small": EncoderPreset(width=384, depth=12, heads=6),
    "vit_base": EncoderPreset(width=768, depth=12, heads=12),
    "vit_large": EncoderPreset(width=1024, depth=24, heads=16),
    "vit_huge": EncoderPreset(width=1280, depth=32, heads=16),
}
