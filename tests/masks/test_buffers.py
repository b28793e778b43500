"""Tokens drawn into memory of the caller's: views, pinned, copied, shared, in worker processes."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.masks.test_twin import assert_same
from vjepa_fast.masks import MaskSampler, MultiBlock

SHORT_RANGE = MultiBlock(num_blocks=8, spatial_scale=(0.15, 0.15))
LONG_RANGE = MultiBlock(num_blocks=2, spatial_scale=(0.7, 0.7))


def test_tokens_go_straight_into_buffers():
    sampler = MaskSampler([SHORT_RANGE, LONG_RANGE])
    for dtype in (torch.int32, torch.int64):
        buffers = sampler.buffers(24, dtype)
        for step in range(3):
            masks = sampler.sample(step, range(24), out=buffers)
            plain = sampler.sample(step, range(24))
            for own, room in (
                (masks.context_tokens, buffers.context_tokens),
                (masks.target_tokens, buffers.target_tokens),
            ):
                assert own.data_ptr() == room.data_ptr() and own.dtype == dtype
            assert torch.equal(masks.context_tokens.long(), plain.context_tokens)
            assert torch.equal(masks.target_tokens.long(), plain.target_tokens)
            # [B, K] is a view of the same memory.
            assert masks.context(0).data_ptr() == buffers.context_tokens.data_ptr()
            assert torch.equal(masks.target(1).long(), plain.target(1))


def test_buffers_are_pinned_where_there_is_a_gpu():
    sampler = MaskSampler([SHORT_RANGE])
    if torch.cuda.is_available():
        masks = sampler.sample(0, range(24), out=sampler.buffers(24, pin_memory=True))
        assert masks.context_tokens.is_pinned() and masks.target(0).is_pinned()
    else:
        with pytest.raises(ValueError, match="pin_memory=False where there is no GPU"):
            sampler.buffers(24, pin_memory=True)


def test_buffers_keep_a_batch_that_others_are_drawn_beside():
    sampler = MaskSampler([SHORT_RANGE])
    first, second = sampler.buffers(8), sampler.buffers(8)
    masks = sampler.sample(0, range(8), out=first)
    kept = masks.context_tokens.clone()
    sampler.sample(1, range(8, 16), out=second)
    assert torch.equal(masks.context_tokens, kept)
    again = sampler.sample(0, range(8), out=second)
    assert_same(again, masks)


def move_by_sharing(buffers):
    """As a queue between processes does: the same tensors, their memory elsewhere."""
    before = buffers.context_tokens.data_ptr()
    buffers.context_tokens.share_memory_()
    buffers.target_tokens.share_memory_()
    assert buffers.context_tokens.data_ptr() != before
    return buffers


@pytest.mark.parametrize(
    "move", [move_by_sharing, copy.deepcopy, lambda buffers: pickle.loads(pickle.dumps(buffers))]
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_buffers_may_be_copied_and_moved(move, dtype):
    sampler = MaskSampler([SHORT_RANGE, LONG_RANGE])
    buffers = sampler.buffers(24, dtype)
    first = sampler.sample(0, range(24), out=buffers)
    kept = first.context_tokens.clone()
    moved = move(buffers)
    masks = sampler.sample(1, range(24, 48), out=moved)
    plain = sampler.sample(1, range(24, 48))
    assert torch.equal(masks.context_tokens.long(), plain.context_tokens)
    assert torch.equal(masks.target_tokens.long(), plain.target_tokens)
    assert masks.context_tokens.data_ptr() == moved.context_tokens.data_ptr()
    if moved is not buffers:
        assert torch.equal(first.context_tokens, kept)


class Masks(Dataset):
    """Draws into buffers that it brought along from the process that made it."""

    def __init__(self, sampler, buffers):
        self.sampler, self.buffers = sampler, buffers

    def __len__(self):
        return 4

    def __getitem__(self, step):
        masks = self.sampler.sample(step, range(8), out=self.buffers)
        return masks.context_tokens.clone(), masks.target_tokens.clone()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_buffers_travel_to_the_workers_of_a_loader(start):
    sampler = MaskSampler([SHORT_RANGE, LONG_RANGE])
    buffers = sampler.buffers(8)
    data = Masks(sampler, buffers)
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=start)
    for step, (context, target) in enumerate(loader):
        plain = sampler.sample(step, range(8))
        assert torch.equal(context.long(), plain.context_tokens)
        assert torch.equal(target.long(), plain.target_tokens)
    # Spawning moved them to memory that the worker shares, so only once it has ended:
    here = sampler.sample(9, range(8), out=buffers)
    assert torch.equal(here.context_tokens.long(), sampler.sample(9, range(8)).context_tokens)
