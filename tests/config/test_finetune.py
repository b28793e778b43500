"""Configs of a fine-tuning: the shipped recipes, and mistakes, each as one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.config.finetune.load import load_finetune_config, parse_finetune_config
from vjepa_fast.errors import UserError

FOLDER = REPOSITORY / "configs" / "finetune"
TOP = (
    "one of seed, output, init, label, data, augment, classifier, optim, test, precision, zero, "
    "compile, activation_checkpointing, log, checkpoint"
)


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.stem)
def test_shipped_configs_load_and_survive_a_round_trip(path: Path) -> None:
    config = load_finetune_config(path)
    assert parse_finetune_config(json.loads(config.model_dump_json())) == config


# Of arXiv 2404.08471, Table 11: learning rate, epochs, videos in a batch, drop path, dropout, flip,
# segments of the test.
PAPER = {
    "k400_vitl16": (2e-3, 35, 256, 0.1, 0.0, True, 5),
    "k400_vith16": (5e-4, 25, 1024, 0.2, 0.0, True, 5),
    "ssv2_vitl16": (5e-4, 15, 256, 0.2, 0.5, False, 2),
    "ssv2_vith16": (5e-4, 15, 256, 0.2, 0.5, False, 2),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes(name: str) -> None:
    config = load_finetune_config(FOLDER / f"{name}.json")
    optim, data, augment = config.optim, config.data, config.augment
    videos = optim.global_batch // data.clips_per_video
    own = (optim.lr, optim.epochs, videos, optim.drop_path, optim.head_dropout, data.flip)
    assert (*own, config.test.segments) == PAPER[name]
    assert (data.clips_per_video, config.test.crops, config.classifier.kind) == (2, 3, "linear")
    assert (data.num_frames, data.frame_step, data.crop_size) == (16, 4, 224)
    assert (augment.mixup, augment.cutmix, augment.switch) == (0.8, 1.0, 0.5)
    assert (augment.erasing, augment.color_jitter) == (0.25, 0.4)
    random = augment.randaugment
    assert (random.operations, random.magnitude, random.magnitude_std) == (4, 7.0, 0.5)
    assert (optim.weight_decay, optim.layer_decay, optim.warmup_epochs) == (0.05, 0.75, 5)
    assert optim.label_smoothing == 0.1


def changed(**changes: object) -> dict:
    """The data of the largest config with changes by dotted key, written with two underscores."""
    data = json.loads((FOLDER / "k400_vith16.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = data
        for part in parents:
            node = node.setdefault(part, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return data


BAD = [
    ({"model": {}}, f"model: found an unknown key, expected {TOP}; use one of those, or remove it"),
    ({"lr": 1e-3}, f"lr: found an unknown key, expected {TOP}; did you mean optim.lr?"),
    (
        {"optim__drop_pth": 0.1},
        "optim.drop_pth: found an unknown key, expected one of epochs, warmup_epochs, "
        "global_batch, micro_batch, lr, layer_decay, weight_decay, betas, clip_grad, drop_path, "
        "head_dropout, label_smoothing, max_nonfinite_steps; did you mean optim.drop_path?",
    ),
    (
        {"init": None},
        'init: found nothing, expected this key; add it, e.g. "init": {…}',
    ),
    (
        {"init__checkpoint": None},
        'init.checkpoint: found nothing, expected this key; add it, e.g. "checkpoint": '
        '"runs/vitl16"',
    ),
    (
        {"optim__drop_path": 1.0},
        "optim.drop_path: found 1.0, expected a number below 1; write e.g. 0.1",
    ),
    (
        {"augment__randaugment__magnitude": 11.0},
        "augment.randaugment.magnitude: found 11.0, expected a number of at most 10; write e.g. "
        "7.0",
    ),
    (
        {"classifier__blocks": 4},
        "classifier.blocks: found 4 with classifier.kind linear, expected 1, or 4 with attentive; "
        "set one of these",
    ),
    (
        {"test__crops": 2},
        "test.crops: found 2, expected 1 or 3; choose one of them",
    ),
    (
        {"optim__epochs": 5},
        "optim.warmup_epochs: found 5 of 5 epochs, expected fewer; lower it, or raise optim.epochs",
    ),
    (
        {"optim__micro_batch": 6},
        "optim.micro_batch: found 6, expected a multiple of 4, since a step has 2 clips of one "
        "video, and videos are mixed in pairs; choose e.g. 8",
    ),
    (
        {"optim__micro_batch": 12},
        "optim.micro_batch: found 12, expected a divisor of optim.global_batch 2048; choose e.g. 8",
    ),
    (
        {"zero": {"stage": 3}, "activation_checkpointing": "selective"},
        "activation_checkpointing: found selective at zero.stage 3, expected none or full, since "
        "torch does not find what it saved where the weights are gathered anew; set it to full, "
        "or zero.stage to 2",
    ),
    (
        {"compile": True, "activation_checkpointing": "selective"},
        "activation_checkpointing: found selective with compile, expected none or full, since the "
        "compiler itself recomputes norms and GELU; set it to none",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD, ids=lambda value: str(value)[:40])
def test_mistakes_are_one_sentence(changes: dict, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        parse_finetune_config(changed(**changes))
    assert str(error.value) == sentence


def test_overrides_know_these_keys() -> None:
    path = FOLDER / "ssv2_vitl16.json"
    config = load_finetune_config(path, ["augment.randaugment.operations=0", "optim.epochs=6"])
    assert (config.augment.randaugment.operations, config.optim.epochs) == (0, 6)
    with pytest.raises(UserError, match=r"^optim\.steps: found an unknown key"):
        load_finetune_config(path, ["optim.steps=6"])
