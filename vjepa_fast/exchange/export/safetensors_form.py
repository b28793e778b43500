"""The encoder alone as model.safetensors, in our names, with its config in the header."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from vjepa_fast.exchange.export.form import (
    Form,
    difference,
    features,
    own_features,
    random_clip,
    safetensors_size,
    write_safetensors,
)
from vjepa_fast.exchange.export.source import Source

FORMAT = 1
FILE = "model.safetensors"
_LOAD = f"""from safetensors import safe_open
file = safe_open("./NAME/{FILE}", framework="pt")
config, weights = file.metadata()["vjepa_fast"], {{name: file.get_tensor(name) for name in file.keys()}}
"""  # noqa: E501


def header_config(source: Source) -> dict:
    """What the header's key `vjepa_fast` holds, as JSON.

    format (1), generation (1: sincos; 2: rotary positions), model (a config's section, complete),
    num_frames (of the longest clip), crop_size, pace (how clips are sampled: a frame_step or fps),
    network (target_encoder or encoder) and step.
    """
    return {
        "format": FORMAT,
        "generation": source.generation,
        "model": json.loads(source.config.model.model_dump_json()),
        "num_frames": source.num_frames,
        "crop_size": source.config.data.crop_size,
        "pace": source.pace,
        "network": source.network,
        "step": source.checkpoint.state["step"],
    }


def safetensors_form(source: Source) -> Form:
    """The form "safetensors". Every kind of positions has it."""
    tensors = source.part(source.network)
    metadata = {"format": "pt", "vjepa_fast": json.dumps(header_config(source))}

    def check(folder: Path) -> tuple[float, float]:
        video = random_clip(source)
        found = features(source.build_encoder(load_file(folder / FILE)), video)
        return difference(found, own_features(source, video)), 0.0

    return Form(
        size=safetensors_size(tensors, metadata),
        write=lambda folder: write_safetensors(folder / FILE, tensors, metadata),
        check=check,
        library="vjepa_fast",
        tags=("feature-extraction",),
        title="encoder",
        parts=(
            f"`{FILE}`: the encoder in fp32, in the names of vjepa_fast.",
            "Its header's key `vjepa_fast` holds the model's shape, the clip's size and the step, "
            "as JSON; `vjepa_fast.load_encoder` reads it.",
        ),
        load=_LOAD,
    )
