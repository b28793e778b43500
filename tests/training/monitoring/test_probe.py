"""The probe during training: its sample, its value, and that the training doesn't depend on it."""

from __future__ import annotations

import csv
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.trainers import make_model, make_trainer
from vjepa_fast.closed_form import ridge
from vjepa_fast.commands.report import report_html
from vjepa_fast.config import parse_config
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.errors import UserError
from vjepa_fast.inference.load import load_encoder
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.training import batches
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.loop import pretrain
from vjepa_fast.training.monitoring import probe_sample
from vjepa_fast.training.monitoring.probe import TrainingProbe
from vjepa_fast.training.monitoring.probe_sample import ProbeSample
from vjepa_fast.training.monitoring.writer import read_metrics

PROBE = {"probe_every": 2, "probe_label": "direction"}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    with caplog.at_level(logging.WARNING, "vjepa_fast"):
        yield caplog


def table(path: Path) -> tuple[list[str], list[dict]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames), list(reader)


def write_table(path: Path, names: list[str], rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def relabeled(demo: Path) -> Callable[..., str]:
    """Writes the demo's manifest anew, with functions of a row's number as labels."""

    def make(name: str, **labels: Callable[[int], object]) -> str:
        names, rows = table(demo / "train.csv")
        for i, row in enumerate(rows):
            row |= {column: function(i) for column, function in labels.items()}
        names += [column for column in labels if column not in names]
        return str(write_table(demo / name, names, rows))

    return make


def test_a_run_with_a_probe_is_the_run_without(
    small_config: Callable[..., dict], demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reads each manifest once."""
    read: list[str] = []
    for reader in (batches, probe_sample):
        monkeypatch.setattr(
            reader, "open_manifest", lambda path: open_manifest(read.append(str(path)) or path)
        )
    optim = {"steps": 4}
    plain = pretrain(parse_config(small_config(output=str(tmp_path / "plain"), optim=optim)))
    log, output = PROBE | {"probe_test": str(demo / "test.csv")}, str(tmp_path / "probed")
    run = pretrain(parse_config(small_config(output=output, optim=optim, log=log)))
    losses = [
        [row["loss"] for row in read_metrics(r / "metrics.jsonl") if "loss" in row]
        for r in (plain, run)
    ]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    train, test = (str(demo / name) for name in ("train.csv", "test.csv"))
    assert read == [train, train, test]
    a, b = (load_file(checkpoints(r)[-1] / "shard_00000.safetensors") for r in (plain, run))
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)

    values = {
        row["step"]: row["probe_accuracy"]
        for row in read_metrics(run / "metrics.jsonl")
        if "probe_accuracy" in row
    }
    assert list(values) == [1, 3] and all((16 * v).is_integer() for v in values.values())
    board = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("probe_accuracy")
    assert [(e.step, e.value) for e in board] == list(values.items())

    best = max(values, key=values.get)
    link = run / "checkpoints" / "best"
    assert Checkpoint.find(link).folder == run / "checkpoints" / f"step_{best + 1:08d}"
    assert Checkpoint.find(link).state["probe"]["value"] == values[best]
    assert load_encoder(link).width == 24
    assert Checkpoint.find(run).state["step"] == 4
    report = report_html(run)
    assert f"{values[best]:.4g} (best)" in report and "probe of the labels" in report


def test_the_value_is_that_of_ridge_on_the_teachers_features(
    small_config: Callable[..., dict],
) -> None:
    """Of 48 videos 9 are held out."""
    init_process_group()
    config = parse_config(small_config(log=PROBE, data={"num_frames": 4}))
    trainer = make_trainer()
    probe, sample = TrainingProbe(config, HostGroup()), ProbeSample(config, 0, 1)
    assert sample.tested.sum() == 9 and len(sample.tested) == 48
    (videos, clips), *rest = sample.batches(48)
    assert not rest and videos.tolist() == list(range(48))
    network = trainer.teacher.network()
    tokens = encode_clips(network, clips).view(48, -1, network.width)
    spread = (tokens - tokens.mean(1, keepdim=True)).square().mean(1).sqrt()
    pooled = torch.cat([tokens.mean(1), spread], 1)
    tested, classes = torch.from_numpy(sample.tested), torch.tensor(sample.targets)
    weight, bias = ridge(pooled[~tested], F.one_hot(classes[~tested], 8))
    right = (pooled[tested].double() @ weight + bias).argmax(1) == classes[tested]
    # Other batches may round a tie the other way.
    assert abs(9 * probe.value(trainer) - right.sum().item()) <= 1


def test_of_a_frozen_target_the_trained_encoder_is_probed() -> None:
    frozen = make_model(seed=1).make_target_encoder().state_dict()
    trainer = make_trainer(frozen_teacher=dict(frozen))
    video = torch.randint(0, 256, (2, 4, 24, 24, 3), dtype=torch.uint8)
    expected = encode_clips(make_model().encoder, video)
    assert trainer.result_features(video).equal(expected)
    assert not trainer.target_features(video).equal(expected)
    assert trainer.timer.take() == {}


def test_shares_and_budgets_give_the_same_clips(
    small_config: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(small_config(log=PROBE | {"probe_videos": 20}))
    whole = ProbeSample(config, 0, 1)
    monkeypatch.setattr(probe_sample, "KEPT", 0)
    parts = [ProbeSample(config, rank, 3) for rank in range(3)]
    assert {part.what for part in parts} == {whole.what}
    clips = {}
    for part in parts:
        for videos, found in part.batches(4):
            assert len(videos) <= 4
            clips |= dict(zip(videos.tolist(), found, strict=True))
    (videos, expected), *_ = whole.batches(20)
    assert sorted(clips) == videos.tolist() == list(range(20))
    assert all(clips[i].equal(expected[i]) for i in clips)
    again, kept = next(parts[0].batches(4)), next(whole.batches(20))
    assert again[1][0].equal(expected[0]) and kept[1] is expected
    assert whole.tested.sum() == 4


def test_the_sample_depends_neither_on_the_seed_nor_on_the_output(
    small_config: Callable[..., dict],
) -> None:
    log = PROBE | {"probe_videos": 20}
    first, second = (
        ProbeSample(parse_config(small_config(log=log, seed=seed, output=f"runs/{seed}")), 0, 1)
        for seed in (0, 7)
    )
    assert first.what == second.what and np.array_equal(first.tested, second.tested)
    fewer = ProbeSample(parse_config(small_config(log=log | {"probe_videos": 19})), 0, 1)
    assert fewer.what != first.what


def test_videos_without_a_label_are_left_out(
    small_config: Callable[..., dict], relabeled: Callable[..., str], demo: Path
) -> None:
    """Also the manifests without the column; -1 stands for no label."""
    some = relabeled("some.csv", label_half=lambda i: i % 2 if i < 30 else -1)
    manifests = [str(demo / "train.csv"), some]
    config = parse_config(
        small_config(data={"manifests": manifests}, log=PROBE | {"probe_label": "half"})
    )
    sample = ProbeSample(config, 0, 1)
    assert sample.targets.tolist() == [i % 2 for i in range(30)]


def test_classes_may_have_names_and_numbers_are_regressed(
    small_config: Callable[..., dict], relabeled: Callable[..., str], demo: Path
) -> None:
    """A class of the test manifest is the one of that name; values are as they are written."""
    names, numbers = [f"class {i}" for i in range(4)], [0.5, -1.5, 3.0, 8.0, 1e6]
    train = relabeled(
        "named.csv", label_kind=lambda i: names[i % 4], value_speed=lambda i: numbers[i % 5]
    )
    test = relabeled("named_test.csv", label_kind=lambda i: names[3 - i % 2])
    data, log = {"manifests": [train], "num_frames": 4}, PROBE | {"probe_label": "kind"}
    named = ProbeSample(parse_config(small_config(data=data, log=log | {"probe_test": test})), 0, 1)
    tested = named.targets[named.tested]
    assert set(tested[::2]) == {named.targets[3]} and set(tested[1::2]) == {named.targets[2]}

    init_process_group()
    config = parse_config(small_config(data=data, log=PROBE | {"probe_label": "speed"}))
    probe, sample = TrainingProbe(config, HostGroup()), ProbeSample(config, 0, 1)
    assert sample.targets.tolist() == [numbers[i % 5] for i in range(48)]
    assert probe.metric == "probe_r2" and probe.value(make_trainer()) < 1


def test_a_video_that_cannot_be_decoded_is_left_out(
    small_config: Callable[..., dict], demo: Path, tmp_path: Path, warnings
) -> None:
    shutil.copytree(demo, tmp_path / "damaged")
    _, rows = table(tmp_path / "damaged" / "train.csv")
    (tmp_path / "damaged" / rows[5]["path"]).write_bytes(b"no video")
    data = {"manifests": [str(tmp_path / "damaged" / "train.csv")], "num_frames": 4}
    config = parse_config(small_config(data=data, log=PROBE))
    init_process_group()
    probe, trainer = TrainingProbe(config, HostGroup()), make_trainer()
    assert 0 <= probe.value(trainer) <= 1
    assert probe.value(trainer) == probe.value(trainer)
    assert warnings.text.count("left out of the probe") == 1
    assert rows[5]["path"] in warnings.text
    videos = np.concatenate([found for found, _ in ProbeSample(config, 0, 1).batches(8)])
    assert sorted(videos.tolist()) == [i for i in range(48) if i != 5]


def test_features_that_are_not_finite_have_no_value(
    small_config: Callable[..., dict], warnings
) -> None:
    init_process_group()
    config = parse_config(small_config(log=PROBE, data={"num_frames": 4}))
    probe = TrainingProbe(config, HostGroup())
    trainer = make_trainer()
    with torch.no_grad():
        trainer.teacher.network().norm.weight.fill_(float("nan"))
    assert probe.value(trainer) is None
    assert "no probe: the features are not finite" in warnings.text


def test_values_that_are_all_equal_where_it_is_tested_have_no_r2(
    small_config: Callable[..., dict], relabeled: Callable[..., str], warnings
) -> None:
    """As where the other test videos cannot be decoded; an infinite value would spoil the best."""
    manifest = relabeled("equal.csv", value_speed=lambda i: i)
    config = parse_config(
        small_config(
            data={"manifests": [manifest], "num_frames": 4}, log=PROBE | {"probe_label": "speed"}
        )
    )
    init_process_group()
    probe, sample = TrainingProbe(config, HostGroup()), ProbeSample(config, 0, 1)
    probe._sample.targets = np.where(sample.tested, 0.1, sample.targets)
    assert probe.value(make_trainer()) is None
    assert "no probe: its videos that can be decoded are too few, or all alike" in warnings.text


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (
            {"probe_label": "action"},
            r"log\.probe_label: found 'action', which is no column of \S*probed\.csv "
            r"\(data\.manifests\), expected one of digit, direction, empty, named, one; "
            r"name another one, or add it to the manifest as label_NAME or value_NAME",
        ),
        (
            {"probe_label": "one"},
            r"log\.probe_label: found one class only in the 48 videos with label_one, expected at "
            r"least two; name another column",
        ),
        (
            {"probe_label": "empty"},
            r"log\.probe_label: found negative numbers only in label_empty of data\.manifests, "
            r"which count as no label, expected classes from 0 on; fill the column, or name .*",
        ),
        (
            {"probe_label": "digit", "probe_videos": 6},
            r"log\.probe_videos: found 6, of which the probe learns from 5 and is tested on 1, "
            r"expected several for each of the 6 classes of label_digit; set it to e\.g\. 100, or "
            r"log\.probe_every to null where there are fewer",
        ),
        (
            {"probe_label": "one", "probe_test": "test.csv"},
            r"log\.probe_label: found 'one', which is no column of \S*test\.csv "
            r"\(log\.probe_test\), expected one of digit, direction; name another one, or add .*",
        ),
        (
            {"probe_label": "named", "probe_test": "named_by_numbers.csv"},
            r"log\.probe_label: found names of classes in label_named of some manifests and "
            r"integers in others, expected one kind; write the same kind into all of them",
        ),
        (
            {"probe_label": "named", "probe_test": "named_values.csv"},
            r"log\.probe_test: found value_named where data\.manifests have label_named, expected "
            r"the same column; rename one of them",
        ),
    ],
    ids=["no column", "one class", "no label", "too few", "test without", "kinds", "columns"],
)
def test_mistakes_are_one_sentence(
    small_config: Callable[..., dict],
    relabeled: Callable[..., str],
    demo: Path,
    log: dict,
    sentence: str,
) -> None:
    manifest = relabeled(
        "probed.csv",
        label_one=lambda _: 3,
        label_empty=lambda _: -1,
        label_named=lambda i: "ab"[i % 2],
    )
    relabeled("named_by_numbers.csv", label_named=lambda i: i % 2)
    relabeled("named_values.csv", value_named=lambda i: i % 2)
    if "probe_test" in log:
        log = log | {"probe_test": str(demo / log["probe_test"])}
    config = parse_config(small_config(data={"manifests": [manifest]}, log=PROBE | log))
    with pytest.raises(UserError) as error:
        ProbeSample(config, 0, 1)
    assert re.fullmatch(sentence, str(error.value)), error.value
