"""Where in its video each token is, as the first generation's probes are told (V-JEPA, appendix D).

The encoder sees each segment alone, so that its features don't say which of them comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa_fast.models.positions import axis_table


@dataclass(frozen=True)
class FramePositions:
    """Adds a sine-cosine code of each tubelet's place in its video to its tokens' features.

    The place is the number of the tubelet's first frame, as in the public code; all tokens of a
    tubelet, and all spatial views, get the same.

    Attributes:
        tubelet_size: frames of a token.
    """

    tubelet_size: int

    def __call__(self, tokens: Tensor, frames: Tensor) -> Tensor:
        """Add them.

        Args:
            tokens: fp32 [b, V, S · N, D], D even; raster order in each segment, time slowest.
            frames: number of each frame in its video, int64 [b, S, T], on the host.

        Returns:
            fp32 [b, V, S · N, D].
        """
        b, segments, count = frames.shape
        times, width = count // self.tubelet_size, tokens.shape[-1]
        numbers, which = frames[..., :: self.tubelet_size].unique(return_inverse=True)
        table = torch.from_numpy(axis_table(width, numbers.numpy())).float().to(tokens.device)
        added = table[which.to(tokens.device)].view(b, 1, segments * times, 1, width)
        return (tokens.unflatten(2, (segments * times, -1)) + added).flatten(2, 3)
