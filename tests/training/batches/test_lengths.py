"""Videos of two lengths and images in one run, with the real loader and trainer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.forked_runs import Runs
from tests.rounding.plain_training import SQUARES, assert_near, largest_errors, plain_run
from vjepa_fast.config import Config, parse_config
from vjepa_fast.data.prepare.index import index_directory
from vjepa_fast.training.batches import Batches
from vjepa_fast.training.build import build_trainer
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.monitoring.writer import read_metrics

CPU = torch.device("cpu")
BATCH = {"global_batch": 32, "steps": 4, "warmup_steps": 1}
MODEL = {
    "encoder": {"width": 24, "depth": 2, "heads": 2},
    "predictor": {"width": 12, "depth": 1, "heads": 2},
    "patch_size": 8,
}
SECOND = MODEL | {"positions": "rope", "mask_tokens": "shared"}


@pytest.fixture
def mixed(small_config: Callable[..., dict], demo: Path, tmp_path: Path) -> Callable[..., Config]:
    """Configs of clips: half of 8 frames, a quarter of 4 at another pace, a quarter images."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(6):
        pixels = random.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    index_directory(tmp_path / "images", tmp_path / "images.csv", workers=1)
    data = {
        "manifests": [
            str(demo / "train.csv"),
            {"path": str(demo / "train.csv"), "num_frames": 4, "frame_step": 2},
            {"path": str(tmp_path / "images.csv"), "fps": 4},
        ],
        "weights": [2, 1, 1],
    }

    def make(micro_batch: int, **changes: dict) -> Config:
        optim = BATCH | {"micro_batch": micro_batch} | changes.pop("optim", {})
        clips = data | changes.pop("data", {})
        return parse_config(small_config(data=clips, optim=optim, **changes))

    return make


def global_batch(config: Config, world: int, step: int) -> dict[int, tuple]:
    """By sample id: the clip's pixels and its tokens under each mask."""
    found = {}
    ranks = [Batches(config, rank, world) for rank in range(world)]
    for rank in ranks:
        with rank.loader(step, CPU) as loader:
            for ids in rank.sample_ids(step):
                clips, masks = next(loader), rank.masks(step, ids)
                assert clips.sample_ids.tolist() == ids
                assert clips.video.shape[1] * 3 * 3 // 2 == masks.num_tokens
                context = masks.context_tokens.split(masks.context_seqlens.ravel().tolist())
                target = masks.target_tokens.split(masks.target_seqlens.ravel().tolist())
                for i, sample_id in enumerate(ids):
                    tokens = [t.tolist() for t in (*context[i :: len(ids)], *target[i :: len(ids)])]
                    found[sample_id] = (clips.video[i].numpy().tobytes(), tokens)
    return found


def test_every_split_sees_the_same_global_batch(mixed: Callable[..., Config]) -> None:
    expected = global_batch(mixed(8), 1, 3)
    assert sorted(expected) == list(range(96, 128))
    for world, micro_batch in ((2, 8), (1, 4), (4, 2)):
        assert global_batch(mixed(micro_batch), world, 3) == expected


def test_the_ranks_have_one_length_at_a_time(mixed: Callable[..., Config]) -> None:
    """Whole groups of four micro-batches have one length, as the four ranks at each moment."""
    ranks = [Batches(mixed(2), rank, 4) for rank in range(4)]
    num_frames = ranks[0]._planner.num_frames
    seen = set()
    for step in range(20):
        for moment in zip(*(rank.sample_ids(step) for rank in ranks), strict=True):
            lengths = {num_frames(sample_id) for ids in moment for sample_id in ids}
            assert len(lengths) == 1
            seen |= lengths
    assert seen == {4, 8}


@pytest.mark.parametrize(("micro_batch", "world"), [(8, 1), (8, 4), (2, 4), (2, 8), (2, 16)])
def test_rank_0_measures_clips_of_the_main_length(
    mixed: Callable[..., Config], micro_batch: int, world: int
) -> None:
    """Whatever the world size, and also where other clips are longer."""
    for num_frames in (8, 4):
        config = mixed(micro_batch)
        data = config.data.model_copy(update={"num_frames": num_frames})
        manifests = [m.model_copy(update={"num_frames": m.num_frames or 8}) for m in data.manifests]
        data = data.model_copy(update={"manifests": manifests})
        batches = Batches(config.model_copy(update={"data": data}), 0, world)
        lengths = batches._planner.num_frames
        for step in range(20):
            in_step = {lengths(sample_id) for sample_id in range(step * 32, step * 32 + 32)}
            last = lengths(batches.sample_ids(step)[-1][0])
            assert last == num_frames or num_frames not in in_step


def test_only_clips_of_the_main_length_are_measured(mixed: Callable[..., Config]) -> None:
    """Here a step has clips of one length."""
    small = {"global_batch": 8, "steps": 8}
    log = {"every": 1, "collapse_every": 1, "histograms_every": 1}
    config = mixed(4, optim=small, log=log)
    batches = Batches(config, 0, 1)
    lengths = [batches._planner.num_frames(8 * step) for step in range(8)]
    rows = read_metrics(pretrain(config) / "metrics.jsonl")
    measured = [row["step"] for row in rows if "rank_me" in row]
    assert measured == [step for step, length in enumerate(lengths) if length == 8]
    assert 0 < len(measured) < 8


def test_mask_tokens_start_from_those_of_the_same_or_nearest_length(
    mixed: Callable[..., Config], demo: Path, tmp_path: Path
) -> None:
    """Whatever the order of the manifests. 6 is as near to 4 as to 8: the shorter one counts."""
    first = pretrain(mixed(8, model=SECOND, output=str(tmp_path / "first")))
    trained = Checkpoint.find(first).weights("predictor", "master")["mask_tokens"]
    assert not torch.equal(trained[0], trained[1])
    csv = str(demo / "train.csv")
    still = BATCH | {"steps": 1, "start_lr": 0.0, "lr": 1e-12, "final_lr": 0.0}
    for lengths, expected in (((8, 4), (0, 1)), ((4, 8, 6), (0, 0, 1)), ((12,), (1,))):
        config = mixed(
            8,
            model=SECOND,
            optim=still,
            output=str(tmp_path / f"second{len(lengths)}"),
            init={"checkpoint": str(first)},
            data={
                "manifests": [{"path": csv, "num_frames": n} for n in lengths],
                "num_frames": lengths[0],
                "weights": None,
            },
        )
        own = Checkpoint.find(pretrain(config)).weights("predictor", "master")["mask_tokens"]
        torch.testing.assert_close(own, trained[list(expected)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("model", [MODEL, SECOND], ids=["first", "second"])
def test_a_step_is_the_mean_over_its_clips(mixed: Callable[..., Config], model: dict) -> None:
    """Of one loss for each clip, whatever its length: as with micro-batches of one clip, up to the
    order of fp32 sums."""
    init_process_group()
    optim = SQUARES | {"steps": 1, "warmup_steps": 0}
    plain, exact = (
        plain_run(mixed(1, model=model, optim=optim), dtype)
        for dtype in (torch.float32, torch.float64)
    )
    for micro_batch in (8, 1):
        config = mixed(micro_batch, model=model, optim=optim)
        batches, trainer = Batches(config, 0, 1), build_trainer(config, 1)
        with batches.loader(0, CPU) as loader:
            result = trainer.step(batches.step(0, loader))
        norms = [norm.item() for norm in result.grad_norms.values()]
        assert_near([[result.loss.item(), *norms]], plain, exact)
        assert result.features.shape == (micro_batch, 36, 24)  # the longest clips come last


def test_the_mask_token_is_that_of_the_length(mixed: Callable[..., Config]) -> None:
    for model, expected in ((MODEL, {8: {0, 1}, 4: {0, 1}}), (SECOND, {4: {0}, 8: {1}})):
        config = mixed(8, model=model)
        batches, used = Batches(config, 0, 1), {}
        assert config.num_mask_tokens == 2
        with batches.loader(0, CPU) as loader:
            for video, masks in batches.step(0, loader):
                tokens = masks.predictor_source - len(masks.context_rows)
                found = tokens[tokens >= 0].unique().tolist()
                used.setdefault(video.shape[1], set()).update(found)
        assert used == expected


def test_a_run_resumes_bit_for_bit_also_with_other_micro_batches_of_the_same_clips(
    mixed: Callable[..., Config], tmp_path: Path
) -> None:
    log = {"every": 1, "collapse_every": 1, "pictures_every": 2, "histograms_every": 2}
    keep = {"every": 2, "keep_last": 3}
    changes = {"log": log, "checkpoint": keep, "model": SECOND}
    run = pretrain(mixed(8, **changes))
    assert len([row for row in read_metrics(run / "metrics.jsonl") if "rank_me" in row]) == 4
    drawn = {path.stem for path in (run / "pictures").iterdir()}
    assert drawn == {f"step_{n:08d}_{name}" for n in (2, 4) for name in ("masks", "features")}
    last = checkpoints(run)[-1]
    expected = weights_of(last)
    shutil.rmtree(last)
    assert pretrain(mixed(8, **changes)) == run
    assert all(torch.equal(a, b) for a, b in zip(weights_of(last), expected, strict=True))
    shutil.rmtree(last)
    assert pretrain(mixed(4, **changes)) == run  # not another recipe


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    (tmp_path / "runs").mkdir()
    started = Runs(tmp_path / "runs")
    yield started
    started.kill_all()
    started.close()


@pytest.mark.slow
def test_two_processes_train_as_one_at_any_stage_and_resume_as_one(
    mixed: Callable[..., Config], runs: Runs, tmp_path: Path
) -> None:
    """Also where two processes resume what one has begun, and within bf16's rounding in bf16."""
    found = {}
    for name, world, changes in (
        ("one", 1, {}),
        ("stage 1", 2, {"zero": {"stage": 1}}),
        ("stage 3", 2, {"zero": {"stage": 3}}),
        ("bf16", 2, {"zero": {"stage": 2}, "precision": "bf16"}),
        ("resumed", 2, {}),
    ):
        run = tmp_path / name
        keep = {"every": 2, "keep_last": 2}
        common = {"model": SECOND, "checkpoint": keep, "optim": SQUARES}
        config = mixed(8, output=str(run), **common, **changes)
        if name == "resumed":
            shutil.copytree(tmp_path / "one", run)
            shutil.rmtree(checkpoints(run)[-1])
        text = runs.finish(config.model_dump(mode="json"), world)
        assert ("resumed at step 2 " in text) == (name == "resumed")
        rows = read_metrics(run / "metrics.jsonl")
        found[name] = [[row["loss"]] for row in rows if "loss" in row]
    plain, exact = (
        [row[:1] for row in plain_run(mixed(8, model=SECOND, optim=SQUARES), dtype)]
        for dtype in (torch.float32, torch.float64)
    )
    assert len(set(map(tuple, exact))) == 4
    for name, losses in found.items():
        if name == "bf16":
            assert largest_errors(losses, exact)[0] <= 1e-2
        else:
            assert_near(losses, plain, exact)


def weights_of(folder: Path) -> list[torch.Tensor]:
    checkpoint = Checkpoint.open(folder)
    return [
        tensor
        for part in ("encoder", "predictor")
        for tensor in checkpoint.weights(part, "master").values()
    ]
