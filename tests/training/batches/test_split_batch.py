"""How the global batch is split over processes and micro-batches."""

from __future__ import annotations

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.config import load_config
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import split_batch

CONFIGS = REPOSITORY / "configs"


def test_published_batches_per_gpu_are_the_truncation_groups() -> None:
    """The paper truncates per GPU: 128 GPUs with 24 clips each, at 384 px 240 with 10."""
    for name, group, world in (("vitl16", 24, 128), ("vith16", 24, 128), ("vith16_384", 10, 240)):
        config = load_config(CONFIGS / f"{name}.json")
        assert config.masks.truncate_group == config.optim.micro_batch == group
        assert split_batch(config, world) == (group, 1)


def test_tiny_fits_one_and_two_processes() -> None:
    """The README's commands: 20 steps with one process and with two."""
    config = load_config(CONFIGS / "tiny.json", ["optim.steps=20"])
    assert (split_batch(config, 1), split_batch(config, 2)) == ((32, 1), (16, 1))


@pytest.mark.parametrize("world", [1, 2, 4, 8, 64, 128, 256, 3072])
def test_worlds_that_fit(world: int) -> None:
    """A process with fewer clips than a micro-batch runs them all at once: 12 on each of 256."""
    config = load_config(CONFIGS / "vith16.json")
    micro, accumulated = split_batch(config, world)
    assert micro == min(24, 3072 // world)
    assert micro * accumulated * world == 3072


@pytest.mark.parametrize(
    ("batch", "world", "sentence"),
    [
        (
            3072,
            96,
            "optim.micro_batch: found 24 clips on each of 96 processes, expected a divisor of "
            "optim.global_batch 3072; set optim.micro_batch to e.g. 8",
        ),
        (
            3072,
            192,
            "optim.micro_batch: found 24 clips on each of 192 processes, expected a divisor of "
            "optim.global_batch 3072; set optim.micro_batch to e.g. 8",
        ),
        (
            3072,
            7,
            "optim.global_batch: found 3072 clips for 7 processes, expected a multiple of the "
            "number of processes; start another number of them, e.g. 4",
        ),
        (
            3360,
            11,
            "optim.global_batch: found 3360 clips for 11 processes, expected a multiple of the "
            "number of processes; start another number of them, e.g. 10",
        ),
    ],
)
def test_worlds_that_do_not_fit(batch: int, world: int, sentence: str) -> None:
    config = load_config(CONFIGS / "vith16.json", [f"optim.global_batch={batch}"])
    with pytest.raises(UserError) as error:
        split_batch(config, world)
    assert str(error.value) == sentence


def test_the_number_of_processes_suggested_works() -> None:
    config = load_config(CONFIGS / "tiny.json")
    for world, expected in ((3, 2), (6, 4), (12, 8), (64, 32)):
        with pytest.raises(UserError, match=f"e.g. {expected}$"):
            split_batch(config, world)
        split_batch(config, expected)
