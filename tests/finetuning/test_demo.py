"""configs/finetune/tiny.json learns, on fewer demo videos and from an encoder that is untrained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.config import load_config
from vjepa_fast.config.finetune.load import load_finetune_config
from vjepa_fast.data.prepare.demo.write import make_demo
from vjepa_fast.finetuning.loop import finetune
from vjepa_fast.training.loop import pretrain

CONFIGS = REPOSITORY / "configs"


def test_the_tiny_config_sees_clips_as_its_encoder_did() -> None:
    tuned = load_finetune_config(CONFIGS / "finetune" / "tiny.json", []).data
    data = load_config(CONFIGS / "v2_tiny.json", []).data
    for key in ("num_frames", "frame_step", "crop_size", "area", "aspect_ratio"):
        assert getattr(tuned, key) == getattr(data, key)


@pytest.mark.slow
def test_the_tiny_config_learns(tmp_path: Path) -> None:
    """0.49 of 8 directions on one processor, 0.41 after 150 steps of pretraining; chance is 0.125,
    with a deviation of 0.019 among 300 videos."""
    make_demo(tmp_path / "demo", clips=1500, test_clips=300, workers=2)
    train, test = (str(tmp_path / "demo" / f"{split}.csv") for split in ("train", "test"))
    own = [f'data.manifests=["{train}"]', f"output={tmp_path / 'v2_tiny'}", "optim.steps=1"]
    own += ["optim.warmup_steps=1"]
    run = pretrain(load_config(CONFIGS / "v2_tiny.json", own))
    own = [f"data.train={train}", f"data.test={test}", f"init.checkpoint={run}"]
    own += [f"output={tmp_path / 'finetuned'}", "optim.epochs=4"]
    results = finetune(load_finetune_config(CONFIGS / "finetune" / "tiny.json", own))
    assert results["accuracy"]["top1"] > 0.3
