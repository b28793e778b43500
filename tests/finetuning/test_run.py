"""A whole fine-tuning: what it leaves, how it resumes, and who can use it."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.finetuning.stage_runs import make, settings
from tests.finetuning.test_mistakes import relabeled
from tests.rounding.accuracy import assert_accurate
from vjepa_fast import load_encoder
from vjepa_fast.config import parse_config
from vjepa_fast.config.finetune.load import parse_finetune_config
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.views.decode import ViewDecoder
from vjepa_fast.evaluation.views.featurize import encoder_features
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.evaluation.views.stream import StreamedFeatures
from vjepa_fast.finetuning.loop import finetune
from vjepa_fast.finetuning.multi_view import _probabilities
from vjepa_fast.inference.encoder import VideoEncoder
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.monitoring.writer import read_metrics

ALL = {
    "randaugment": {"operations": 4},
    "color_jitter": 0.4,
    "erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
}


def test_a_run_and_what_it_leaves(finetune_config: Callable[..., dict], pretrained: Path) -> None:
    config = parse_finetune_config(finetune_config(test={"segments": 2, "crops": 3}))
    results, run = finetune(config), Path(config.output)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(6))
    assert all(row["loss"] > 0 and row["grad_norm_model"] > 0 for row in rows)
    assert rows[0]["loss"] == pytest.approx(math.log(results["num_classes"]), abs=0.2)
    assert [row["lr"] for row in rows[:2]] == [0.01 * 1 / 2, 0.01]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "results.json").read_text()) == results
    assert results["videos"] == {"used": 16, "left_out": {}}
    origin = json.loads((run / "started_from.json").read_text())
    assert origin["checkpoint"] == str(checkpoints(pretrained)[-1])

    before = (run / "results.json").stat().st_mtime_ns
    assert finetune(config) == results  # finished: a no-op
    assert (run / "results.json").stat().st_mtime_ns == before
    other = finetune(parse_finetune_config(finetune_config()))  # another test, of the same run
    assert other["test"] == {"segments": 1, "crops": 1}

    encoder = load_encoder(run)
    check_accuracies(other["accuracy"], run, encoder, Path(config.data.test))
    own = Checkpoint.find(run).weights("encoder", "master")
    assert encoder.network == "encoder"
    assert torch.equal(
        encoder.model.state_dict()["blocks.1.mlp.fc2.weight"], own["blocks.1.mlp.fc2.weight"]
    )
    start = load_encoder(pretrained).model.state_dict()
    assert not torch.equal(own["blocks.1.mlp.fc2.weight"], start["blocks.1.mlp.fc2.weight"])


def check_accuracies(found: dict, run: Path, encoder: VideoEncoder, manifest: Path) -> None:
    """They are those of the run's weights on the middle of each video, counted one by one."""
    entries = open_manifest(manifest)
    truth = [entry.labels["digit"] for entry in entries]
    views = ViewDecoder(entries, ViewPlan(encoder.sampling), backend="pyav", num_workers=1)
    source = StreamedFeatures(encoder_features(encoder.model), views)
    (batch,) = source.batches([(0, np.arange(len(entries)))])
    weights = Checkpoint.find(run).weights("classifier", "master")
    logits = batch.tokens[:, 0].mean(1) @ weights["linear.weight"].T + weights["linear.bias"]
    classes = sorted(
        {entry.labels["digit"] for entry in open_manifest(manifest.parent / "train.csv")}
    )
    best = [[classes[i] for i in row] for row in logits.argsort(1, descending=True).tolist()]
    right = {row: best[row].index(true) for row, true in enumerate(truth) if true in classes}
    per_class = {
        true: [right[row] == 0 for row in right if truth[row] == true] for true in set(truth)
    }
    one = 1 / len(truth)  # rounding may turn the guess of a video with two likely classes
    assert found["top1"] == pytest.approx(sum(i == 0 for i in right.values()) * one, abs=one)
    assert found["top5"] == pytest.approx(sum(i < 5 for i in right.values()) * one, abs=one)
    expected = sum(sum(its) / len(its) for its in per_class.values()) / len(per_class)
    assert found["per_class"] == pytest.approx(expected, abs=1 / len(per_class))


def test_it_resumes_bit_for_bit(
    finetune_config: Callable[..., dict], pretrained: Path, tmp_path: Path
) -> None:
    """With all augmentation, drop path and dropout, and when what it started from is gone."""
    start = tmp_path / "start"
    shutil.copytree(pretrained, start)
    changes = {
        "init": {"checkpoint": str(start)},
        "data": {"clips_per_video": 2},
        "augment": ALL,
        "optim": {"drop_path": 0.4, "head_dropout": 0.5, "clip_grad": 1.0, "epochs": 0.5},
        "checkpoint": {"every": 3, "keep_last": 2},
    }
    config = parse_finetune_config(finetune_config(**changes))
    finetune(config)
    saved = checkpoints(Path(config.output))
    assert [c.name for c in saved] == ["step_00000003", "step_00000006"]
    whole = load_file(saved[-1] / "shard_00000.safetensors")
    shutil.rmtree(saved[-1])
    shutil.rmtree(start)
    finetune(config)
    resumed = load_file(saved[-1] / "shard_00000.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_results_are_of_this_model_and_these_videos(
    finetune_config: Callable[..., dict], demo: Path, tmp_path: Path
) -> None:
    """Neither a run that was trained anew in its folder nor a manifest that was written anew finds
    the results that are there."""
    test = tmp_path / "test.csv"
    lines = (demo / "test.csv").read_text().splitlines(keepends=True)
    head, *rows = [line if i == 0 else f"{demo}/{line}" for i, line in enumerate(lines)]
    test.write_text(head + "".join(rows))
    own = {"data": {"test": str(test)}, "optim": {"epochs": 0.5}}
    first = finetune(parse_finetune_config(finetune_config(**own)))
    test.write_text(head + "".join(rows[:8]))
    fewer = finetune(parse_finetune_config(finetune_config(**own)))
    assert (first["videos"]["used"], fewer["videos"]["used"]) == (16, 8)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    again = finetune(parse_finetune_config(finetune_config(**own, seed=1)))
    assert again["step"] == fewer["step"]
    assert again["encoder"]["crc32"] != fewer["encoder"]["crc32"]


def test_probabilities_are_averaged_over_the_views_of_each_video() -> None:
    model = make(settings(0, "linear")).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    shape = (3, 3, 2, 4, 24, 24, 3)  # videos, crops, segments, clip
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    found = _probabilities(model, video, micro_batch=4)

    def singly(dtype: torch.dtype) -> torch.Tensor:
        own = copy.deepcopy(model).to(dtype)
        return torch.stack(
            [torch.cat([own(c[None]).softmax(1) for c in v.flatten(0, 1)]).mean(0) for v in video]
        )

    exact = singly(torch.float64)
    assert_accurate(found, singly(torch.float32), exact)
    assert (exact[0] - exact[1]).abs().max() > 1e-3  # videos differ


def test_another_recipe_is_refused(finetune_config: Callable[..., dict]) -> None:
    finetune(parse_finetune_config(finetune_config(optim={"epochs": 0.2, "warmup_epochs": 0.0})))
    changed = {"epochs": 0.2, "warmup_epochs": 0.0, "layer_decay": 0.5}
    with pytest.raises(UserError, match=r"optim\.layer_decay was 0\.75 and is 0\.5"):
        finetune(parse_finetune_config(finetune_config(optim=changed)))


def test_other_labels_are_refused(
    finetune_config: Callable[..., dict], demo: Path, tmp_path: Path
) -> None:
    train = tmp_path / "train.csv"
    same = {"data": {"train": str(train)}, "optim": {"epochs": 0.2, "warmup_epochs": 0.0}}
    for number in (2, 3):
        relabeled(demo / "train.csv", tmp_path, lambda i, number=number: i % number)
        if number == 2:
            finetune(parse_finetune_config(finetune_config(**same)))
    with pytest.raises(UserError, match=r"found other videos or labels in data\.train"):
        finetune(parse_finetune_config(finetune_config(**same)))


def test_the_folder_of_a_pretraining_is_refused(
    finetune_config: Callable[..., dict], pretrained: Path
) -> None:
    config = parse_finetune_config(finetune_config(output=str(pretrained)))
    with pytest.raises(UserError, match="found the folder of a pretraining"):
        finetune(config)


def test_a_pretraining_refuses_the_folder_of_a_fine_tuning(
    finetune_config: Callable[..., dict], pretrained: Path
) -> None:
    config = finetune_config(optim={"epochs": 0.2, "warmup_epochs": 0.0})
    finetune(parse_finetune_config(config))
    other = json.loads((pretrained / "config.json").read_text()) | {"output": config["output"]}
    with pytest.raises(UserError, match="found the folder of a fine-tuning"):
        pretrain(parse_config(other))
