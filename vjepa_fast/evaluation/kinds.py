"""Which features are probed: a checkpoint's encoder, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vjepa_fast.config import Config
from vjepa_fast.config.model import build_model
from vjepa_fast.evaluation.views.featurize import PixelFeatures, encoder_features
from vjepa_fast.evaluation.views.source import Featurize
from vjepa_fast.inference.encoder import VideoEncoder
from vjepa_fast.weights import weights_checksum

PRETRAINED, RANDOM, PIXELS = "pretrained encoder", "random encoder", "raw pixels"
BASELINES = {"random": RANDOM, "pixels": PIXELS}


@dataclass(frozen=True)
class Kind:
    """One kind of features.

    Attributes:
        name: for tables.
        key: what the features of given views depend on, for the folder that they are stored in.
        featurize: uint8 [B, T, H, W, 3] → [B, N, D].
    """

    name: str
    key: str
    featurize: Featurize

    @property
    def slug(self) -> str:
        """A name for folders."""
        return self.name.replace(" ", "_")


def make_kind(
    name: str,
    config: Config,
    encoder: VideoEncoder,
    pixels: Callable[[VideoEncoder], PixelFeatures],
) -> Kind:
    """The features of this name.

    Args:
        name: `PRETRAINED`, `RANDOM` or `PIXELS`.
        config: of the run; the random encoder has the weights that the run started from.
        encoder: the checkpoint's, on its device.
        pixels: as many principal components of pixels as this encoder has features.
    """
    if name == PRETRAINED:
        return Kind(name, f"{encoder.checksum:08x}", encoder_features(encoder.model))
    if name == RANDOM:
        own = build_model(config).make_target_encoder().to(encoder.device, encoder.dtype)
        key = f"{weights_checksum(own.state_dict()):08x}"
        return Kind(name, key, encoder_features(own.eval().requires_grad_(False)))
    found = pixels(encoder)
    return Kind(name, f"{found.checksum:08x}", found)


def kind_names(baselines: Sequence[str]) -> list[str]:
    """The checkpoint's features first, then the baselines'."""
    return [PRETRAINED, *(BASELINES[name] for name in baselines)]
