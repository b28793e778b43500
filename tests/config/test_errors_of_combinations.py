"""Keys that are valid one by one but impossible together: each gives one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.bad_configs import check_sentence
from tests.helpers.paths import REPOSITORY
from vjepa_fast.config import load_config
from vjepa_fast.errors import UserError

CONFIGS = REPOSITORY / "configs"
NO_CONTEXT = (
    "found that a block can fill the whole grid {} and leave no context, expected free tokens in "
    "some positions of the blocks; lower the upper end of spatial_scale or temporal_scale"
)
NO_TARGET = (
    "found that a block can have the size {} and give no target, expected at least one token; "
    "raise the lower end of spatial_scale or narrow aspect_ratio"
)

LENGTHS = {"data.manifests": ["a.csv", {"path": "b.csv", "num_frames": 64, "fps": 4}]}
WHY = "masks.truncate_group 24, whose clips have one length, since data.manifests have several"

# What is changed in configs/vith16.json (key: new value), the key with which the sentence must
# start, and the rest of it.
BAD = {
    "probe without a label": (
        {"log.probe_every": 100},
        "log.probe_label",
        "found none with log.probe_every 100, expected what the probe is to predict; name a column "
        "label_NAME or value_NAME of data.manifests by its NAME",
    ),
    "probe of a sharded encoder": (
        {
            "log.probe_every": 100,
            "log.probe_label": "action",
            "teacher": {"mode": "frozen", "checkpoint": "runs/other", "momentum": [1.0, 1.0]},
            "zero.stage": 3,
        },
        "zero.stage",
        "found 3 with log.probe_every and a frozen target encoder, expected 0, 1 or 2, since no "
        "process holds the trained encoder as a whole; set zero.stage to 2 or log.probe_every to "
        "null",
    ),
    "crop and patch": (
        {"data.crop_size": 225},
        "data.crop_size",
        "found 225, expected a multiple of model.patch_size 16; choose e.g. 224",
    ),
    "crop below patch": (
        {"data.crop_size": 8},
        "data.crop_size",
        "found 8, expected a multiple of model.patch_size 16; choose e.g. 16",
    ),
    "frames and tubelet": (
        {"data.num_frames": 15},
        "data.num_frames",
        "found 15, expected a multiple of model.tubelet_size 2; choose e.g. 16",
    ),
    "encoder heads": (
        {"model.encoder": {"width": 100, "depth": 2, "heads": 3}},
        "model.encoder.width",
        "found 100, expected a multiple of its 3 heads; choose e.g. 99, or set model.encoder.heads "
        "to 2",
    ),
    "predictor heads": (
        {"model.predictor.heads": 7},
        "model.predictor.width",
        "found 384, expected a multiple of its 7 heads; choose e.g. 385, or set "
        "model.predictor.heads to 6",
    ),
    "predictor with the encoder's heads": (
        {"model.predictor.width": 100},
        "model.predictor.width",
        "found 100, expected a multiple of its 16 heads; choose e.g. 96, or set "
        "model.predictor.heads to 20",
    ),
    "odd width": (
        {"model.predictor.width": 33, "model.predictor.heads": 3},
        "model.predictor.width",
        "found 33, expected an even number of at least 10, so that each of the three position axes "
        "has features; choose e.g. 34",
    ),
    "width for positions by halves": (
        {"model.uniform_power": False, "model.predictor.width": 100, "model.predictor.heads": 4},
        "model.predictor.width",
        "found 100, expected a multiple of 8, which the position table needs when "
        "model.uniform_power is false; choose e.g. 96",
    ),
    "heads too narrow for rotary positions": (
        {"model.positions": "rope", "model.predictor": {"width": 48, "heads": 12}},
        "model.predictor.heads",
        "found 12 for the width 48, expected heads of at least 6 features, a pair for each axis of "
        "positions rope; choose e.g. 8",
    ),
    "hidden width": (
        {"model.encoder": {"width": 64, "depth": 2, "heads": 16, "mlp_ratio": 2.7}},
        "model.encoder.mlp_ratio",
        "found 2.7, expected a whole hidden width from model.encoder.width 64; choose e.g. 3",
    ),
    "micro-batch": (
        {"optim.global_batch": 100, "optim.micro_batch": 48},
        "optim.micro_batch",
        "found 48, expected a divisor of optim.global_batch 100; choose e.g. 50",
    ),
    "micro-batch, with the group in mind": (
        {"optim.micro_batch": 100},
        "optim.micro_batch",
        "found 100, expected a divisor of optim.global_batch 3072; choose e.g. 96",
    ),
    "micro-batch above the batch": (
        {"optim.global_batch": 24, "optim.micro_batch": 48},
        "optim.micro_batch",
        "found 48, expected a divisor of optim.global_batch 24; choose e.g. 24",
    ),
    "group and batch": (
        {"masks.truncate_group": 7},
        "masks.truncate_group",
        "found 7, expected a divisor of optim.global_batch 3072; choose e.g. 6, or set "
        "masks.truncate to "
        '"none"',
    ),
    "group and micro-batch": (
        {"optim.micro_batch": 16},
        "optim.micro_batch",
        "found 16, expected a multiple or a divisor of masks.truncate_group 24; choose e.g. 12",
    ),
    "micro-batch above the group, with several lengths": (
        LENGTHS | {"optim.micro_batch": 48},
        "optim.micro_batch",
        f"found 48, expected a divisor of {WHY}; choose e.g. 24",
    ),
    "micro-batch across groups, with several lengths": (
        LENGTHS | {"optim.micro_batch": 16, "masks.truncate": "none"},
        "optim.micro_batch",
        f"found 16, expected a divisor of {WHY}; choose e.g. 12",
    ),
    "group and batch, with several lengths": (
        LENGTHS | {"masks.truncate_group": 7, "masks.truncate": "none"},
        "masks.truncate_group",
        "found 7, expected a divisor of optim.global_batch 3072; choose e.g. 6",
    ),
    "clips of a video across groups": (
        LENGTHS | {"data.clips_per_video": 5},
        "data.clips_per_video",
        f"found 5, expected a divisor of {WHY}; choose e.g. 4",
    ),
    "a manifest's frames and tubelet": (
        {"data.manifests": ["a.csv", {"path": "b.csv", "num_frames": 63}]},
        "data.manifests[1].num_frames",
        "found 63, expected a multiple of model.tubelet_size 2; choose e.g. 64",
    ),
    "a step beside a rate": (
        {"data.manifests": [{"path": "b.csv", "frame_step": 2, "fps": 4}]},
        "data.manifests[0].frame_step",
        "found 2 beside fps 4, expected only one of them; remove the other",
    ),
    "frames that no manifest has": (
        {"data.manifests": [{"path": "b.csv", "num_frames": 64}]},
        "data.num_frames",
        "found 16, which no manifest has, expected the frames per clip of one of them; set it to "
        "64",
    ),
    "masks that do not fit a manifest's clips": (
        {
            "data.manifests": ["a.csv", {"path": "b.csv", "num_frames": 2}],
            "masks.specs.1.temporal_scale": [0.5, 0.5],
            "masks.specs.1.spatial_scale": [1.0, 1.0],
            "masks.specs.1.aspect_ratio": [1, 1],
        },
        "masks.specs[1]",
        NO_CONTEXT.format("1x14x14"),
    ),
    "weights and manifests": (
        {"data.weights": [1.0, 2.0]},
        "data.weights",
        "found a list of 2, expected one weight for each of the data.manifests (1); add or remove "
        "weights, or write null",
    ),
    "no context, by rounding": (
        {"masks.specs.1.spatial_scale": [0.7, 1.0], "masks.specs.1.aspect_ratio": [1, 1]},
        "masks.specs[1]",
        NO_CONTEXT.format("8x14x14"),
    ),
    "no context, one block of everything": (
        {"masks.specs.0.spatial_scale": [1.0, 1.0], "masks.specs.0.aspect_ratio": [1, 1]},
        "masks.specs[0]",
        NO_CONTEXT.format("8x14x14"),
    ),
    "no context on a small grid": (
        {"masks.specs.1.spatial_scale": [0.7, 0.95], "data.crop_size": 64},
        "masks.specs[1]",
        NO_CONTEXT.format("8x4x4"),
    ),
    "recomputation that the compiler does": (
        {"compile": True, "activation_checkpointing": "selective"},
        "activation_checkpointing",
        "found selective with compile, expected none or full",
    ),
    "no target": (
        {"masks.specs.0.spatial_scale": [0.001, 0.01]},
        "masks.specs[0]",
        NO_TARGET.format("8x0x0"),
    ),
    "offloaded weights that are not sharded": (
        {"zero.stage": 2, "zero.offload_parameters": True},
        "zero.offload_parameters",
        "found true at zero.stage 2, expected it only at stage 3",
    ),
    "an offloaded optimizer without master weights": (
        {"zero.stage": 0, "zero.offload_optimizer": True, "precision": "fp32"},
        "zero.offload_optimizer",
        "found true at zero.stage 0, expected stage 1, 2 or 3",
    ),
    "compiled blocks whose weights come and go": (
        {"zero.stage": 3, "compile": True},
        "zero.stage",
        "found 3 with compile, expected 0, 1 or 2",
    ),
}


def test_there_are_plenty() -> None:
    assert len(BAD) >= 18


@pytest.mark.parametrize("name", list(BAD))
def test_bad_config(name: str, tmp_path: Path) -> None:
    check_sentence(*BAD[name], tmp_path)


def test_mask_specs_are_checked_on_the_grid_of_the_config() -> None:
    """The same scale is fine on a fine grid and leaves no context on a coarse one."""
    spec = 'masks.specs=[{"num_blocks": 1, "spatial_scale": [0.9, 0.9]}]'
    load_config(CONFIGS / "vith16.json", [spec])
    with pytest.raises(
        UserError, match=r"^masks\.specs\[0\]: found that a block can fill the whole"
    ):
        load_config(CONFIGS / "vith16.json", [spec, "data.crop_size=64"])
    fine = 'masks.specs=[{"num_blocks": 1, "spatial_scale": [0.005, 0.005]}]'
    with pytest.raises(UserError, match=r"^masks\.specs\[0\]: .* give no target"):
        load_config(CONFIGS / "vith16.json", [fine])
    load_config(CONFIGS / "vith16.json", [fine, "data.crop_size=512"])
