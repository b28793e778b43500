"""Draws of labels, the validation split, and the order of an epoch."""

import numpy as np
import pytest
import torch

from vjepa_fast.evaluation.labels.draws import balanced_draw, epoch_order, held_out, plain_draw


def test_labeled_videos_are_a_share_of_every_class():
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 3)
    drawn = balanced_draw(labels, 0.1, seed=0)
    assert torch.bincount(labels[drawn]).tolist() == [4, 2, 1]  # never none
    assert torch.equal(drawn, balanced_draw(labels, 0.1, seed=0))
    assert not torch.equal(drawn, balanced_draw(labels, 0.1, seed=1))
    assert torch.equal(balanced_draw(labels, 1.0, seed=0), torch.arange(63))


def test_a_plain_draw_is_a_share_of_all_videos():
    drawn = plain_draw(60, 0.1, seed=0)
    assert len(drawn) == len(drawn.unique()) == 6 and torch.equal(drawn, drawn.sort().values)
    assert not torch.equal(drawn, plain_draw(60, 0.1, seed=1))
    assert torch.equal(plain_draw(5, 1.0, seed=0), torch.arange(5))
    assert len(plain_draw(5, 0.01, seed=0)) == 1


@pytest.mark.parametrize(("count", "share", "out"), [(100, 0.1, 10), (2, 0.01, 1), (2, 0.99, 1)])
def test_some_videos_are_held_out_and_some_are_not(count, share, out):
    found = held_out(count, share, 0)
    assert found.sum() == out and len(found) == count
    assert np.array_equal(found, held_out(count, share, 0))


def test_every_epoch_has_an_order_of_its_own():
    rows = np.arange(50)
    first, second = (epoch_order(rows, epoch, 0) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == rows.tolist()
    assert not np.array_equal(first, second) and not np.array_equal(first, rows)
    assert np.array_equal(first, epoch_order(rows, 0, 0))
    assert not np.array_equal(first, epoch_order(rows, 0, 1))


def test_other_videos_do_not_change_the_order_of_these():
    rows, some = np.arange(100), np.array([3, 5, 8, 60, 61, 99])
    everything = epoch_order(rows, 7, 1)
    assert np.array_equal(everything[np.isin(everything, some)], epoch_order(some, 7, 1))
