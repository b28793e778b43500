"""Augmentation: all frames change alike, by the sample id alone; two videos are mixed."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from torch import Tensor

from vjepa_fast.config.finetune.schema import AugmentConfig, RandAugmentConfig
from vjepa_fast.errors import UserError
from vjepa_fast.finetuning.augment import Augmenter

NONE = {"color_jitter": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
STRONG = RandAugmentConfig(operations=4, magnitude=9.0)
CLASSES, SMOOTHING = 5, 0.1
IDS = np.arange(8, 16)


def augmenter(operations: int = 0, clips: int = 1, seed: int = 0, **changes: float) -> Augmenter:
    config = AugmentConfig(
        randaugment=STRONG.model_copy(update={"operations": operations}), **{**NONE, **changes}
    )
    return Augmenter(config, CLASSES, SMOOTHING, clips, seed)


def still_videos(count: int = 8) -> Tensor:
    """Clips of three equal frames, uint8 [count, 3, 16, 16, 3]."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, 1, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return frames.expand(-1, 3, -1, -1, -1).contiguous()


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
ALL = {"operations": 4, "color_jitter": 0.4, "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0}
SINGLY = [{"operations": 4}, {"color_jitter": 0.4}, {"erasing": 1.0}, {"mixup": 1.0}]


@pytest.mark.parametrize("changes", [*SINGLY, {"cutmix": 1.0}, ALL], ids=str)
def test_all_frames_of_a_clip_change_alike(changes: dict) -> None:
    video = still_videos()
    found, targets = augmenter(**changes)(video, LABELS, IDS)
    assert found.shape == video.shape and found.dtype == torch.uint8 and found.is_contiguous()
    assert torch.equal(found, found[:, :1].expand_as(found))
    changed = [not torch.equal(a, b) for a, b in zip(found, video, strict=True)]
    assert sum(changed) >= len(video) // 2
    torch.testing.assert_close(targets.sum(1), torch.ones(8))


def test_it_is_a_function_of_the_sample_id() -> None:
    """So of neither the micro-batch nor the rank, nor of torch's generator, which it leaves."""
    video = still_videos()
    torch.manual_seed(5)
    whole = augmenter(**ALL)(video, LABELS, IDS)
    state = torch.get_rng_state()
    halves = [
        augmenter(**ALL)(video[part], LABELS[part], IDS[part]) for part in (slice(4), slice(4, 8))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    for found, pieces in zip(whole, zip(*halves, strict=True), strict=True):
        assert torch.equal(found, torch.cat(pieces))
    other_seed = augmenter(**ALL, seed=1)(video, LABELS, IDS)
    other_ids = augmenter(**ALL)(video, LABELS, IDS + 8)
    for found, _ in (other_seed, other_ids):
        assert not torch.equal(found, whole[0])


def test_without_augmentation_only_the_targets_are_smooth() -> None:
    video = still_videos()
    found, targets = augmenter()(video, LABELS, IDS)
    assert found is video
    expected = torch.full((8, CLASSES), SMOOTHING / CLASSES)
    expected[torch.arange(8), LABELS] += 1 - SMOOTHING
    torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("changes", [{"mixup": 1.0}, {"cutmix": 1.0}], ids=str)
def test_two_videos_are_mixed_in_the_ratio_of_their_targets(changes: dict, clips: int) -> None:
    """Videos are of one gray level, so that the mean shows the share; each clip of a video meets
    one of the other video of its pair."""
    levels = torch.arange(0, 240, 240 // 8, dtype=torch.uint8)
    levels = levels[: 8 // clips].repeat_interleave(clips)
    labels = torch.arange(8 // clips).repeat_interleave(clips) % CLASSES
    video = levels.view(-1, 1, 1, 1, 1).expand(-1, 2, 32, 32, 3).contiguous()
    found, targets = augmenter(clips=clips, **changes)(video, labels, IDS)
    exact = (targets - SMOOTHING / CLASSES) / (1 - SMOOTHING)  # without smoothing
    for i in range(8):
        group = i // (2 * clips) * 2 * clips
        other = group + (i - group + clips) % (2 * clips)
        share = exact[i, labels[i]].item()
        assert exact[i, labels[other]].item() == pytest.approx(1 - share, abs=1e-5)
        mean = share * levels[i].item() + (1 - share) * levels[other].item()
        assert found[i].float().mean().item() == pytest.approx(mean, abs=0.51)
    shares = exact.max(1).values
    assert (shares < 0.99).any()


def test_switch_chooses_between_the_two() -> None:
    video = torch.zeros(64, 1, 16, 16, 3, dtype=torch.uint8)
    video[1::2] = 200
    labels = torch.arange(64) % 2

    def cut(switch: float) -> int:
        config = {"mixup": 0.8, "cutmix": 1.0, "switch": switch}
        found, _ = augmenter(**config)(video, labels, np.arange(64))
        return sum(set(clip.unique().tolist()) <= {0, 200} for clip in found)

    assert cut(1.0) == 64
    assert cut(0.0) < 16 < cut(0.5) < 56


def test_each_operation_has_a_chance_of_one_half() -> None:
    """With one operation, half of the clips stay, and the identity of RandAugment's fourteen."""
    video = still_videos(1).expand(400, -1, -1, -1, -1)
    found, _ = augmenter(operations=1)(video, torch.zeros(400, dtype=torch.int64), np.arange(400))
    same = (found == video).flatten(1).all(1).sum().item()
    assert 200 - 50 < same < 200 + 90


def test_missing_torchvision_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: object, **others: object) -> object:
        if name.split(".")[0] == "torchvision":
            raise ModuleNotFoundError("No module named 'torchvision'")
        return real(name, *arguments, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    augmenter()  # needs none
    with pytest.raises(UserError) as error:
        augmenter(erasing=0.5, cutmix=1.0)
    assert str(error.value) == (
        "augment.erasing: found that torchvision cannot be imported (No module named "
        "'torchvision'), expected the package; install it with pip install -c constraints.txt -e "
        "'.[finetune]', or set augment.erasing, augment.cutmix to 0"
    )
