"""Unknown, missing and mistyped keys: each gives one sentence that says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.bad_configs import REMOVED, check_sentence

TOP = (
    "one of seed, output, init, objective, data, model, masks, optim, teacher, precision, zero, "
    "compile, activation_checkpointing, log, checkpoint"
)
PAIR = "expected a list of two numbers; write e.g. [0.5, 1.0]"
SPECS = 'write the whole list, e.g. [{"num_blocks": 8, "spatial_scale": [0.15, 0.15]}]'

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
        "histograms_every, wandb, probe_every, probe_label, probe_videos, probe_test; "
        "did you mean log.every?",
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
    "an interval of no steps": (
        {"checkpoint.keep_every": 0},
        "checkpoint.keep_every",
        "found 0, expected a number of at least 1 or null; write e.g. null",
    ),
    "misspelt and so missing": (
        {"optim.warmup_steps": REMOVED, "optim.warmup_step": 1},
        "optim.warmup_step",
        "found an unknown key, expected one of steps, global_batch, micro_batch, start_lr, lr, "
        "lr_schedule, final_lr, warmup_steps, weight_decay, final_weight_decay, betas, eps, "
        "clip_grad, schedule_stretch, loss_exponent, "
        "max_nonfinite_steps; did you mean optim.warmup_steps?",
    ),
    "misspelt in a list": (
        {"masks.specs.1.num_block": 2},
        "masks.specs[1].num_block",
        "found an unknown key, expected one of num_blocks, spatial_scale, temporal_scale, "
        "aspect_ratio, max_temporal_keep, max_keep; did you mean masks.specs[1].num_blocks?",
    ),
    "misspelt and so missing, without a default": (
        {"output": REMOVED, "outputs": "runs/x"},
        "outputs",
        f"found an unknown key, expected {TOP}; did you mean output?",
    ),
    "missing": (
        {"output": REMOVED},
        "output",
        'found nothing, expected this key; add it, e.g. "output": "runs/my_run"',
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
    "number for a string": (
        {"output": 7},
        "output",
        'found 7, expected a string in quotes; write e.g. "runs/my_run"',
    ),
    "text for a list": (
        {"data.manifests": "a.csv"},
        "data.manifests",
        'found "a.csv", expected a list in brackets; write e.g. ["data/train.csv"]',
    ),
    "number in a list of texts": (
        {"data.manifests": [1]},
        "data.manifests[0]",
        "found 1, expected the path of a manifest, or an object with its path; write e.g. "
        '"data/train.csv" or {"path": "data/train.csv", "num_frames": 64}',
    ),
    "a manifest without a path": (
        {"data.manifests": ["a.csv", {"num_frames": 64}]},
        "data.manifests[1].path",
        'found nothing, expected this key; add it, e.g. "path": "data/train.csv"',
    ),
    "a weight in a manifest": (
        {"data.manifests": [{"path": "a.csv", "weight": 1}]},
        "data.manifests[0].weight",
        "found an unknown key, expected one of path, num_frames, frame_step, fps; use one of those",
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
}


def test_there_are_plenty() -> None:
    assert len(BAD) >= 18


@pytest.mark.parametrize("name", list(BAD))
def test_bad_config(name: str, tmp_path: Path) -> None:
    check_sentence(*BAD[name], tmp_path)
