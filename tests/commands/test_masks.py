"""`vjepa-fast masks`: its table counts what the sampler draws; its picture; which clip it shows."""

import json

import numpy as np
import pytest
from PIL import Image

from vjepa_fast.cli import main
from vjepa_fast.commands import cost_of_config
from vjepa_fast.commands import masks as masks_command
from vjepa_fast.config import parse_config
from vjepa_fast.masks.overlay import CONTEXT, TARGET, TRUNCATED, overlay, token_kinds

SPECS = [
    {"num_blocks": 2, "spatial_scale": [0.3, 0.3], "max_keep": 9},
    {"strategy": "random_tube", "ratio": 0.5},
    {"strategy": "mixture", "specs": [{"strategy": "random_tokens", "ratio": 0.75}]},
]


@pytest.fixture
def config_file(small_config, tmp_path, monkeypatch):
    """Writes a small config with these masks; the working directory is an empty folder."""
    monkeypatch.setattr(cost_of_config, "SAMPLED_STEPS", 20)
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(small_config(**changes)))
        return path

    return write


def run(path, *arguments):
    return main(["masks", "--config", str(path), *arguments])


def test_it_draws_over_the_configs_own_data_and_counts(config_file, capsys, tmp_path):
    path = config_file(masks={"specs": SPECS})
    assert run(path, "--output", "pictures/masks.png") == 0
    printed = capsys.readouterr().out
    assert "train/00000.webm (of " in printed and "pictures/masks.png" in printed
    with Image.open(tmp_path / "pictures" / "masks.png") as picture:
        width, height = picture.size
        assert width > 1000 and height > 400
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 1000  # a clip and heat maps, not a blank page
    rows = [line for line in printed.splitlines() if line.startswith("masks.specs")]
    names = ["2 blocks", "random tube 0.5", "mixture of 1"]
    assert [row.split("(")[1].split(")")[0] for row in rows] == names
    # 4 x 3 x 3 tokens: of a tube's 9 positions 4 stay, of the 36 tokens 9.
    assert rows[1].split(")")[1].split() == ["16", "16", "20", "20", "0.56", "0", "(0%"]
    assert rows[2].split(")")[1].split() == ["9", "9", "27", "27", "0.75", "0", "(0%"]


def test_the_counts_are_those_of_the_run(small_config, monkeypatch):
    monkeypatch.setattr(cost_of_config, "SAMPLED_STEPS", 20)
    config = parse_config(small_config(masks={"specs": SPECS, "truncate_group": 4}))
    sampler = config.masks.sampler(config.grid, config.seed)
    seen, text = masks_command.count(config, sampler)
    counted = cost_of_config.count_tokens(config)  # what `vjepa-fast info` says: the same clips
    batches = [sampler.sample(step, range(8 * step, 8 * step + 4)) for step in range(20)]
    context = np.mean([masks.context_seqlens[0].double().mean() for masks in batches])
    target = np.mean([masks.target_seqlens[0].double().mean() for masks in batches])
    row = next(line for line in text.splitlines() if line.startswith("masks.specs[0]"))
    drawn, kept, _, kept_target, _, lost = row.split(")")[1].split()[:6]
    assert (kept, kept_target) == (f"{context:.0f}", f"{target:.0f}")
    assert lost == f"{36 - context - target:.0f}" and int(drawn) >= int(kept)
    assert seen.shape == (3, *config.grid) and seen.min() >= 0 and seen.max() <= 1
    assert seen[0].sum() == pytest.approx(context)
    for side, mean in zip(counted, (context, target), strict=True):
        assert np.mean([row[0] for row in side]) == pytest.approx(mean)


def test_every_token_is_of_one_kind(small_config):
    config = parse_config(small_config(masks={"specs": SPECS}))
    masks = config.masks.sampler(config.grid, config.seed).sample(0, range(8))
    kinds = token_kinds(masks, config.grid)
    assert kinds.shape == (3, 8, *config.grid)
    for m in range(3):
        for clip in range(8):
            flat = kinds[m, clip].ravel()
            assert np.flatnonzero(flat == CONTEXT).tolist() == masks.context(m)[clip].tolist()
            assert np.flatnonzero(flat == TARGET).tolist() == masks.target(m)[clip].tolist()
    assert (kinds[0] == TRUNCATED).any() and not (kinds[1] == TRUNCATED).any()


def test_tints_cover_their_patches_alone():
    picture = np.full((6, 6, 3), 200, dtype=np.uint8)
    kinds = np.full((3, 3), CONTEXT)
    kinds[0, 2], kinds[2, 1] = TARGET, TRUNCATED
    tinted = overlay(picture, kinds, 2)
    assert (tinted[0:2, 4:6] == tinted[0, 4]).all() and tinted[0, 4, 2] > tinted[0, 4, 0]
    assert (tinted[4:6, 2:4] == tinted[4, 2]).all() and tinted[4, 2, 0] > tinted[4, 2, 2]
    assert (tinted == picture).all(axis=2).sum() == 36 - 8


def test_without_the_configs_data_it_takes_the_demo_or_renders_one(
    config_file, demo, capsys, tmp_path
):
    path = config_file(data={"manifests": ["elsewhere.csv"], "num_frames": 8, "crop_size": 24})
    assert run(path) == 0
    assert "masks over a rendered demo clip: masks.png" in capsys.readouterr().out
    assert (tmp_path / "masks.png").is_file()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(demo)
    assert run(path) == 0
    assert f"(of {masks_command.DEMO})" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_one_sentence(config_file, capsys):
    assert run(config_file(), "--output", "masks.nosuch") == 2
    error = capsys.readouterr().err
    assert "error: --output: found masks.nosuch, which cannot be written" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("output", ["pictures", "masks", "folder.png", ".png"])
def test_an_output_that_would_land_elsewhere_is_rejected(output, config_file, capsys, tmp_path):
    """Matplotlib adds an ending where there is none."""
    path = config_file()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run(path, "--output", output) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: --output: found ") and printed.err.count("\n") == 1
    assert output in printed.err and printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["masks", "info"])
def test_masks_that_never_leave_context_are_one_sentence(command, config_file, capsys):
    # Sixty blocks that leave one of three rows each: all would have to coincide.
    spec = {"num_blocks": 60, "spatial_scale": [0.99, 0.99], "aspect_ratio": [0.75, 0.75]}
    path = config_file(masks={"specs": [spec]})
    assert main([command, "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert "error: masks.specs: found no context token for clip" in error
    assert "Traceback" not in error


def test_the_demos_frames_are_spread_over_longer_clips(small_config, demo, monkeypatch):
    monkeypatch.setattr(masks_command, "DEMO", demo / "train.csv")
    data = {"manifests": ["elsewhere.csv"], "num_frames": 16, "frame_step": 4, "crop_size": 24}
    clip, source = masks_command.find_clip(parse_config(small_config(data=data)))
    assert clip.shape == (16, 24, 24, 3) and clip.dtype == np.uint8 and "00000.webm" in source
    assert (clip[::2] == clip[1::2]).all()
    assert all((clip[i] != clip[i + 2]).any() for i in range(0, 14, 2))
