"""A trained probe behind its encoder, as transformers' VJEPA2ForVideoClassification."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.evaluation.saved_probe import load_probe
from vjepa_fast.exchange.export.form import Form, from_ours, random_clip, safetensors_size
from vjepa_fast.exchange.export.hf.folder import (
    METADATA,
    WEIGHTS,
    check_names,
    load_quietly,
    preprocessed,
    write_folder,
)
from vjepa_fast.exchange.export.hf.second_generation import (
    encoder_tensors,
    mask_token_sentence,
    model_config,
    predictor_tensors,
    refuse_what_it_cannot_hold,
)
from vjepa_fast.exchange.export.source import LazyTensor, Source
from vjepa_fast.models.block import NORM_EPS
from vjepa_fast.weights import weights_checksum
from vjepa_fast.weights.probe_names import probe_to_transformers

_LOAD = """from transformers import AutoModelForVideoClassification, AutoVideoProcessor
model = AutoModelForVideoClassification.from_pretrained("./NAME")
processor = AutoVideoProcessor.from_pretrained("./NAME")
"""


def classifier(source: Source, probe: Path) -> Form:
    """The form "transformers" of the second generation with a probe of several blocks.

    Args:
        source: the encoder that the probe was trained on.
        probe: a file that `vjepa-fast probe` wrote.

    Raises:
        UserError: VJEPA2ForVideoClassification cannot hold this model or this probe, the probe is
            of another encoder, or its file cannot be read.
    """
    if source.generation == 1:
        raise UserError(
            "--probe: found an encoder of the first generation, expected V-JEPA 2, since "
            "transformers has no classifier for the first; export it without --probe"
        )
    refuse_what_it_cannot_hold(source)
    head, header = load_probe(probe)
    _refuse_other_heads(source, probe, head)
    if (header.get("encoder") or {}).get("crc32") != weights_checksum(source.state(source.network)):
        raise UserError(
            f"{probe}: found a probe of another encoder, expected one that was trained on "
            f"{source.checkpoint.folder}; name the checkpoint that it was trained on, or probe "
            "this one"
        )
    from transformers import VJEPA2ForVideoClassification

    if not header["classes"]:
        raise UserError(
            f"{probe}: found a probe of the value {header.get('label')}, expected one of classes, "
            "since VJEPA2ForVideoClassification has no other; name another probe"
        )
    names = header.get("names") or [str(number) for number in header["classes"]]
    config = model_config(
        source,
        architectures=["VJEPA2ForVideoClassification"],
        num_pooler_layers=head.num_blocks - 1,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    backbone = encoder_tensors(source) | predictor_tensors(source)
    tensors = {f"vjepa2.{name}": tensor for name, tensor in backbone.items()} | {
        name: LazyTensor.of(value)
        for name, value in probe_to_transformers(head.state_dict()).items()
    }
    with torch.device("meta"):
        check_names(tensors, VJEPA2ForVideoClassification(config))

    def check(folder: Path) -> tuple[float, float]:
        video = random_clip(source)
        return from_ours(_their_logits(folder, video), source, video, head)

    crop_size, label = source.config.data.crop_size, header.get("label", "")
    return Form(
        size=safetensors_size(tensors, METADATA) + 2**20,
        write=lambda folder: write_folder(folder, tensors, config, crop_size),
        check=check,
        library="transformers",
        tags=("video-classification",),
        title="VJEPA2ForVideoClassification of transformers",
        parts=(
            f"`config.json` and `{WEIGHTS}`: encoder, predictor and classifier in fp32.",
            f"Classes: {len(names)} of the label {label!r}, named by their numbers in the "
            "manifest.",
            "`video_preprocessor_config.json`: VJEPA2VideoProcessor for clips of "
            f"{crop_size} x {crop_size} pixels.",
            mask_token_sentence(source),
        ),
        load=_LOAD,
    )


@torch.no_grad()
def _their_logits(folder: Path, video: Tensor) -> Tensor:
    from transformers import VJEPA2ForVideoClassification

    pixels = preprocessed(folder, video)
    model = load_quietly(VJEPA2ForVideoClassification, folder)
    return model(pixel_values_videos=pixels).logits


def _refuse_other_heads(source: Source, probe: Path, head: AttentiveClassifier) -> None:
    """The pooler of transformers takes heads and norms from the encoder's config."""
    if head.num_blocks == 1:
        raise UserError(
            f"{probe}: found a probe of one block, expected four, since the pooler of "
            "VJEPA2ForVideoClassification has self-attention blocks; train one with four blocks"
        )
    encoder = source.config.model.encoder
    encoders = "since transformers takes the encoder's"
    for what, found, expected, reason in (
        ("{} features a token", head.width, encoder.width, "as this encoder has"),
        ("{} attention heads", head.heads, encoder.heads, encoders),
        ("norm_eps {}", head.norm_eps, NORM_EPS, encoders),
    ):
        if found != expected:
            raise UserError(
                f"{probe}: found a probe with {what.format(found)}, expected {expected}, {reason}; "
                "train another probe of four blocks on this encoder"
            )
