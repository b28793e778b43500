"""MaskCollator in a DataLoader: the public call, no two batches alike, the recorded statistics."""

import hashlib
import json
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from tests.helpers.paths import GOLDEN
from vjepa_fast.masks import MaskCollator

SPECS = [
    {"num_blocks": 8, "spatial_scale": (0.15, 0.15), "temporal_scale": (1.0, 1.0)},
    {"num_blocks": 2, "spatial_scale": [0.7, 0.7], "aspect_ratio": [0.75, 1.5], "max_keep": None},
]
RECORDED = GOLDEN / "mask_statistics.npz"


class Numbers(Dataset):
    def __len__(self):
        return 46

    def __getitem__(self, index):
        return torch.full((2,), index), index


def fingerprint(batch):
    """The masks of a batch, to compare: hashable."""
    _, contexts, targets = batch
    return tuple(mask.numpy().tobytes() for mask in contexts + targets)


def test_the_public_call_and_its_return_values():
    collator = MaskCollator(
        SPECS, crop_size=(224, 224), num_frames=16, patch_size=(16, 16), tubelet_size=2
    )
    batch = [Numbers()[i] for i in range(24)]
    collated, contexts, targets = collator(batch)
    for ours, theirs in zip(collated, default_collate(batch), strict=True):
        assert torch.equal(ours, theirs)
    assert len(contexts) == len(targets) == 2
    for context, target in zip(contexts, targets, strict=True):
        assert context.dtype == target.dtype == torch.int64
        assert context.shape[0] == target.shape[0] == 24
        for row, rest in zip(context.tolist(), target.tolist(), strict=True):
            assert row == sorted(set(row)) and rest == sorted(set(rest))
            assert row and rest and not set(row) & set(rest)
            assert min(row + rest) >= 0 and max(row + rest) < 1568


def test_masks_stay_what_they_were():
    """A digest of what an earlier version drew, before it wrote rectangles in C++."""
    causal = {"temporal_scale": (0.5, 1.0), "max_temporal_keep": 0.5, "max_keep": 100}
    specs = [*SPECS, {"num_blocks": 6, "spatial_scale": (0.1, 0.3)} | causal]
    collator, digest = MaskCollator(specs, crop_size=(224, 160), seed=7), hashlib.sha256()
    for clips in (24, 24, 1, 5, 24):
        _, contexts, targets = collator(list(range(clips)))
        for mask in contexts + targets:
            digest.update(repr(tuple(mask.shape)).encode() + mask.numpy().tobytes())
    assert digest.hexdigest()[:16] == "527054e877c11eaa"


def test_saving_or_writing_one_mask_leaves_the_others():
    """As from torch.stack."""
    _, contexts, targets = MaskCollator(SPECS)(list(range(4)))
    before = [mask.clone() for mask in contexts + targets]
    for mask in contexts + targets:
        assert mask.is_contiguous()
        assert mask.untyped_storage().nbytes() == 8 * mask.numel()
        mask += 1
    for mask, old in zip(contexts + targets, before, strict=True):
        assert torch.equal(mask, old + 1)


def test_steps_count_as_calls():
    batch = list(range(4))
    called, stepped = MaskCollator(SPECS), MaskCollator(SPECS)
    for _ in range(5):
        called(batch)
        assert stepped.step() is None
    assert fingerprint(called(batch)) == fingerprint(stepped(batch))
    assert fingerprint(called(batch)) != fingerprint(MaskCollator(SPECS, seed=1)(batch))


def test_numbers_may_be_numpys():
    plain = MaskCollator(SPECS, (224, 160), 8, 16, 2, seed=3)
    sizes = np.array([224, 160, 8, 16, 2, 3])
    other = MaskCollator(SPECS, tuple(sizes[:2]), *sizes[2:5], seed=sizes[5])
    assert fingerprint(plain([0, 1])) == fingerprint(other([0, 1]))


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
def test_workers_share_the_counter(start):
    """All batches differ, and are those that one process would draw, in whatever order."""
    workers = {"num_workers": 2, "multiprocessing_context": start} if start else {}
    collator = MaskCollator(SPECS)
    loader = DataLoader(Numbers(), batch_size=4, collate_fn=collator, **workers)
    epochs = 1 if start == "spawn" else 2  # spawned workers take seconds to start
    drawn = [fingerprint(batch) for _ in range(epochs) for batch in loader]
    assert len(drawn) == 12 * epochs and len(set(drawn)) == 12 * epochs
    if start:
        alone = MaskCollator(SPECS)
        expected = {fingerprint(alone(list(range(4)))) for _ in range(24)}
        whole = [masks for i, masks in enumerate(drawn) if i % 12 < 11]  # the last has 2 clips
        assert set(whole) <= expected


def test_threads_share_the_counter():
    collator, numbers = MaskCollator(SPECS), []

    def take():
        numbers.extend(collator._next() for _ in range(200))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(800))


@pytest.mark.parametrize("strategy", ["short_range", "long_range", "causal_half"])
def test_recorded_statistics(strategy):
    """Lengths after truncation and, from batches of one (not truncated), where context lies."""
    with np.load(RECORDED) as arrays:
        recorded = {
            key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(f"{strategy}/")
        }
    config = json.loads(str(recorded["config"]))
    grid_keys = {k: config.pop(k) for k in ("crop_size", "num_frames", "patch_size")}
    grid_keys["tubelet_size"] = config.pop("tubelet_size")
    collator = MaskCollator([config], **grid_keys)
    clips, steps = 24, 400
    kept = np.array(
        [
            (masks[1][0].shape[1], masks[2][0].shape[1])
            for masks in (collator(list(range(clips))) for _ in range(steps))
        ]
    )
    for column, side in enumerate(("context", "target")):
        theirs = recorded[f"{side}_kept_batch24"].astype(float)
        ours = kept[:, column]
        error = np.sqrt(ours.var(ddof=1) / steps + theirs.var(ddof=1) / len(theirs))
        assert abs(ours.mean() - theirs.mean()) < 5 * error

    grid = recorded["visible_probability"].shape
    visible = np.zeros(grid).ravel()
    draws = 4000
    for _ in range(draws):
        _, _, (target,) = collator([0])
        hidden = np.ones(visible.size)
        hidden[target[0].numpy()] = 0
        visible += hidden
    assert np.abs(visible.reshape(grid) / draws - recorded["visible_probability"]).max() < 0.06


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cfgs_mask": []}, "specs: found"),
        ({"cfgs_mask": None}, "cfgs_mask: found None, expected a list"),
        ({"cfgs_mask": [3]}, r"cfgs_mask\[0\]: found 3, expected a dict"),
        ({"cfgs_mask": [{"num_blocks": 8}]}, r"cfgs_mask\[0\]: found no spatial_scale"),
        (
            {"cfgs_mask": [SPECS[0] | {"num_block": 1}]},
            r"found the key 'num_block",
        ),
        ({"cfgs_mask": [SPECS[0] | {"num_blocks": 0}]}, r"cfgs_mask\[0\]: num_blocks: found 0"),
        (
            {"cfgs_mask": [SPECS[0] | {"spatial_scale": (1, 1)}], "crop_size": 16},
            r"specs\[0\]: found",
        ),
        ({"crop_size": 225}, "crop_size: found 225, expected a multiple of patch_size 16"),
        ({"crop_size": (224, 224, 3)}, "crop_size: found"),
        ({"crop_size": None}, "crop_size: found None, expected height and width"),
        ({"num_frames": 15}, "num_frames: found 15, expected a multiple of tubelet_size 2"),
        ({"num_frames": 16.0}, "num_frames, tubelet_size: found 16.0"),
        ({"num_frames": True}, "num_frames, tubelet_size: found True"),
        ({"patch_size": 0}, "crop_size, patch_size: found 224 and 0"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        MaskCollator(**({"cfgs_mask": SPECS} | arguments))
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)


def test_an_empty_batch_is_rejected():
    with pytest.raises(ValueError, match="batch: found no samples"):
        MaskCollator(SPECS)([])
