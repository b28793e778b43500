"""Published checkpoints: names, shapes, and the model that follows from them."""

import json
import math

import numpy as np
import pytest
import torch

from tests.helpers.paths import GOLDEN
from vjepa_fast.weights.open_file import open_weights


def golden_checkpoint(file, prefix="module.backbone."):
    """A checkpoint as the public code writes it, with the golden file's weights; and its numbers.

    The golden file has tables, which never change, in the initial weights alone.
    """
    with np.load(GOLDEN / file) as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data.files if name != "meta"}
        meta = json.loads(str(data["meta"]))
    content = {}
    for part in ("encoder", "predictor", "target_encoder"):
        first = "init/predictor/" if part == "predictor" else "init/encoder/"
        tables = {n.removeprefix(first): v for n, v in arrays.items() if n.startswith(first)}
        state = {n: v for n, v in tables.items() if n.endswith("pos_embed")}
        final = f"final/{part}/"
        state |= {n.removeprefix(final): v for n, v in arrays.items() if n.startswith(final)}
        content[part] = {prefix + n.removeprefix("backbone."): v for n, v in state.items()}
    return content, meta


GOLDENS = ["multiblock_tiny.npz", "clipped_nonuniform_tiny.npz", "rope_tiny.npz"]


@pytest.mark.parametrize("file", GOLDENS)
def test_the_model_of_the_golden_checkpoints(file, tmp_path):
    content, meta = golden_checkpoint(file)
    torch.save(content, tmp_path / "tiny.pth.tar")
    second = meta.get("generation", 1) == 2
    asked = {"crop_size": meta["crop_size"], "num_frames": [meta["num_frames"]]} if second else {}
    found = open_weights(
        tmp_path / "tiny.pth.tar",
        heads=meta["num_heads"],
        predictor_heads=meta["predictor_num_heads"],
        **asked,
    )
    assert (found.kind, found.generation) == ("published", 2 if second else 1)
    assert (found.num_frames, found.crop_size) == ((meta["num_frames"],), meta["crop_size"])
    assert found.model == {
        "encoder": {
            "width": meta["embed_dim"],
            "depth": meta["depth"],
            "heads": meta["num_heads"],
            "mlp_ratio": meta["mlp_ratio"],
        },
        "patch_size": meta["patch_size"],
        "tubelet_size": meta["tubelet_size"],
        "positions": "rope_tiled" if second else "sincos",
        "uniform_power": meta.get("uniform_power", True),
        "predictor": {
            "width": meta["predictor_embed_dim"],
            "depth": meta["predictor_depth"],
            "heads": meta["predictor_num_heads"],
        },
        "mask_tokens": "shared" if second else "per_spec",
        "depth_scaled_init": second,
    }
    assert found.target_encoder == "target_encoder"
    state = found.state("target_encoder")
    for name, value in state.items():
        assert torch.equal(value, content["target_encoder"][f"module.backbone.{name}"])
    tables = 0 if second else 3
    assert len(found.left_out) == tables
    used = sum(math.prod(w.shape) for part in found.parts.values() for w in part.values())
    given = sum(
        value.numel()
        for state in content.values()
        for name, value in state.items()
        if not name.endswith("pos_embed")
    )
    assert used == given
