"""Names of an attentive classifier's weights: ours, the published ones, those of transformers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vjepa_fast.weights.published import strip_wrappers

_UNUSED = "pooler.cross_attention_block.xattn.proj."
_LAYERS = {
    "pooler.blocks.": "pooler.self_attention_layers.",
    "pooler.cross_attention_block.": "pooler.cross_attention_layer.",
}
_PARTS = {  # a part with several of theirs is cut in as many, along its rows
    "norm1": ("layer_norm1",),
    "norm2": ("layer_norm2",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "xattn.q": ("cross_attn.q_proj",),
    "xattn.kv": ("cross_attn.k_proj", "cross_attn.v_proj"),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}


def probe_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a published attentive classifier, of one or four blocks, to ours.

    Only the wrappers in front of the names differ, `module.`. The first generation's projection
    that is never applied is dropped.
    """
    ours = {strip_wrappers(name): value for name, value in state.items()}
    return {name: value for name, value in ours.items() if not name.startswith(_UNUSED)}


def probe_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an `AttentiveClassifier`'s weights to those of `VJEPA2ForVideoClassification`.

    Args:
        state: of our classifier, with any number of blocks.

    Returns:
        `pooler.…` and `classifier.…`, all that the model has beside its encoder; the pieces of qkv
        and kv are views.

    Raises:
        ValueError: a name that no `AttentiveClassifier` has.
    """
    theirs = {}
    for name, value in state.items():
        for their, piece in zip(names := _their_names(name), value.chunk(len(names)), strict=True):
            theirs[their] = piece
    return theirs


def _their_names(name: str) -> list[str]:
    """The tensors of transformers that ours is cut in."""
    if name == "pooler.query_tokens":
        return [name]
    if name.startswith("linear."):
        return [name.replace("linear", "classifier")]
    for own, prefix in _LAYERS.items():
        layer, _, kind = name.removeprefix(own).rpartition(".")  # kind: weight or bias
        if own == "pooler.blocks.":
            number, _, layer = layer.partition(".")
            prefix += f"{number}."
        if name.startswith(own) and layer in _PARTS:
            return [f"{prefix}{part}.{kind}" for part in _PARTS[layer]]
    raise ValueError(f"probe: found {name}, expected the names of an AttentiveClassifier")
