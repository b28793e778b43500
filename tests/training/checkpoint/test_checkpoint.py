"""Checkpoints are bit-exact, fit every ZeRO stage, and are complete or absent."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.trainers import make_trainer, run_steps, save_checkpoint
from tests.rounding.accuracy import ROUNDING
from vjepa_fast.config.schema import CheckpointConfig
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints
from vjepa_fast.training.checkpoint.resume import restore
from vjepa_fast.training.checkpoint.writer import Saver, snapshot
from vjepa_fast.training.distributed.host_group import HostGroup


def weights(trainer) -> list[torch.Tensor]:
    student = [shard.read(shard.masters) for shard in trainer.shards]
    student += [p.detach().clone() for p in trainer.model.parameters()]  # stage 3: the small ones
    return student + [p.clone() for p in trainer.teacher.network().parameters()]


@pytest.mark.parametrize(
    ("stage", "bf16", "second"),
    [
        (0, False, False),
        (1, True, False),
        (2, True, False),
        (3, True, False),
        (0, False, True),
        (1, True, True),
        (3, True, True),
    ],
)
def test_resuming_is_bit_exact(tmp_path: Path, stage: int, bf16: bool, second: bool) -> None:
    straight = make_trainer(stage, bf16, clip_grad=0.05, second=second)
    run_steps(straight, 0, 3)
    folder = save_checkpoint(straight, tmp_path)
    losses = run_steps(straight, 3, 6)

    resumed = make_trainer(stage, bf16, clip_grad=0.05, seed=1, second=second)  # other weights
    restore(resumed, Checkpoint.open(folder))
    assert resumed.step_number == 3
    assert torch.equal(torch.stack(run_steps(resumed, 3, 6)), torch.stack(losses))
    pairs = list(zip(weights(resumed), weights(straight), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)


HOST = {"offload_optimizer": True}


@pytest.mark.parametrize(
    ("saved", "read"),
    [
        ((0, False, {}), (1, False, HOST)),
        ((1, False, HOST), (3, False, HOST)),
        ((3, False, HOST), (0, False, {})),
        ((1, True, {}), (3, True, {})),
        ((3, True, {}), (2, True, HOST)),
    ],
)
def test_another_stage_reads_it(tmp_path: Path, saved: tuple, read: tuple) -> None:
    first = make_trainer(*saved[:2], **saved[2])
    run_steps(first, 0, 3)
    folder = save_checkpoint(first, tmp_path, keep_last=1)
    second = make_trainer(*read[:2], **read[2], seed=1)
    restore(second, Checkpoint.open(folder))
    states = snapshot(first, 0)[0], snapshot(second, 0)[0]  # weights, moments, EMA
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert second.step_number == 3
    losses = run_steps(first, 3, 4) + run_steps(second, 3, 4)  # of the same weights
    torch.testing.assert_close(*losses, rtol=16 * ROUNDING, atol=0)


@pytest.mark.parametrize("second", [False, True])
def test_it_holds_all_weights_by_name(tmp_path: Path, second: bool) -> None:
    trainer = make_trainer(second=second)
    run_steps(trainer, 0, 2)
    checkpoint = Checkpoint.open(save_checkpoint(trainer, tmp_path, keep_last=1))
    for part in ("encoder", "predictor"):
        read, own = checkpoint.weights(part, "master"), getattr(trainer.model, part).state_dict()
        assert read.keys() == own.keys()
        assert all(torch.equal(read[name], own[name]) for name in own)
    read, own = checkpoint.weights("encoder", "teacher"), trainer.teacher.network().state_dict()
    assert all(torch.equal(read[name], own[name]) for name in own)


def test_old_ones_are_removed_and_partial_ones_are_ignored(tmp_path: Path) -> None:
    trainer = make_trainer()
    for step in range(4):
        run_steps(trainer, step, step + 1)
        save_checkpoint(trainer, tmp_path)
    names = [folder.name for folder in checkpoints(tmp_path)]
    assert names == ["step_00000003", "step_00000004"]
    half = tmp_path / "checkpoints" / ".step_00000005.writing"
    half.mkdir()
    (half / "state.json").write_text("{}")
    assert Checkpoint.find(tmp_path).folder.name == "step_00000004"
    run_steps(trainer, 4, 5)
    save_checkpoint(trainer, tmp_path)  # over the partial one
    assert Checkpoint.find(tmp_path).state["step"] == 5
    assert not half.exists()


@pytest.mark.parametrize("background", [False, True])
def test_every_nth_is_kept(tmp_path: Path, background: bool) -> None:
    trainer = make_trainer()
    policy = CheckpointConfig(every=1, keep_last=1, keep_every=3, background=background)
    saver = Saver(tmp_path, {}, "videos", policy, HostGroup())
    for step in range(7):
        run_steps(trainer, step, step + 1)
        assert not saver.retry_due(step + 1)
        saver.save(trainer)
    saver.close()
    names = [folder.name for folder in checkpoints(tmp_path)]
    assert names == ["step_00000003", "step_00000006", "step_00000007"]


def test_a_save_in_the_background_holds_the_step_it_began_at(tmp_path: Path) -> None:
    trainer = make_trainer()
    run_steps(trainer, 0, 2)
    policy = CheckpointConfig(background=True)
    saver = Saver(tmp_path / "later", {}, "videos", policy, HostGroup())
    saver.save(trainer)
    assert not checkpoints(tmp_path / "later")  # only `finish` makes it visible
    now = Checkpoint.open(save_checkpoint(trainer, tmp_path / "now"))
    run_steps(trainer, 2, 4)  # changes master and EMA weights in place
    saver.close()
    later = Checkpoint.find(tmp_path / "later")
    shards = [load_file(c.folder / "shard_00000.safetensors") for c in (now, later)]
    assert shards[0].keys() == shards[1].keys()
    assert all(shards[0][name].equal(shards[1][name]) for name in shards[0])
    assert now.state == later.state


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failure_that_is_noticed_late_is_retried_at_the_next_step(tmp_path: Path) -> None:
    """A slow write in the background may fail after the step of the retry."""
    trainer = make_trainer()
    saver = Saver(tmp_path, {}, "videos", CheckpointConfig(every=10, background=True), HostGroup())
    run_steps(trainer, 0, 1)
    with no_file_longer_than(1000):
        saver.save(trainer)
        run_steps(trainer, 1, 4)  # past step 2, where it would try again
        saver.finish()
    assert not checkpoints(tmp_path)
    assert saver.retry_due(5)
    saver.save(trainer)
    assert not saver.retry_due(5)  # it is under way
    saver.close()
    assert Checkpoint.find(tmp_path).state["step"] == 4
