"""Runs that start from the weights of another run (`init`), and the mistakes one can make there."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.forked_runs import Runs
from tests.helpers.trainers import make_trainer, micro_batch, run_steps, save_checkpoint
from tests.rounding.accuracy import ROUNDING
from vjepa_fast.commands.report import report_html
from vjepa_fast.config import Config
from vjepa_fast.config.model import build_model
from vjepa_fast.config.optim import InitConfig
from vjepa_fast.errors import UserError
from vjepa_fast.models.jepa import encode_clips, feature_loss
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.checkpoint.format import Checkpoint, state_checksum
from vjepa_fast.training.checkpoint.initial_weights import load_initial
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.trainer import Trainer

HOST = {"offload_optimizer": True}
SHARD = "shard_00000.safetensors"


def masters(trainer: Trainer) -> dict[str, Tensor]:
    return {s.name: s.read(s.masters) for s in trainer.shards}


def emas(trainer: Trainer) -> dict[str, Tensor]:
    shards = {s.name: s for s in trainer.shards}
    return {name: shards[name].read(ema).clone() for name, ema in trainer.teacher.ema.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys() and a
    return all(torch.equal(a[name], b[name]) for name in a)


def init_from(folder: Path, **parts: str) -> InitConfig:
    return InitConfig(checkpoint=str(folder), **parts)


@pytest.mark.parametrize(
    ("stage", "bf16", "offload"),
    [(0, False, {}), (1, False, HOST), (1, True, {}), (2, True, {}), (3, True, {})],
)
def test_the_first_loss_is_the_checkpoints_own(
    tmp_path: Path, stage: int, bf16: bool, offload: dict
) -> None:
    first = make_trainer(stage, bf16, **offload)
    run_steps(first, 0, 3)
    folder = save_checkpoint(first, tmp_path)
    second = make_trainer(stage, bf16, seed=1, **offload)
    load_initial(second, Checkpoint.open(folder), init_from(folder))
    assert same(masters(second), masters(first))  # in bf16 too: fp32, not rounded
    assert same(emas(second), emas(first))
    assert second.step_number == 0
    assert not any(second.optimizer.torch.state.values())
    batch = [micro_batch(3)]
    found = second.step(batch)
    assert torch.equal(found.loss, first.step(batch).loss)
    # The first step of a warm-up of two, from 1e-4 to 1e-3:
    rates = [group["lr"] for group in second.optimizer.torch.param_groups]
    assert rates == pytest.approx([5.5e-4] * 4)


def test_another_stage_and_precision_can_start_from_it(tmp_path: Path) -> None:
    first = make_trainer(3, True)
    run_steps(first, 0, 2)
    folder = save_checkpoint(first, tmp_path)
    second = make_trainer(0, False, seed=1)
    load_initial(second, Checkpoint.open(folder), init_from(folder))
    assert same(masters(second), masters(first))
    assert same(emas(second), emas(first))
    third = make_trainer(
        0, False, frozen_teacher=Checkpoint.open(folder).weights("encoder", "teacher")
    )
    load_initial(third, Checkpoint.open(folder), init_from(folder))  # frozen: no EMA to load
    assert same(masters(third), masters(first))


@pytest.mark.parametrize(
    ("encoder", "predictor", "target_encoder", "stage", "bf16"),
    [
        ("checkpoint", "fresh", "encoder", 0, False),
        ("checkpoint", "checkpoint", "fresh", 0, False),
        ("fresh", "checkpoint", "checkpoint", 1, True),
        ("checkpoint", "fresh", "encoder", 3, True),
        ("fresh", "fresh", "checkpoint", 3, True),
    ],
)
def test_each_part_is_loaded_or_fresh(
    trained: Path, encoder: str, predictor: str, target_encoder: str, stage: int, bf16: bool
) -> None:
    checkpoint = Checkpoint.find(trained)
    fresh, trainer = (make_trainer(stage, bf16, seed=1) for _ in range(2))
    choice = {"encoder": encoder, "predictor": predictor, "target_encoder": target_encoder}
    load_initial(trainer, checkpoint, InitConfig.model_construct(**choice))

    def saved(which: str, part: str) -> dict[str, Tensor]:
        groups = [g for g in checkpoint.state["groups"] if g.startswith(part)]
        return {g: checkpoint.read(f"{g}/{which}", 0, checkpoint.size(g)) for g in groups}

    def of(part: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in values.items() if name.startswith(part)}

    for part in ("encoder", "predictor"):
        expected = saved("master", part)
        if choice[part] == "fresh":
            expected = of(part, masters(fresh))
            assert not same(expected, saved("master", part))
        assert same(of(part, masters(trainer)), expected)
    expected = {
        "checkpoint": saved("teacher", "encoder"),
        "fresh": emas(fresh),
        "encoder": of("encoder", masters(trainer)),
    }[target_encoder]
    assert same(emas(trainer), expected)
    network = dict(trainer.teacher.network().named_parameters())
    names = [n for g, ps in checkpoint.state["groups"].items() if g[:7] == "encoder" for n, _ in ps]
    flat = torch.cat([network[name.removeprefix("encoder.")].reshape(-1) for name in names])
    groups = [g for g in checkpoint.state["groups"] if g[:7] == "encoder"]
    assert torch.equal(flat, torch.cat([expected[group] for group in groups]).to(flat.dtype))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of two steps."""
    run = tmp_path_factory.mktemp("trained")
    trainer = make_trainer()
    run_steps(trainer, 0, 2)
    save_checkpoint(trainer, run)
    return run


@pytest.fixture
def first(configured: Callable[..., Config], tmp_path: Path) -> Path:
    """A run of four steps with two mask specs."""
    return pretrain(configured(output=str(tmp_path / "first"), optim={"steps": 4}))


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "lr" in row]


def loss_at_step_0(config: Config, checkpoint: Checkpoint, tokens: list[int]) -> float:
    """The loss of the checkpoint's networks on the first clips of a run, without a trainer.

    Args:
        config: the run's.
        checkpoint: with the weights.
        tokens: for each mask token of the run's model, the one of the checkpoint.
    """
    model = build_model(config)
    teacher = model.make_target_encoder()
    model.encoder.load_state_dict(checkpoint.weights("encoder", "master"))
    predictor = checkpoint.weights("predictor", "master")
    predictor["mask_tokens"] = torch.stack([predictor["mask_tokens"][i] for i in tokens])
    model.predictor.load_state_dict(predictor)
    teacher.load_state_dict(checkpoint.weights("encoder", "teacher"))
    batches, found = Batches(config, 0, 1), []
    with batches.loader(0, torch.device("cpu")) as loader, torch.no_grad():
        for video, masks in batches.step(0, iter(loader)):
            targets = encode_clips(teacher, video)
            found.append(feature_loss(model(video, masks), targets, masks).item())
    return sum(found) / len(found)


SPEC = {"num_blocks": 1, "spatial_scale": [0.4, 0.4]}
LARGER = {"num_frames": 12, "crop_size": 32}


@pytest.mark.parametrize(
    ("data", "specs", "tokens"),
    [({}, None, [0, 1]), (LARGER, None, [0, 1]), (LARGER, 1, [0]), ({}, 4, [0, 1, 1, 1])],
    ids=["the same", "other frames and crop", "one mask token", "four mask tokens"],
)
def test_a_run_starts_from_anothers_weights(
    configured: Callable[..., Config],
    first: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    data: dict,
    specs: int | None,
    tokens: list[int],
) -> None:
    config = configured(
        output=str(tmp_path / "second"),
        init={"checkpoint": str(first)},
        data=data,
        masks={"specs": [SPEC] * specs} if specs else {},
        optim={"steps": 1},
        seed=7,
    )
    checkpoint = Checkpoint.find(first)
    untrained = checkpoint.weights("predictor", "master")["mask_tokens"]
    assert not torch.equal(untrained[0], untrained[1])
    caplog.set_level(logging.INFO, "vjepa_fast")
    run = pretrain(config)
    expected = loss_at_step_0(config, checkpoint, tokens)
    assert losses(run) == [pytest.approx(expected, rel=16 * ROUNDING)]
    assert f"started from step 4 of {checkpoint.folder}: encoder from checkpoint" in caplog.text
    stored = json.loads((run / "config.json").read_text())["init"]
    assert stored["checkpoint"] == str(checkpoint.folder)  # which one, not just whose
    assert str(checkpoint.folder) in report_html(run)


def test_rotary_positions_need_nothing_at_another_size(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    """As the second generation's cooldown starts: more frames, a larger crop, one mask token."""
    model = {"positions": "rope_tiled", "mask_tokens": "shared"}
    short = {"model": model, "optim": {"steps": 1}}
    first = pretrain(configured(output=str(tmp_path / "first"), **short))
    config = configured(
        output=str(tmp_path / "second"), init={"checkpoint": str(first)}, data=LARGER, **short
    )
    expected = loss_at_step_0(config, Checkpoint.find(first), [0])
    assert losses(pretrain(config)) == [pytest.approx(expected, rel=16 * ROUNDING)]
    table = configured(
        output=str(tmp_path / "table"),
        init={"checkpoint": str(first)},
        model={"positions": "sincos"},
    )
    with pytest.raises(UserError, match=r"model\.positions was \"rope_tiled\" and is \"sincos\""):
        pretrain(table)


def test_resuming_needs_no_checkpoint_to_start_from(
    configured: Callable[..., Config], first: Path, tmp_path: Path
) -> None:
    """A resumed run goes on bit for bit, also where the other one is gone or has trained on."""
    init = {"checkpoint": str(first)}
    whole = pretrain(configured(output=str(tmp_path / "whole"), init=init))
    stopped = whole.with_name("halves")
    (stopped / "checkpoints").mkdir(parents=True)
    half = whole / "checkpoints" / "step_00000004"
    shutil.copytree(half, stopped / "checkpoints" / half.name)
    start = Checkpoint.find(first).folder
    shutil.copytree(start, start.with_name("step_00000005"))
    shutil.rmtree(start)
    again = shutil.copytree(stopped, whole.with_name("again"))
    ends = [whole, pretrain(configured(output=str(stopped), init=init))]
    shutil.rmtree(first)
    for named in (init, {"checkpoint": str(start)}):  # the run, or the checkpoint that it pinned
        copy = shutil.copytree(again, whole.with_name(f"again{len(ends)}"))
        ends.append(pretrain(configured(output=str(copy), init=named)))
    found = [Checkpoint.find(run) for run in ends]
    for which in (("encoder", "master"), ("encoder", "teacher"), ("predictor", "master")):
        assert all(same(end.weights(*which), found[0].weights(*which)) for end in found[1:])
    for other in ({}, {"checkpoint": str(tmp_path / "other")}):
        with pytest.raises(
            UserError, match=r"another recipe \(init\.checkpoint was .*step_00000004"
        ):
            pretrain(configured(output=str(again), init=other))


@pytest.mark.slow
def test_any_number_of_processes_starts_from_it(
    runs: Runs, small_config: Callable[..., dict], first: Path, tmp_path: Path
) -> None:
    """Two processes at stage 3, with a mask token more, start as one does. The weights stay where
    they are: how both train on is tested elsewhere."""
    found = []
    for world, stage in ((1, 0), (2, 3)):
        output = str(tmp_path / f"world{world}")
        config = small_config(
            output=output,
            init={"checkpoint": str(first)},
            masks={"specs": [SPEC] * 3},
            optim={"steps": 3, "start_lr": 0.0, "lr": 1e-12, "final_lr": 0.0},
            zero={"stage": stage},
        )
        runs.finish(config, world)
        found.append(losses(Path(output)))
    assert found[1] == pytest.approx(found[0], rel=16 * ROUNDING)


def spoil(folder: Path, key: str, value: float) -> None:
    """Write a value into a vector of a checkpoint, and the checksums that belong to it."""
    from safetensors.torch import load_file

    from vjepa_fast.training.checkpoint.format import write_shard

    tensors = {name: values.clone() for name, values in load_file(folder / SHARD).items()}
    tensors[key][3] = value
    state = json.loads((folder / "state.json").read_text())
    state["shards"][0] |= write_shard(folder / SHARD, tensors)
    state["checksum"] = state_checksum(state)
    (folder / "state.json").write_text(json.dumps(state))


MISTAKES = {
    "no such folder": (shutil.rmtree, {}, "first: found no readable state.json (No such file"),
    "none complete": (
        lambda run: (run / "checkpoints" / "step_00000004").rename(
            run / "checkpoints" / ".step_00000004.writing"
        ),
        {},
        "first: found a run without a checkpoint, expected one",
    ),
    "damaged": (
        lambda run: os.truncate(run / "checkpoints" / "step_00000004" / SHARD, 1000),
        {},
        f"{SHARD}: found 1000 bytes where ",
    ),
    "not a number": (
        lambda run: spoil(
            run / "checkpoints" / "step_00000004", "predictor.decay/master", torch.nan
        ),
        {},
        f"{SHARD}: found NaN or infinity in predictor.decay/master, expected",
    ),
    "infinite EMA": (
        lambda run: spoil(
            run / "checkpoints" / "step_00000004", "encoder.no_decay/teacher", torch.inf
        ),
        {},
        f"{SHARD}: found NaN or infinity in encoder.no_decay/teacher, expected",
    ),
    "another width": (
        lambda run: None,
        {"model": {"encoder": {"width": 48, "depth": 2, "heads": 2}}},
        "of another model (model.encoder.width was 24 and is 48), expected",
    ),
    "other heads, which no shape shows": (
        lambda run: None,
        {"model": {"predictor": {"width": 12, "depth": 1, "heads": 1}}},
        "of another model (model.predictor.heads was 2 and is 1), expected",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_checkpoint_that_cannot_be_used_is_an_error_at_once(
    configured: Callable[..., Config], first: Path, tmp_path: Path, kind: str
) -> None:
    break_it, changes, found = MISTAKES[kind]
    break_it(first)
    run = tmp_path / "second"
    with pytest.raises(UserError) as caught:
        pretrain(configured(output=str(run), init={"checkpoint": str(first)}, **changes))
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "checkpoints").exists()
    assert not (run / "metrics.jsonl").exists()


def test_what_is_not_used_may_be_bad(
    configured: Callable[..., Config], first: Path, tmp_path: Path
) -> None:
    """NaN in weights that stay fresh is no obstacle, nor an EMA that a frozen run has not."""
    spoil(first / "checkpoints" / "step_00000004", "predictor.decay/master", torch.nan)
    short = {"optim": {"steps": 1}}
    init = {"checkpoint": str(first), "predictor": "fresh"}
    pretrain(configured(output=str(tmp_path / "second"), init=init, **short))
    frozen = pretrain(
        configured(
            output=str(tmp_path / "frozen"),
            teacher={"mode": "frozen", "checkpoint": str(first)},
            init=init,
            **short,
        )
    )
    init = {"checkpoint": str(frozen)}
    with pytest.raises(UserError, match=r"^init\.target_encoder: found checkpoint, but .*frozen"):
        pretrain(configured(output=str(tmp_path / "third"), init=init, **short))
    init |= {"target_encoder": "encoder"}
    assert (
        len(losses(pretrain(configured(output=str(tmp_path / "third"), init=init, **short)))) == 1
    )


def test_using_nothing_of_a_checkpoint_is_a_mistake(configured: Callable[..., Config]) -> None:
    nothing = {"encoder": "fresh", "predictor": "fresh", "target_encoder": "encoder"}
    with pytest.raises(UserError, match=r"^init\.checkpoint: found x, of which nothing is used"):
        configured(init={"checkpoint": "x", **nothing})
    assert configured(init=nothing).init.checkpoint is None
