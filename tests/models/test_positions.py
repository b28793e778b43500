"""The position table."""

import math

import pytest
import torch

from vjepa_fast.models.positions import axis_widths, position_table


@pytest.mark.parametrize(
    ("width", "uniform", "widths"),
    [(12, True, (4, 4, 4)), (64, True, (22, 22, 22)), (16, False, (8, 4, 4))],
)
def test_every_channel_by_hand(width, uniform, widths):
    """A grid of three different sides: time slowest, then height, then width."""
    grid = (2, 3, 4)
    assert axis_widths(width, uniform) == widths
    table = position_table(width, grid, uniform)
    expected = []
    for t in range(2):
        for h in range(3):
            for w in range(4):
                row = []
                for channels, at in zip(widths, (t, h, w), strict=True):
                    angles = [at / 10000 ** (2 * i / channels) for i in range(channels // 2)]
                    row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                expected.append(row[:width])
    torch.testing.assert_close(table, torch.tensor(expected), rtol=0, atol=1e-6)


def test_a_width_that_halves_do_not_fit():
    with pytest.raises(ValueError, match=r"^width: found 12, expected a multiple of 8 without"):
        position_table(12, (1, 2, 2), uniform_power=False)
