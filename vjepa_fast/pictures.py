"""Shared by the pictures of runs and of features: components as colors, and titles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 4  # pixels
TEXT = 12  # pixels, of a title; wider pictures have larger ones


@dataclass(frozen=True)
class PrincipalColors:
    """Shows token features by their first three principal components as red, green and blue.

    Features are layer-normed first. Each component has the sign that makes its largest entry
    positive, and is clipped to the middle 98 % of its values.

    Attributes:
        mean: of the layer-normed features, [D].
        directions: of the components, [D, 3].
        low, high: what becomes 0 and 1, [3].
        variance: fraction of the features' variance that the three hold.
    """

    mean: Tensor
    directions: Tensor
    low: Tensor
    high: Tensor
    variance: float

    @staticmethod
    def of(features: Tensor) -> PrincipalColors:
        """The components of features, [..., D] of any float dtype."""
        flat = F.layer_norm(features.float(), features.shape[-1:]).flatten(0, -2)
        mean = flat.mean(0)
        flat = flat - mean
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        first = vectors[:, -3:].flip(1)
        largest = first.gather(0, first.abs().argmax(0, keepdim=True))
        first = first * largest.sign()
        shown = flat @ first
        low, high = (torch.quantile(shown[: 1 << 22], q, dim=0) for q in (0.01, 0.99))
        held = values[-3:].sum() / values.sum().clamp(min=1e-12)
        return PrincipalColors(mean, first, low, high, float(held))

    def __call__(self, features: Tensor) -> np.ndarray:
        """Features [..., D] as colors: float32 in 0 … 1, [..., 3]."""
        flat = F.layer_norm(features.float(), features.shape[-1:]) - self.mean
        values = (flat @ self.directions - self.low) / (self.high - self.low).clamp(min=1e-12)
        return values.clamp(0, 1).cpu().numpy()


def font_of(size: float) -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans: Pillow's own font has no accents, Greek or Cyrillic."""
    import matplotlib  # inside the function: importing it takes long

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def titled(pixels: np.ndarray, title: str) -> np.ndarray:
    """A picture below its title, black on white, in as many lines as its width needs.

    Args:
        pixels: uint8 RGBA [height, width, 4].
        title: words; a line break begins a new line.

    Returns:
        uint8 RGBA [more, width, 4].
    """
    width = pixels.shape[1]
    font = font_of(max(TEXT, width // 50))
    lines = []
    for paragraph in title.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width - 2 * GAP:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    pitch = round(1.35 * font.size)
    band = Image.new("RGBA", (width, len(lines) * pitch + 2 * GAP), "white")
    draw = ImageDraw.Draw(band)
    for i, line in enumerate(lines):
        draw.text((GAP, GAP + i * pitch), line, "black", font)
    return np.concatenate([np.asarray(band), pixels])
