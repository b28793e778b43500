"""Bad configs: each gives one sentence that names the key, what was found, what to do."""

import json
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.config import load_config, parse_config
from vjepa_fast.errors import UserError

CONFIGS = REPOSITORY / "configs"
TOP = (
    "one of seed, output, data, model, masks, optim, teacher, precision, zero, compile, "
    "activation_checkpointing, log, checkpoint"
)
PAIR = "expected a list of two numbers; write e.g. [0.5, 1.0]"
SPECS = 'write the whole list, e.g. [{"num_blocks": 8, "spatial_scale": [0.15, 0.15]}]'
NO_CONTEXT = (
    "found that a block can fill the whole grid {} and leave no context, expected free tokens for "
    "some place of its blocks, lower spatial_scale's or temporal_scale's upper end"
)
NO_TARGET = (
    "found that a block can have the size {} and give no target, expected at least one token, "
    "raise spatial_scale's lower end or narrow aspect_ratio"
)
REMOVED = object()

# What is changed in configs/vith16.json (key: new value), the key with which the sentence must
# start, and the rest of it.
BAD = {
    # unknown and missing keys
    "unknown top": (
        {"modle": {}},
        "modle",
        f"found an unknown key, expected {TOP}; did you mean model?",
    ),
    "unknown, nothing near": (
        {"xyzzy": 1},
        "xyzzy",
        f"found an unknown key, expected {TOP}; use one of those, or remove it",
    ),
    "misplaced": (
        {"lr": 1e-4},
        "lr",
        f"found an unknown key, expected {TOP}; did you mean optim.lr?",
    ),
    "misspelt": (
        {"log.evry": 5},
        "log.evry",
        "found an unknown key, expected one of every, collapse_every, pictures_every, "
        "histograms_every, wandb; did you mean log.every?",
    ),
    "renamed": (
        {"checkpoint.keep": 2},
        "checkpoint.keep",
        "found an unknown key, expected one of every, keep_last, keep_every, background; did you "
        "mean checkpoint.keep_last?",
    ),
    "background is no number": (
        {"checkpoint.background": 1},
        "checkpoint.background",
        "found 1, expected true or false; write e.g. false",
    ),
    "kept for good never": (
        {"checkpoint.keep_every": 0},
        "checkpoint.keep_every",
        "found 0, expected a number of at least 1 or null; write e.g. null",
    ),
    "misspelt and so missing": (
        {"optim.warmup_steps": REMOVED, "optim.warmup_step": 1},
        "optim.warmup_step",
        "found an unknown key, expected one of steps, global_batch, micro_batch, start_lr, lr, "
        "final_lr, warmup_steps, weight_decay, final_weight_decay, betas, eps, clip_grad, "
        "schedule_stretch, loss_exponent, "
        "max_nonfinite_steps; did you mean optim.warmup_steps?",
    ),
    "misspelt in a list": (
        {"masks.specs.1.num_block": 2},
        "masks.specs[1].num_block",
        "found an unknown key, expected one of num_blocks, spatial_scale, temporal_scale, "
        "aspect_ratio, max_temporal_keep, max_keep; did you mean masks.specs[1].num_blocks?",
    ),
    "missing": (
        {"optim.steps": REMOVED},
        "optim.steps",
        'found nothing, expected this key; add it, e.g. "steps": 90000',
    ),
    "missing in a list": (
        {"masks.specs.0.num_blocks": REMOVED},
        "masks.specs[0].num_blocks",
        'found nothing, expected this key; add it, e.g. "num_blocks": 8',
    ),
    "missing section": (
        {"data": REMOVED},
        "data",
        'found nothing, expected this key; add it, e.g. "data": {…}',
    ),
    # wrong types
    "quoted whole number": (
        {"optim.steps": "3"},
        "optim.steps",
        'found "3", expected a whole number; write 3 without quotes',
    ),
    "quoted number": (
        {"optim.lr": "1e-3"},
        "optim.lr",
        'found "1e-3", expected a number; write 0.001 without quotes',
    ),
    "word for a number": (
        {"optim.lr": "fast"},
        "optim.lr",
        'found "fast", expected a number; write e.g. 0.000625',
    ),
    "fraction for a whole number": (
        {"optim.steps": 3.7},
        "optim.steps",
        "found 3.7, expected a whole number; write 4",
    ),
    "3.0 for a whole number": (
        {"optim.steps": 3.0},
        "optim.steps",
        "found 3.0, expected a whole number; write 3",
    ),
    "true for a whole number": (
        {"optim.micro_batch": True},
        "optim.micro_batch",
        "found true, expected a whole number; write e.g. 24",
    ),
    "true for a number": (
        {"optim.lr": True},
        "optim.lr",
        "found true, expected a number; write e.g. 0.000625",
    ),
    "1 for true": (
        {"data.flip": 1},
        "data.flip",
        "found 1, expected true or false; write e.g. true",
    ),
    "quoted true": (
        {"compile": "True"},
        "compile",
        'found "True", expected true or false; write true without quotes',
    ),
    "null for a number": (
        {"optim.lr": None},
        "optim.lr",
        "found null, expected a number; write e.g. 0.000625",
    ),
    "number for a text": (
        {"output": 7},
        "output",
        'found 7, expected a text in quotes; write e.g. "runs/my_run"',
    ),
    "text for a list": (
        {"data.manifests": "a.csv"},
        "data.manifests",
        'found "a.csv", expected a list in brackets; write e.g. ["data/train.csv"]',
    ),
    "number in a list of texts": (
        {"data.manifests": [1]},
        "data.manifests[0]",
        'found 1, expected a text in quotes; write the whole list, e.g. ["data/train.csv"]',
    ),
    "number for a section": (
        {"data": 3},
        "data",
        'found 3, expected an object in braces; write {"manifests": …}',
    ),
    "list for a section": (
        {"zero": [1]},
        "zero",
        'found [1], expected an object in braces; write {"stage": …}',
    ),
    "number for a spec": (
        {"masks.specs": [3]},
        "masks.specs[0]",
        f"found 3, expected an object in braces; {SPECS}",
    ),
    "one number for a range": ({"data.area": 0.3}, "data.area", f"found 0.3, {PAIR}"),
    "three numbers for a range": (
        {"optim.betas": [0.9, 0.95, 0.999]},
        "optim.betas",
        f"found [0.9, 0.95, 0.999], {PAIR}",
    ),
    "text for heads": (
        {"model.predictor.heads": "x"},
        "model.predictor.heads",
        'found "x", expected a whole number or null; write e.g. null',
    ),
    # out of range
    "nan": (
        {"optim.lr": float("nan")},
        "optim.lr",
        "found NaN, expected a finite number; write e.g. 0.000625",
    ),
    "infinity": (
        {"optim.clip_grad": float("inf")},
        "optim.clip_grad",
        "found Infinity, expected a finite number or null; write e.g. 10.0",
    ),
    "negative rate": (
        {"optim.lr": -1e-4},
        "optim.lr",
        "found -0.0001, expected a number above 0; write e.g. 0.000625",
    ),
    "negative decay": (
        {"optim.weight_decay": -0.1},
        "optim.weight_decay",
        "found -0.1, expected a number of at least 0; write e.g. 0.04",
    ),
    "negative warm-up": (
        {"optim.warmup_steps": -1},
        "optim.warmup_steps",
        "found -1, expected a number of at least 0; write e.g. 12000",
    ),
    "negative seed": (
        {"seed": -1},
        "seed",
        "found -1, expected a number of at least 0; write e.g. 0",
    ),
    "no clips": (
        {"optim.global_batch": 0},
        "optim.global_batch",
        "found 0, expected a number of at least 1; write e.g. 3072",
    ),
    "clipped to nothing": (
        {"optim.clip_grad": 0},
        "optim.clip_grad",
        "found 0, expected a number above 0 or null; write e.g. 10.0",
    ),
    "too many steps": (
        {"optim.steps": 10**12},
        "optim.steps",
        "found 1000000000000, expected a number of at most 2147483647; write e.g. 90000",
    ),
    "area above 1": (
        {"data.area": [0.3, 1.5]},
        "data.area[1]",
        "found 1.5, expected a number of at most 1; write the whole list, e.g. [0.3, 1.0]",
    ),
    "area of nothing": (
        {"data.area": [0, 1]},
        "data.area[0]",
        "found 0, expected a number above 0; write the whole list, e.g. [0.3, 1.0]",
    ),
    "area reversed": (
        {"data.area": [1.0, 0.3]},
        "data.area",
        "found [1.0, 0.3], expected the smaller number first; write [0.3, 1.0]",
    ),
    "aspect reversed": (
        {"masks.specs.1.aspect_ratio": [1.5, 0.75]},
        "masks.specs[1].aspect_ratio",
        "found [1.5, 0.75], expected the smaller number first; write [0.75, 1.5]",
    ),
    "scale above 1": (
        {"masks.specs.0.spatial_scale": [0.5, 2]},
        "masks.specs[0].spatial_scale[1]",
        "found 2, expected a number of at most 1; write the whole list, e.g. [0.15, 0.15]",
    ),
    "beta of 1": (
        {"optim.betas": [0.9, 1.0]},
        "optim.betas[1]",
        "found 1.0, expected a number below 1; write the whole list, e.g. [0.9, 0.999]",
    ),
    "momentum above 1": (
        {"teacher.momentum": [0.99, 1.01]},
        "teacher.momentum[1]",
        "found 1.01, expected a number of at most 1; write the whole list, e.g. [0.998, 1.0]",
    ),
    "momentum falling": (
        {"teacher.momentum": [1.0, 0.99]},
        "teacher.momentum",
        "found [1.0, 0.99], expected the smaller number first; write [0.99, 1.0]",
    ),
    "schedule squeezed": (
        {"optim.schedule_stretch": 0.5},
        "optim.schedule_stretch",
        "found 0.5, expected a number of at least 1; write e.g. 1.25",
    ),
    "nothing kept": (
        {"masks.specs.0.max_keep": 0},
        "masks.specs[0].max_keep",
        "found 0, expected a number of at least 1 or null; write e.g. null",
    ),
    "no specs": (
        {"masks.specs": []},
        "masks.specs",
        "found [], expected at least 1 item; write e.g. ",
    ),
    "no manifests": (
        {"data.manifests": []},
        "data.manifests",
        'found [], expected at least 1 item; write e.g. ["data/train.csv"]',
    ),
    "no output": (
        {"output": ""},
        "output",
        'found "", expected a text that is not empty; write e.g. "runs/my_run"',
    ),
    # choices
    "backend": (
        {"data.backend": "dalli"},
        "data.backend",
        "found \"dalli\", expected 'auto', 'dali' or 'pyav'; write e.g. \"dali\"",
    ),
    "precision": (
        {"precision": "fp16"},
        "precision",
        "found \"fp16\", expected 'auto', 'bf16' or 'fp32'; write e.g. \"bf16\"",
    ),
    "truncate": (
        {"masks.truncate": None},
        "masks.truncate",
        "found null, expected 'batch', 'batch-random' or 'none'; write e.g. \"",
    ),
    "stage 4": (
        {"zero.stage": 4},
        "zero.stage",
        "found 4, expected a ZeRO stage of 0, 1, 2 or 3; choose e.g. 1",
    ),
    "offloaded weights that are not sharded": (
        {"zero.stage": 2, "zero.offload_parameters": True},
        "zero.offload_parameters",
        "found true at zero.stage 2, expected it at stage 3 alone",
    ),
    "an offloaded optimiser without masters": (
        {"zero.stage": 0, "zero.offload_optimizer": True, "precision": "fp32"},
        "zero.offload_optimizer",
        "found true at zero.stage 0, expected stage 1, 2 or 3",
    ),
    "compiled blocks whose weights come and go": (
        {"zero.stage": 3, "compile": True},
        "zero.stage",
        "found 3 with compile, expected 0, 1 or 2",
    ),
    "unknown preset": (
        {"model.encoder": "vit_giant"},
        "model.encoder",
        'found "vit_giant", expected one of vit_tiny, vit_small, vit_base, vit_large, vit_huge '
        "or an "
        'object; write e.g. "vit_large" or {"width": 1024, "depth": 24, "heads": 16}',
    ),
    "number for an encoder": (
        {"model.encoder": 3},
        "model.encoder",
        'found 3, expected an object in braces; write e.g. "vit_large"',
    ),
    "half an encoder": (
        {"model.encoder": {"width": 64, "heads": 4}},
        "model.encoder.depth",
        'found nothing, expected this key; add it, e.g. "depth": 24',
    ),
    # impossible combinations
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
        "has a share; choose e.g. 34",
    ),
    "width for positions by halves": (
        {"model.uniform_power": False, "model.predictor.width": 100, "model.predictor.heads": 4},
        "model.predictor.width",
        "found 100, expected a multiple of 8, which the position table needs when "
        "model.uniform_power is false; choose e.g. 96",
    ),
    "hidden width": (
        {"model.encoder": {"width": 64, "depth": 2, "heads": 16, "mlp_ratio": 2.7}},
        "model.encoder.mlp_ratio",
        "found 2.7, expected a whole hidden width from model.encoder.width 64; choose e.g. 3",
    ),
    "micro-batch": (
        {"optim.global_batch": 100, "optim.micro_batch": 48},
        "optim.micro_batch",
        "48 does not divide optim.global_batch 100; choose a divisor, e.g. 50",
    ),
    "micro-batch, with the group in mind": (
        {"optim.micro_batch": 100},
        "optim.micro_batch",
        "100 does not divide optim.global_batch 3072; choose a divisor, e.g. 96",
    ),
    "micro-batch above the batch": (
        {"optim.global_batch": 24, "optim.micro_batch": 48},
        "optim.micro_batch",
        "48 does not divide optim.global_batch 24; choose a divisor, e.g. 24",
    ),
    "group and batch": (
        {"masks.truncate_group": 7},
        "masks.truncate_group",
        "7 does not divide optim.global_batch 3072; choose a divisor, e.g. 6, or set "
        "masks.truncate to "
        '"none"',
    ),
    "group and micro-batch": (
        {"optim.micro_batch": 16},
        "optim.micro_batch",
        "16 is neither a multiple nor a divisor of masks.truncate_group 24; choose e.g. 12",
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
    "an interval that is no number": (
        {"log.pictures_every": 0},
        "log.pictures_every",
        "found 0, expected a number of at least 1 or null",
    ),
    "no target": (
        {"masks.specs.0.spatial_scale": [0.001, 0.01]},
        "masks.specs[0]",
        NO_TARGET.format("8x0x0"),
    ),
}


def _bad_config(changes: dict[str, object]) -> dict:
    data = json.loads((CONFIGS / "vith16.json").read_text())
    for path, value in changes.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        node = data
        for part in parents:
            node = node[part]
        if value is REMOVED:
            del node[last]
        else:
            node[last] = value
    return data


def test_there_are_plenty() -> None:
    assert len(BAD) >= 40


@pytest.mark.parametrize("name", list(BAD))
def test_bad_config(name: str, tmp_path: Path) -> None:
    changes, key, rest = BAD[name]
    data = _bad_config(changes)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "bad.json")
    sentence = str(error.value)
    assert sentence.startswith(f"{key}: {rest}")
    assert "\n" not in sentence
    with pytest.raises(UserError) as from_python:
        parse_config(data)
    assert str(from_python.value) == sentence


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
