"""Values out of range and choices that do not exist: each gives one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.bad_configs import check_sentence

# What is changed in configs/vith16.json (key: new value), the key with which the sentence must
# start, and the rest of it.
BAD = {
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
        'found "", expected a string that is not empty; write e.g. "runs/my_run"',
    ),
    "an interval that is no number": (
        {"log.pictures_every": 0},
        "log.pictures_every",
        "found 0, expected a number of at least 1 or null",
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
    "unknown preset": (
        {"model.encoder": "vit_enormous"},
        "model.encoder",
        'found "vit_enormous", expected one of vit_tiny, vit_small, vit_base, vit_large, vit_huge, '
        "vit_giant, vit_gigantic or an object; "
        'write e.g. "vit_large" or {"width": 1024, "depth": 24, "heads": 16}',
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
}


def test_there_are_plenty() -> None:
    assert len(BAD) >= 18


@pytest.mark.parametrize("name", list(BAD))
def test_bad_config(name: str, tmp_path: Path) -> None:
    check_sentence(*BAD[name], tmp_path)
