"""The reports of a run: pictures, metrics, histograms, Weights & Biases, environment."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.paths import REPOSITORY
from tests.helpers.trainers import SLOW_SECOND
from vjepa_fast.config import parse_config
from vjepa_fast.errors import UserError
from vjepa_fast.masks.overlay import CONTEXT, TARGET
from vjepa_fast.pictures import titled
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.monitoring.environment import environment, processor
from vjepa_fast.training.monitoring.pictures import (
    TITLES,
    feature_picture,
    mask_picture,
    principal_colors,
    shown_frames,
    tiles,
)
from vjepa_fast.training.monitoring.writer import MetricsWriter, read_metrics
from vjepa_fast.training.timers import PARTS

STAND_IN = '''
"""Records the calls that the real package would get."""
calls = []
class Run:
    def log(self, values, step): calls.append(("log", step, sorted(values)))
    def finish(self): calls.append(("finish",))
def init(**options):
    calls.append(("init", options))
    return Run()
'''


class _Messages(logging.Handler):
    """Records log messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.parametrize("model", SLOW_SECOND)
def test_what_a_run_leaves(
    small_config: Callable[..., dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: dict,
) -> None:
    (tmp_path / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    logger, messages = logging.getLogger("vjepa_fast"), _Messages()
    monkeypatch.setattr(logger, "handlers", [messages])
    monkeypatch.setattr(logger, "level", logging.INFO)
    log = {"every": 2, "pictures_every": 3, "histograms_every": 5, "wandb": "trials"}
    run = pretrain(parse_config(small_config(log=log, model=model)))
    import wandb

    lines = [m for m in messages.lines if m.startswith("step ")]
    assert len(lines) == 5 and lines[-1].startswith("step 8 of 8: loss ")
    assert lines[1].endswith(" left") and "clips/s" in lines[1]

    rows = [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    assert all(row[f"ms_{part}"] > 0 for row in rows for part in PARTS)

    names = sorted(path.name for path in (run / "pictures").iterdir())
    steps = ("00000003", "00000006", "00000008")  # of 8
    assert names == sorted(f"step_{s}_{k}.png" for s in steps for k in ("features", "masks"))
    for name in names:
        with Image.open(run / "pictures" / name) as picture:
            width, height = picture.size
            below = (6 if "features" in name else 2) * 100 - 4
            assert width == 4 * 96 + 3 * 4 and height > below
            title = np.asarray(picture)[: height - below]
            assert (title[..., 3] == 255).all() and title[..., :3].min() < 50

    board = EventAccumulator(str(run / "tensorboard"), {"images": 0, "histograms": 0}).Reload()
    assert [e.step for e in board.Images("features")] == [2, 5, 7]
    tags = board.Tags()["histograms"]
    assert {"target_features", "target_encoder/patch_embed", "target_encoder/block_1"} <= set(tags)
    assert [e.step for e in board.Histograms("target_features")] == [4, 7]

    assert wandb.calls[0][0] == "init" and wandb.calls[-1] == ("finish",)
    options = wandb.calls[0][1]
    assert options["project"] == "trials" and options["resume"] == "allow"
    assert options["config"]["optim"]["steps"] == 8
    logged = [call for call in wandb.calls if call[0] == "log"]
    assert {call[1] for call in logged if "loss" in call[2]} == {row["step"] for row in rows}

    found = json.loads((run / "environment.json").read_text())
    assert found["torch"] == torch.__version__ and found["processes"] == "1"


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^log\.wandb: found 'p' but no module wandb.* null$"):
        MetricsWriter(tmp_path, 0, "p", {})


def test_environment_names_commit_and_device() -> None:
    found = environment(torch.device("cpu"), 4)
    assert found["processes"] == "4" and found["device"].startswith("CPU")
    assert found["cpu"] == processor()
    assert set(found["commit"].removesuffix("-dirty")) <= set("0123456789abcdef")


def test_the_processor_has_a_name_and_the_level_that_torch_uses() -> None:
    """Not the one that the CPU has: ATEN_CPU_CAPABILITY lowers it."""
    program = "from vjepa_fast.training.monitoring.environment import processor as p; print(p())"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    here = processor()
    assert here.endswith(f" (torch: {torch.backends.cpu.get_cpu_capability()})")
    assert found == here.rpartition(" (torch: ")[0] + " (torch: DEFAULT)"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    for name in [line.partition(":")[2].strip() for line in lines if "model name" in line][:1]:
        assert here.startswith(f"{name} (torch: ")


def test_colors_follow_what_varies_most() -> None:
    """Features of one pattern and little noise show that pattern as the first color."""
    grid, clips = (2, 4, 4), 2
    generator = torch.Generator().manual_seed(0)
    pattern = torch.linspace(-1, 1, 32).repeat(clips, 1)
    base = torch.randn(24, generator=generator)
    features = 0.01 * torch.randn(clips, 32, 24, generator=generator) + pattern[..., None] * base
    features = features + torch.randn(24, generator=generator)
    colors = principal_colors(features, grid)
    assert colors.shape == (clips, *grid, 3) and colors.min() >= 0 and colors.max() <= 1
    red = colors[..., 0].reshape(clips, 32)
    correlation = np.corrcoef(red[0], pattern[0].numpy())[0, 1]
    assert abs(correlation) > 0.9
    assert np.allclose(red[0], red[1], atol=0.1)
    assert np.array_equal(colors, principal_colors(features, grid))


def test_equal_features_have_a_picture() -> None:
    video = torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8)
    assert feature_picture(video, torch.ones(1, 8, 12), (2, 2, 2)).dtype == np.uint8


def test_masks_tint_all_but_the_context(small_config: Callable[..., dict]) -> None:
    config = parse_config(small_config())
    masks = config.masks.sampler(config.grid, 0).sample(0, range(8))
    video = torch.full((1, 8, 24, 24, 3), 200, dtype=torch.uint8)
    picture = mask_picture(video, masks, config.grid)
    kinds = np.full(masks.num_tokens, TARGET)
    kinds[masks.context(0)[0].numpy()] = CONTEXT
    for column, t in enumerate(shown_frames(config.grid[0])):
        frame = picture[:96, column * 100 : column * 100 + 96, :3]
        centers = frame[16::32, 16::32].reshape(9, 3)
        of_frame = kinds.reshape(config.grid)[t].ravel()
        assert ((centers == 200).all(axis=1) == (of_frame == CONTEXT)).all()


@pytest.mark.parametrize("width", [96, 396, 908])
@pytest.mark.parametrize("kind", TITLES)
def test_a_title_is_above_and_whole(kind: str, width: int) -> None:
    """Within the picture's width, black on white; the picture below is unchanged."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, width, 4), np.uint8)
    out = titled(pixels, TITLES[kind].format(done=90_000, network="target encoder"))
    band = out[:-40]
    assert out.dtype == np.uint8 and np.array_equal(out[-40:], pixels)
    assert (band[..., 3] == 255).all()
    inked = (band[..., :3] < 128).all(axis=2)
    ys, xs = inked.nonzero()
    assert len(xs) > 500 and xs.min() >= 2 and xs.max() < width - 2
    assert ys.min() >= 2 and ys.max() < len(band) - 2
    more = titled(
        pixels, TITLES[kind].format(done=90_000, network="target encoder") + " more words" * 12
    )
    assert len(more) > len(out)


def test_tiles_are_laid_out_with_gaps() -> None:
    black, white = np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)
    out = tiles([[black, white], [white, black]])
    assert out.shape == (2 * 96 + 4, 2 * 144 + 4, 4)
    assert (out[:96, 148:] == 255).all() and (out[100:, :144] == 255).all()
    assert (out[:96, :144, :3] == 0).all() and (out[96:100] == 0).all()
