"""What a user may get wrong: each is one sentence, found before anything is trained."""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from vjepa_fast.config.finetune.load import parse_finetune_config
from vjepa_fast.data.prepare.index import index_directory
from vjepa_fast.errors import UserError
from vjepa_fast.finetuning.batches import FinetuneBatches
from vjepa_fast.finetuning.loop import finetune


def relabeled(manifest: Path, folder: Path, label: Callable[[int], object]) -> str:
    """A copy of a manifest, beside its videos, whose row i has this digit; its path."""
    rows = list(csv.DictReader(manifest.open()))
    copy = folder / manifest.name
    for i, row in enumerate(rows):
        row["path"] = str(manifest.parent / row["path"])
        row["label_digit"] = label(i)
    with copy.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(copy)


def mistake(config: dict) -> str:
    with pytest.raises(UserError) as error:
        finetune(parse_finetune_config(config))
    assert not Path(config["output"]).exists() or not any(Path(config["output"]).glob("check*"))
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_labels(finetune_config: Callable[..., dict], demo: Path, tmp_path: Path) -> None:
    train = demo / "train.csv"
    found = mistake(finetune_config(label="action"))
    assert "found" in found and "digit, direction" in found and "action" in found
    found = mistake(finetune_config(data={"train": relabeled(train, tmp_path, lambda i: 3)}))
    assert "label_digit" in found and "two" in found
    found = mistake(
        finetune_config(data={"train": relabeled(train, tmp_path, lambda i: i % 2 - 1)})
    )
    assert "found 24 of 48 videos with a negative number in label_digit" in found
    found = mistake(
        finetune_config(data={"train": relabeled(train, tmp_path, lambda i: 50 + i % 2)})
    )
    assert "test.csv: found no class of" in found and "label_digit" in found


def test_a_class_without_training_videos_is_a_warning(
    finetune_config: Callable[..., dict],
    demo: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    test = relabeled(demo / "test.csv", tmp_path, lambda i: 77 if i < 3 else i % 2)
    config = parse_finetune_config(finetune_config(data={"test": test}))
    with caplog.at_level(logging.WARNING, "vjepa_fast"):
        batches = FinetuneBatches(config, 0, 1)
    assert (batches.target.truth["test"] == -1).sum() == 3
    assert "77" in caplog.text and "count as wrong" in caplog.text


def test_what_it_starts_from(
    finetune_config: Callable[..., dict], pretrained: Path, tmp_path: Path
) -> None:
    found = mistake(finetune_config(init={"checkpoint": str(tmp_path / "none")}))
    assert found.startswith(f"init.checkpoint: {tmp_path / 'none'}: found no such file or folder")
    found = mistake(finetune_config(data={"crop_size": 24}))
    assert found.startswith("data.crop_size: found 24, expected a multiple of 7")
    found = mistake(finetune_config(data={"num_frames": 3}))
    assert found.startswith("data.num_frames: found 3, expected a multiple of 2")
    damaged = tmp_path / "damaged"
    shutil.copytree(pretrained, damaged)
    shard = next(damaged.rglob("shard_00000.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 255
    shard.write_bytes(content)
    found = mistake(finetune_config(init={"checkpoint": str(damaged)}))
    assert "found other bytes than were written" in found
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    found = mistake(finetune_config(init={"checkpoint": str(tmp_path / "other.pt")}))
    assert found.startswith(f"init.checkpoint: {tmp_path / 'other.pt'}: found")


def test_views_are_checked_before_the_training(finetune_config: Callable[..., dict]) -> None:
    found = mistake(finetune_config(test={"segments": 100}))
    assert found.startswith("test.segments: found 100, expected")


def test_images_as_clips(finetune_config: Callable[..., dict], tmp_path: Path) -> None:
    for kind in ("a", "b"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        Image.new("RGB", (40, 32)).save(tmp_path / "images" / kind / "1.png")
    manifest = tmp_path / "images.csv"
    index_directory(tmp_path / "images", manifest, workers=1)
    rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([rows[0] + ",label_digit", rows[1] + ",0", rows[2] + ",1", ""]))
    both = {"train": str(manifest), "test": str(manifest)}
    found = mistake(finetune_config(data=both | {"clips_per_video": 2}))
    assert found.startswith("data.clips_per_video: found 2, but ")
    assert "has only images, expected 1" in found
    found = mistake(finetune_config(data=both, test={"segments": 2}))
    assert found.startswith("test.segments: found 2, but ")
    assert FinetuneBatches(parse_finetune_config(finetune_config(data=both)), 0, 1).steps == 1


def test_too_many_processes(finetune_config: Callable[..., dict]) -> None:
    config = parse_finetune_config(finetune_config(augment={"mixup": 0.8}))
    assert FinetuneBatches(config, 1, 4).accumulation == 1
    with pytest.raises(UserError, match="found 8 clips for 8 processes"):
        FinetuneBatches(config, 0, 8)
