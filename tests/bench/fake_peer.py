"""Stand-ins for checkouts of facebookresearch/jepa and vjepa2: their names and signatures around
the smallest networks that train. The code is ours."""

from __future__ import annotations

from pathlib import Path

PARTS = """
import torch
from torch import nn


def apply_masks(x, masks, concat=True):
    picked = [torch.take_along_dim(x, index.unsqueeze(-1), 1) for index in masks]
    return torch.cat(picked) if concat else picked


class VisionTransformer(nn.Module):
    def __init__(self, img_size, patch_size, num_frames, tubelet_size, embed_dim, depth, num_heads,
                 mlp_ratio, norm_layer, uniform_power):
        super().__init__()
        kernel = tubelet_size, patch_size, patch_size
        self.tokens = num_frames // tubelet_size * (img_size // patch_size) ** 2
        self.embed = nn.Conv3d(3, embed_dim, kernel, kernel)
        self.norm = norm_layer(embed_dim)

    def forward(self, video, index=None):
        x = self.embed(video).flatten(2).transpose(1, 2)
        assert x.shape[1] == self.tokens
        return self.norm(x if index is None else apply_masks(x, [index]))


class MultiMaskWrapper(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, video, masks=None):
        if masks is None:
            return self.backbone(video)
        return [self.backbone(video, index) for index in masks]


class VisionTransformerPredictor(nn.Module):
    def __init__(self, img_size, patch_size, num_frames, tubelet_size, embed_dim,
                 predictor_embed_dim, depth, num_heads, norm_layer, uniform_power, use_mask_tokens,
                 num_mask_tokens):
        super().__init__()
        self.narrow = nn.Linear(embed_dim, predictor_embed_dim)
        self.wide = nn.Linear(predictor_embed_dim, embed_dim)
        self.mask_tokens = nn.Parameter(torch.zeros(num_mask_tokens, predictor_embed_dim))

    def forward(self, encoded, context, target, spec):
        assert encoded.shape[:2] == context.shape
        x = self.narrow(encoded).mean(1, keepdim=True) + self.mask_tokens[spec]
        return self.wide(x).repeat(1, target.shape[1], 1)


class PredictorMultiMaskWrapper(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, encoded, wanted, contexts, targets):
        masks = enumerate(zip(encoded, contexts, targets))
        return [self.backbone(*mask, spec) for spec, mask in masks]
"""

SECOND_PARTS = (
    PARTS.replace("uniform_power", "uniform_power, use_rope")
    + """

class MultiSeqWrapper(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, videos, masks=None):
        if masks is None:
            return [self.backbone(video) for video in videos]
        pairs = zip(videos, masks, strict=True)
        return [[self.backbone(video, index) for index in own] for video, own in pairs]


class PredictorMultiSeqWrapper(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, encoded, contexts, targets):
        lengths = enumerate(zip(encoded, contexts, targets, strict=True))
        return [[self.backbone(*mask, length) for mask in zip(*own)] for length, own in lengths]
"""
)

MODULES = {
    "src/models/vision_transformer.py": "VisionTransformer",
    "src/models/predictor.py": "VisionTransformerPredictor",
    "src/masks/utils.py": "apply_masks",
}
FIRST = {"src/models/utils/multimask.py": "MultiMaskWrapper, PredictorMultiMaskWrapper"}
SECOND = {"src/utils/wrappers.py": "MultiSeqWrapper, PredictorMultiSeqWrapper"}


def make_checkout(folder: Path, second: bool = False) -> Path:
    """Write the stand-in, of the second generation if asked; returns its folder."""
    for name, parts in (MODULES | (SECOND if second else FIRST)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"from src.parts import {parts}\n")
    (folder / "src" / "parts.py").write_text(SECOND_PARTS if second else PARTS)
    return folder
