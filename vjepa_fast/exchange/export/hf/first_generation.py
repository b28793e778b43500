"""A folder of the first generation for transformers, with a small modelling file of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from vjepa_fast.exchange.export.form import (
    Form,
    from_ours,
    random_clip,
    safetensors_size,
    write_safetensors,
)
from vjepa_fast.exchange.export.hf.folder import METADATA, WEIGHTS
from vjepa_fast.exchange.export.hf.second_generation import encoder_tensors
from vjepa_fast.exchange.export.source import Source
from vjepa_fast.models.block import NORM_EPS, mlp_width
from vjepa_fast.weights.reading.transformers_folder import PACE

MODELLING = Path(__file__).resolve().parent / "modeling_vjepa.py"
_LOAD = """from transformers import AutoModel, AutoVideoProcessor
model = AutoModel.from_pretrained("./NAME", trust_remote_code=True)
processor = AutoVideoProcessor.from_pretrained("./NAME")
"""
# Remote code is copied to a cache; a process of its own keeps ours and the user's cache clean.
_CHECK = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from vjepa_fast.exchange.export.hf.folder import load_quietly, preprocessed
folder, clip, found = map(Path, sys.argv[1:])
model = load_quietly(AutoModel, folder, trust_remote_code=True)
with torch.no_grad():
    features = model(preprocessed(folder, load_file(clip)["video"])).last_hidden_state
save_file({"features": features}, found)
"""


def model_config(source: Source) -> dict:
    """The config.json that VJEPAConfig of modeling_vjepa.py reads."""
    model, data = source.config.model, source.config.data
    encoder = model.encoder
    return {
        "architectures": ["VJEPAModel"],
        "auto_map": {
            "AutoConfig": "modeling_vjepa.VJEPAConfig",
            "AutoModel": "modeling_vjepa.VJEPAModel",
        },
        "crop_size": data.crop_size,
        "dtype": "float32",
        "frames_per_clip": source.num_frames,
        "hidden_size": encoder.width,
        "in_chans": 3,
        "layer_norm_eps": NORM_EPS,
        "mlp_ratio": mlp_width(encoder.width, encoder.mlp_ratio) / encoder.width,
        "model_type": "vjepa",
        "num_attention_heads": encoder.heads,
        "num_hidden_layers": encoder.depth,
        "patch_size": model.patch_size,
        "tubelet_size": model.tubelet_size,
        "uniform_power": model.uniform_power,
        PACE: source.pace,
    }


def first_generation(source: Source) -> Form:
    """The form "transformers" of the first generation: the encoder alone."""
    tensors = encoder_tensors(source)
    crop_size = source.config.data.crop_size

    def write(folder: Path) -> None:
        from transformers import VJEPA2VideoProcessor

        text = json.dumps(model_config(source), indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        VJEPA2VideoProcessor(crop_size=crop_size).save_pretrained(folder)
        shutil.copyfile(MODELLING, folder / MODELLING.name)
        write_safetensors(folder / WEIGHTS, tensors, METADATA)

    def check(folder: Path) -> tuple[float, float]:
        video = random_clip(source)
        with tempfile.TemporaryDirectory() as own:
            clip, found, modules = (Path(own) / name for name in ("clip", "found", "modules"))
            save_file({"video": video}, clip)
            done = subprocess.run(
                [sys.executable, "-c", _CHECK, *map(str, (folder, clip, found))],
                env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(modules)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise ValueError(done.stderr.strip())
            theirs = load_file(found)["features"]
        return from_ours(theirs, source, video)

    return Form(
        size=safetensors_size(tensors, METADATA) + MODELLING.stat().st_size + 2**16,
        write=write,
        check=check,
        library="transformers",
        tags=("feature-extraction", "custom_code"),
        title="encoder for transformers",
        parts=(
            f"`config.json` and `{WEIGHTS}`: the encoder in fp32.",
            f"`{MODELLING.name}`: its code, which transformers runs with `trust_remote_code=True`; "
            "it needs torch and transformers alone.",
            "`video_preprocessor_config.json`: VJEPA2VideoProcessor for clips of "
            f"{crop_size} x {crop_size} pixels.",
            "There is no predictor.",
        ),
        load=_LOAD,
    )
