"""The encoder with a classifier, and its parameter groups by depth."""

from __future__ import annotations

import re

from torch import Tensor, nn

from vjepa_fast.config.finetune.schema import FinetuneOptim
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.evaluation.heads.spec import LinearClassifier
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import encode_clips


class ClipClassifier(nn.Module):
    """An encoder that is trained, and a classifier on its tokens."""

    def __init__(
        self, encoder: VisionTransformer, classifier: LinearClassifier | AttentiveClassifier
    ) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def forward(
        self, video: Tensor, drop_path: Tensor | None = None, dropout: Tensor | None = None
    ) -> Tensor:
        """Classify clips.

        Args:
            video: uint8 [B, T, H, W, 3].
            drop_path: see `VisionTransformer.forward`, fp32 [depth, 2, B].
            dropout: what the features before the last layer are multiplied by, fp32 [B, D].

        Returns:
            Logits [B, classes], in the dtype of the weights.
        """
        tokens = encode_clips(self.encoder, video, drop_path).view(
            len(video), -1, self.encoder.width
        )
        pooled = self.classifier.pooler(tokens)
        if dropout is not None:
            pooled = (pooled * dropout).to(pooled.dtype)
        return self.classifier.linear(pooled)


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter: 0 for the patch embedding, l + 1 for block l, depth + 1 for what
    follows the blocks.
    """
    if name.startswith("encoder.patch_embed."):
        return 0
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1


def layer_groups(model: ClipClassifier, optim: FinetuneOptim) -> list[dict]:
    """Parameter groups whose learning rate falls by `layer_decay` from each layer to the one below.

    One-dimensional parameters (biases, norms) do not decay. All gradients are clipped together.

    Returns:
        Groups as `zero.engine.parameter_groups` makes them, e.g. "encoder.layer_03.no_decay".
    """
    depth = len(model.encoder.blocks)
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        layer, decays = layer_of(name, depth), parameter.ndim >= 2
        part = "encoder" if name.startswith("encoder.") else "classifier"
        own = {
            "name": f"{part}.layer_{layer:02d}.{'decay' if decays else 'no_decay'}",
            "part": "model",
            "decays": decays,
            "lr_factor": optim.layer_decay ** (depth + 1 - layer),
            "weight_decay": optim.weight_decay if decays else 0.0,
            "params": [],
        }
        groups.setdefault(own["name"], own)["params"].append(parameter)
    return list(groups.values())
