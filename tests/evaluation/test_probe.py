"""`vjepa-fast probe` on real videos: what it prints, writes, refuses, and goes on from."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.conftest import QUICK
from tests.helpers.house import PROBE_HELP, loaded
from tests.helpers.paths import REPOSITORY
from vjepa_fast import cli
from vjepa_fast.closed_form import neighbor_votes
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.evaluation import probe as probing
from vjepa_fast.evaluation import run_heads
from vjepa_fast.evaluation.kinds import PIXELS, PRETRAINED, RANDOM
from vjepa_fast.evaluation.labels.draws import plain_draw
from vjepa_fast.evaluation.labels.targets import TEST
from vjepa_fast.evaluation.saved_probe import load_probe
from vjepa_fast.evaluation.views.decode import ViewDecoder
from vjepa_fast.evaluation.views.featurize import encoder_features
from vjepa_fast.evaluation.views.plan import ViewPlan
from vjepa_fast.evaluation.views.stream import StreamedFeatures
from vjepa_fast.inference.load import load_encoder, load_target_encoder
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.weights import weights_checksum


def ruined(entry: ManifestEntry, path: Path) -> ManifestEntry:
    """An entry whose file is not a video, with matching size and time."""
    path.write_bytes(b"\x1aE\xdf\xa3" + bytes(entry.size_bytes - 4))
    return replace(entry, path=str(path), mtime_ns=path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    "program", ["import vjepa_fast.evaluation.probe", PROBE_HELP], ids=["import", "help"]
)
def test_probing_imports_no_deepspeed_and_no_trainer(program: str) -> None:
    found = set(loaded(REPOSITORY, program))
    assert "vjepa_fast.training.trainer" not in found
    assert not found & {"deepspeed", "sklearn", "matplotlib", "tensorboard"}


def test_what_it_prints_and_leaves(probe, run: Path, demo: Path) -> None:
    result, printed = probe("--baselines", "random,pixels", labels="digit,direction")
    assert result["step"] == 2 and result["probe"] == "attentive" and result["blocks"] == 1
    for label in ("digit", "direction"):
        assert result["accuracy"][label].keys() == {PRETRAINED, RANDOM, PIXELS}
        for accuracy in result["accuracy"][label].values():
            assert f"{accuracy:.3f}" in printed
        assert f"{result['chance'][label]:.3f}" in printed
        assert sum(map(sum, result["confusion"][label])) == 16
    assert result["videos"][TEST] == {
        "manifest": str(demo / "test.csv"),
        "videos": 16,
        "used": 16,
        "left_out": {},
    }
    assert len(result["grid"]) == 6 and all(head["loss"] > 0 for head in result["grid"])
    names = "probe.json, probe.png, probe_digit.safetensors, probe_direction.safetensors"
    assert f"written to {run}: {names}" in printed
    assert not (run / "probe_work").exists() and result["picture"] == "probe.png"
    for label, file in result["saved"].items():
        check_saved(run / file, label, result, demo)


def check_saved(file: Path, label: str, result: dict, demo: Path) -> None:
    """The saved probe reads the run's encoder, and has the accuracy that is told."""
    checkpoint = Checkpoint.find(file.parent)
    classifier, header = load_probe(file)
    assert header["encoder"] == {
        "checkpoint": "step_00000002",
        "step": 2,
        "weights": "teacher",
        "crc32": weights_checksum(load_target_encoder(checkpoint).state_dict()),
    }
    assert (header["label"], header["draw"]) == (label, 0)
    rows, tokens = seen(
        file.parent, demo / "test.csv", ViewPlan(load_encoder(file.parent).sampling)
    )
    guesses = classifier(tokens[:, 0].float()).argmax(1).tolist()
    entries = read_manifest(demo / "test.csv")
    right = sum(
        header["classes"][guess] == entries[row].labels[label]
        for row, guess in zip(rows, guesses, strict=True)
    )
    assert right / 16 == result["accuracy"][label][PRETRAINED] == header["test"]["top1"]


def seen(run: Path, manifest: Path, plan: ViewPlan) -> tuple[list[int], torch.Tensor]:
    """Rows of the videos, and the tokens of their views as they are stored: bf16 [n, V, S N, D]."""
    encoder = encoder_features(load_encoder(run).model)
    source = StreamedFeatures(encoder, ViewDecoder(open_manifest(manifest), plan))
    count = len(read_manifest(manifest))
    batches = list(source.batches([(0, np.arange(count))]))
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    return rows, torch.cat([batch.tokens for batch in batches]).bfloat16()


def test_low_shot_and_a_grid(probe) -> None:
    result, printed = probe(
        *("--label-shares", "0.3,0.6", "--draws", "2", "--blocks", "4"),
        *("--lr", "1e-3,1e-2", "--weight-decay", "0,0.1", "--validation", "0.2", "--seed", "3"),
    )
    assert not result["flip"] and result["seed"] == 3
    assert len(result["grid"]) == 2 * 2 * 4
    assert result["validation"] == 10 and result["drawn"] == "the same share of every class"
    for row in result["results"]:
        draws = [draw["test"]["top1"] for draw in row["draws"]]
        assert row["test"]["top1"]["mean"] == pytest.approx(sum(draws) / 2)
        assert f"{sum(draws) / 2:.3f} ± " in printed
        for draw in row["draws"]:
            of_draw = [
                head
                for head in result["grid"]
                if (head["share"], head["draw"]) == (row["share"], draw["draw"])
            ]
            best = max(head["validation"]["top1"] for head in of_draw)
            assert draw["validation"]["top1"] == best and len(of_draw) == 4
    assert result["saved"] == {"digit": "probe_digit.safetensors"}


def test_a_head_that_diverges_is_named_and_not_chosen(probe) -> None:
    result, printed = probe("--lr", "1e-3,1e30", "--epochs", "4")
    assert "found a gradient that is not finite in the probe of digit with learning rate 1e+30" in (
        printed
    )
    (row,) = result["results"]
    assert [draw["lr"] for draw in row["draws"]] == [1e-3]


def test_a_linear_probe_tries_several_learning_rates(probe) -> None:
    result, _ = probe("--probe", "linear", "--segments", "2", "--crops", "3")
    assert result["saved"] == {} and result["validation"] == 5
    assert [head["lr"] for head in result["grid"]] == [1e-3, 1e-2, 1e-1]
    best = max(head["validation"]["top1"] for head in result["grid"])
    (row,) = result["results"]
    assert row["draws"][0]["validation"]["top1"] == best


def test_nearest_neighbors(probe, run: Path, demo: Path) -> None:
    """The votes for each crop are averaged."""
    result, _ = probe("--probe", "knn", "--segments", "2", "--crops", "3", labels="direction")
    plan = ViewPlan(load_encoder(run).sampling, segments=2, crops=3)
    rows, tokens = seen(run, demo / "train.csv", plan)
    tested, asked = seen(run, demo / "test.csv", plan)
    labels = [
        torch.tensor([read_manifest(demo / name)[row].labels["direction"] for row in own])
        for name, own in (("train.csv", rows), ("test.csv", tested))
    ]
    bank = tokens.float().mean((1, 2))
    votes = torch.stack(
        [
            neighbor_votes(bank, labels[0], view.float().mean(1), num_classes=8)
            for view in asked.unbind(1)
        ]
    ).mean(0)
    right = (votes.argmax(1) == labels[1]).double().mean().item()
    assert abs(result["accuracy"]["direction"][PRETRAINED] - right) <= 1 / 16  # rounding of a mean
    assert result["saved"] == {} and len(result["grid"]) == 1


def test_streamed_with_augmentation(probe, run: Path) -> None:
    arguments = ("--augment", "--flip", "--segments", "2", "--frame-positions", "--crops", "3")
    result, _ = probe(*arguments)
    again, _ = probe(*arguments)
    assert result["augment"] and result["grid"] == again["grid"]
    assert result["flip"] and result["seed"] == 0 and result["precision"] == "float32"
    assert result["encoder_crc32"] == f"{load_encoder(run).checksum:08x}"


def test_a_validation_manifest_chooses(probe, demo: Path) -> None:
    """Chosen on the test videos themselves, the best head is the best on the test."""
    arguments = ("--validation", str(demo / "test.csv"), "--lr", "1e-5,1e-2")
    result, _ = probe(*arguments)
    for head in result["grid"]:
        assert head["validation"] == head["test"]
    best = max(head["test"]["top1"] for head in result["grid"])
    assert result["accuracy"]["digit"][PRETRAINED] == best


def test_videos_that_do_not_decode_are_left_out(probe, run: Path, demo: Path) -> None:
    entries = list(read_manifest(demo / "train.csv"))
    entries[5] = ruined(entries[5], run / "bad.webm")
    write_manifest(run / "bad.csv", entries)
    arguments = ("--train", str(run / "bad.csv"), "--test", str(demo / "test.csv"))
    result, printed = probe(*arguments)
    assert "left out: 1 of 48 train videos, which do not decode" in printed
    train = result["videos"]["train"]
    assert train["used"] == 47 and list(train["left_out"]) == [entries[5].path]


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_head_without_videos_is_left_out(probe, run: Path, demo: Path, kind: str) -> None:
    """Three draws of one video each, of which the second one's does not decode."""
    entries = list(read_manifest(demo / "train.csv"))
    (drawn,) = plain_draw(len(entries), 0.02, seed=1).tolist()
    entries[drawn] = ruined(entries[drawn], run / "bad.webm")
    write_manifest(run / "bad.csv", entries)
    arguments = ["--train", str(run / "bad.csv"), "--test", str(demo / "test.csv"), "--probe", kind]
    arguments += ["--label-shares", "0.02", "--draw", "plain", *["--lr", "0.1"] * (kind != "knn")]
    result, printed = probe(*arguments, "--draws", "3")
    what = "found that none of the videos with 2 % of the labels of digit can be decoded"
    assert f"{what} in draw 1, which is left out of the results" in printed
    (row,) = result["results"]
    assert [draw["draw"] for draw in row["draws"]] == [0, 2]
    tested = [head["test"] for head in result["grid"]]
    assert tested[1] is None
    mean = (tested[0]["top1"] + tested[2]["top1"]) / 2
    assert row["test"]["top1"]["mean"] == pytest.approx(mean)
    error = probe(*arguments, "--draws", "1", "--seed", "1", status=2)[1]
    assert f"bad.csv: {what}, expected some; take a larger share of the labels, or" in error


def test_it_goes_on_where_it_was_stopped(probe, run: Path, monkeypatch) -> None:
    """Stopped after each batch: no feature and no update is computed twice; the same result."""
    expected, _ = probe("--epochs", "3", "--output", str(run / "at once"))
    (run / "at once" / "probe.json").unlink()

    class Stopped(Exception):
        pass

    steps: list[int] = []
    trained = run_heads.HeadTrainer.step

    def step(self, *arguments) -> None:
        if len(steps) in (2, 5, 6):
            steps.append(0)
            raise Stopped
        steps.append(1)
        trained(self, *arguments)

    monkeypatch.setattr(run_heads.HeadTrainer, "step", step)
    monkeypatch.setattr(run_heads, "SAVE_EVERY", 0.0)
    for _ in range(3):
        with pytest.raises(Stopped):
            probe("--epochs", "3")
    result, _ = probe("--epochs", "3")
    assert sum(steps) == 3 * 3  # batches of 16 of 48 videos
    assert result["grid"] == expected["grid"]


def test_other_labels_are_another_training(probe, run: Path, demo: Path, monkeypatch) -> None:
    """What an interrupted probe left is used by the same probe only."""

    class Stopped(Exception):
        pass

    def stopped(*_: object) -> None:
        raise Stopped

    entries = list(read_manifest(demo / "train.csv"))
    write_manifest(run / "train.csv", entries)
    arguments = ("--train", str(run / "train.csv"), "--test", str(demo / "test.csv"))
    with monkeypatch.context() as patch:
        patch.setattr(run_heads, "SAVE_EVERY", 0.0)
        patch.setattr(probing, "predict", stopped)  # all is trained and saved
        with pytest.raises(Stopped):
            probe(*arguments)
    others = [replace(e, labels={"digit": (e.labels["digit"] + 1) % 3}) for e in entries]
    write_manifest(run / "train.csv", others)
    result, _ = probe(*arguments)
    again, _ = probe(*arguments)
    assert result["grid"] == again["grid"]
    assert probe(*arguments, "--num-frames", "4")[0]["grid"] != result["grid"]  # other features


def test_the_run_of_a_checkpoint_elsewhere(run: Path, demo: Path, tmp_path: Path, capsys) -> None:
    alone = shutil.copytree(Checkpoint.find(run).folder, tmp_path / "elsewhere" / "ckpt")
    command = ["probe", "--checkpoint", str(alone), "--labels", "digit", *QUICK]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert f"written to {alone}: probe.json, probe.png, probe_digit.safetensors" in printed


def test_values(probe, run: Path, demo: Path) -> None:
    for name in ("train.csv", "test.csv"):
        entries = [
            replace(entry, values={"size": 10.0 + entry.labels["digit"]})
            for entry in read_manifest(demo / name)
        ]
        write_manifest(run / name, entries)
    result, printed = probe("--train", str(run / "train.csv"), labels="size,label_digit")
    (row,) = (row for row in result["results"] if row["label"] == "size")
    assert row["test"].keys() == {"mae", "r2"} and row["test"]["mae"]["mean"] < 5
    assert "mean abs. error" in printed and "R²" in printed
    sizes = [
        [entry.values["size"] for entry in read_manifest(run / name)]
        for name in ("train.csv", "test.csv")
    ]
    median = torch.tensor(sizes[0]).median().item()
    chance = sum(abs(size - median) for size in sizes[1]) / 16
    assert result["targets"]["size"]["error_of_median"] == pytest.approx(chance)
    assert result["chance"].keys() == {"digit"}
    classifier, header = load_probe(run / result["saved"]["size"])
    assert classifier.linear.out_features == 1 and header["classes"] == []
    assert header["mean"] == pytest.approx(sum(sizes[0]) / 48)


def test_large_values_keep_their_digits(probe, run: Path, demo: Path) -> None:
    """Seconds since 1970: fp32 would know them to 128 s."""
    for name in ("train.csv", "test.csv"):
        entries = [
            replace(entry, values={"time": 1.7e9 + entry.labels["digit"]})
            for entry in read_manifest(demo / name)
        ]
        write_manifest(run / name, entries)
    result, _ = probe("--train", str(run / "train.csv"), labels="time")
    assert 0.1 < result["results"][0]["test"]["mae"]["mean"] < 5
    assert not (run / "probe.png").exists() and "picture" not in result


def test_what_is_refused(probe, run: Path, demo: Path, capsys) -> None:
    for arguments, labels, sentence in (
        ((), "color", "found labels digit, direction, expected color"),
        (("--train", str(run / "config.json")), "digit", "config.json"),
        (("--flip",), "digit", "--flip: found it without --augment"),
        (("--probe", "knn", "--blocks", "4"), "digit", "--blocks: found 4 with --probe knn"),
        (("--probe", "knn", "--lr", "1"), "digit", "--lr: found it with --probe knn, which is not"),
        (("--probe", "knn", "--augment"), "digit", "--augment: found it with --probe knn, which"),
        (
            ("--probe", "knn", "--epochs", "9"),
            "digit",
            "--epochs: found it with --probe knn, which",
        ),
        (("--probe", "knn", "--batch", "9"), "digit", "--batch: found it with --probe knn, which"),
        (("--draws", "2"), "digit", "--draws: found it without a share of the labels to draw, exp"),
        (("--draw", "plain"), "digit", "--draw: found it without a share of the labels to draw"),
        (
            ("--augment", "--store", "x"),
            "digit",
            "--store: found it with --augment, whose features",
        ),
        (("--augment", "--segments", "100"), "digit", "segments: found 100, expected 1 to 99"),
        (
            ("--store", str(run / "config.json")),
            "digit",
            "config.json: found that nothing can be wr",
        ),
        (("--output", "/proc/none"), "digit", "/proc/none: found that nothing can be written th"),
        (("--crop-size", "30"), "digit", "crop_size: found 30, expected a multiple of 8"),
    ):
        assert sentence in probe(*arguments, labels=labels, status=2)[1]
    entries = [replace(entry, labels={}) for entry in read_manifest(demo / "train.csv")]
    write_manifest(run / "bare.csv", entries)
    error = probe("--test", str(run / "bare.csv"), status=2)[1]
    assert "bare.csv: found labels none, expected digit" in error
    for option, text in (
        ("--label-shares", "0"),
        ("--label-shares", "1.5"),
        ("--label-shares", "some"),
        ("--labels", ","),
        ("--lr", "0"),
        ("--weight-decay", "-1"),
        ("--validation", "1.0"),
        ("--baselines", "noise"),
        ("--seed", "-1"),
        ("--seed", str(10**30)),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["probe", "--checkpoint", str(run), "--labels", "digit", option, text])
        assert f"argument {option}: found " in capsys.readouterr().err
    assert cli.main(["probe", "--checkpoint", str(demo), "--labels", "digit"]) == 2
    assert "found no readable state.json (No such file" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_at_a_running_probe(run: Path, tmp_path: Path) -> None:
    """As a terminal sends it: to the decoding processes, too."""
    command = [sys.executable, "-m", "vjepa_fast.cli", "probe", "--checkpoint", str(run)]
    command += ["--labels", "digit", "--epochs", "1000000", "--output", str(tmp_path / "probed")]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as probe:
        said = []
        for line in probe.stderr:
            said.append(line)
            # They are computed; now it trains. The first has no line if they took under a second.
            if line.startswith(("features in", "probes of")):
                os.killpg(probe.pid, signal.SIGINT)
    assert probe.returncode == 130, said
    assert said[-1] == "interrupted; run the same command to go on from there\n"
    assert not any("Traceback" in line for line in said)
