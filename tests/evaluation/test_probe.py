"""The probe learns a label only if the features hold it; its report."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from tests.helpers.house import PROBE_HELP, loaded
from tests.helpers.paths import REPOSITORY
from vjepa_fast import cli
from vjepa_fast.config import parse_config
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation import probe
from vjepa_fast.evaluation.features import Clips, all_features, encoder_features, load_clips
from vjepa_fast.evaluation.probe import PIXELS, PRETRAINED, RANDOM
from vjepa_fast.evaluation.saved_probe import load_probe
from vjepa_fast.evaluation.train_probe import (
    ProbeRecipe,
    label_split,
    make_recipe,
    number_classes,
    probe_accuracy,
    train_probe,
)
from vjepa_fast.inference.load import load_target_encoder
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.training.loop import pretrain
from vjepa_fast.weights import weights_checksum

RECIPE = ProbeRecipe(steps=400, batch=32, lr=5e-3, width=16, heads=2)
FOUR_BLOCKS = replace(RECIPE, steps=150, blocks=4)


def token_clips(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of 6 noisy tokens, a random one of which holds the class in its direction."""
    generator = torch.Generator().manual_seed(seed)
    features = 0.5 * torch.randn(count, 6, 16, generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    where = torch.randint(0, 6, (count,), generator=generator)
    features[torch.arange(count), where] += 4 * torch.eye(16)[labels]
    return features, labels


@pytest.mark.parametrize("recipe", [RECIPE, FOUR_BLOCKS], ids=["1 block", "4 blocks"])
def test_probe_learns_what_the_features_hold(recipe: ProbeRecipe) -> None:
    train, test = token_clips(400, 0), token_clips(200, 1)
    right = train_probe(*train, recipe, seed=0, name="signal")
    assert probe_accuracy(right, *test) > 0.9
    shuffled = train[1][torch.randperm(400, generator=torch.Generator().manual_seed(2))]
    wrong = train_probe(train[0], shuffled, recipe, seed=0, name="chance")
    assert probe_accuracy(wrong, *test) < 0.45  # chance is 0.25


@pytest.mark.parametrize("blocks", [1, 4])
def test_probe_is_a_function_of_its_seed(blocks: int) -> None:
    recipe, before = replace(RECIPE, steps=20, blocks=blocks), torch.get_rng_state()
    probes = [
        parameters_to_vector(
            train_probe(*token_clips(100, 0), recipe, seed=seed, name="").parameters()
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(probes[0], probes[1]) and not torch.equal(probes[0], probes[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_learning_rate_rises_first() -> None:
    def first_step(warmup_steps: int) -> torch.Tensor:
        found = [
            parameters_to_vector(
                train_probe(*token_clips(40, 0), recipe, seed=0, name="").parameters()
            )
            for recipe in (
                replace(FOUR_BLOCKS, steps=1, weight_decay=0.0, warmup_steps=warmup_steps),
                replace(FOUR_BLOCKS, steps=0),
            )
        ]
        return found[0] - found[1]

    whole, tenth = first_step(0), first_step(10)
    assert whole.abs().max().item() == pytest.approx(FOUR_BLOCKS.lr, rel=1e-3)
    torch.testing.assert_close(tenth, whole / 10, rtol=0, atol=1e-6)


def test_any_integers_are_classes() -> None:
    """WordNet offsets and user ids; a test class that was never trained is -1, always wrong."""
    train = torch.tensor([9_999_999_999, 7, 2_084_071, 7])
    test = torch.tensor([2_084_071, 3, 2**62, 7, 9_999_999_999])
    classes, numbered, tested = number_classes(train, test)
    assert classes == [7, 2_084_071, 9_999_999_999]
    assert numbered.tolist() == [2, 0, 1, 0]
    assert tested.tolist() == [1, -1, -1, 0, 2]


def test_labeled_clips_are_a_fraction_of_every_class() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 3)
    drawn = label_split(labels, 0.1, seed=0)
    assert torch.bincount(labels[drawn]).tolist() == [4, 2, 1]  # never none
    assert torch.equal(drawn, label_split(labels, 0.1, seed=0))
    assert not torch.equal(drawn, label_split(labels, 0.1, seed=1))
    assert torch.equal(label_split(labels, 1.0, seed=0), torch.arange(63))


@pytest.mark.parametrize(
    "program",
    ["import vjepa_fast.evaluation.probe", PROBE_HELP],
    ids=["import", "help"],
)
def test_probing_imports_no_deepspeed_and_no_trainer(program: str) -> None:
    found = set(loaded(REPOSITORY, program))
    assert "vjepa_fast.training.trainer" not in found
    assert not found & {"deepspeed", "sklearn", "matplotlib", "tensorboard"}


def test_probe_of_a_run_through_the_command_line(
    small_config: Callable[..., dict],
    demo: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "make_recipe", lambda *size: replace(make_recipe(*size), steps=20))
    data = small_config(optim={"steps": 2})
    run = pretrain(parse_config(data))
    trained = Checkpoint.find(run)
    encoder = load_target_encoder(trained)
    assert not any(p.requires_grad for p in encoder.parameters())

    assert cli.main(["probe", "--checkpoint", str(run), "--labels", "digit,direction"]) == 0
    printed = capsys.readouterr().out
    assert "left out" not in printed
    result = json.loads((run / "probe.json").read_text())
    assert result["step"] == 2
    for label in ("digit", "direction"):
        assert result["accuracy"][label].keys() == {PRETRAINED, RANDOM, PIXELS}
        for accuracy in result["accuracy"][label].values():
            assert f"{accuracy:.3f}" in printed
    assert f"run folder: {run}" in printed
    check_saved(run, demo)

    alone = run.parent / "elsewhere" / "ckpt"  # a checkpoint outside a run
    shutil.copytree(trained.folder, alone)
    entries = list(read_manifest(demo / "train.csv"))
    entries[5] = ruined(entries[5], run / "bad.webm")
    write_manifest(run / "bad.csv", entries)
    bad = ["--train", str(run / "bad.csv"), "--test", str(demo / "test.csv")]
    assert cli.main(["probe", "--checkpoint", str(alone), "--labels", "digit", *bad]) == 0
    printed = capsys.readouterr().out
    assert f"run folder: {alone} (probe.json, probe_digit.safetensors)" in printed
    assert "left out: 1 of 48 train videos, which do not decode" in printed
    result = json.loads((alone / "probe.json").read_text())
    assert result["step"] == 2
    assert result["videos"] == {
        "train": {"used": 47, "left_out": [entries[5].path]},
        "test": {"used": 16, "left_out": []},
    }

    check_ids(run, demo, capsys)

    few = ["--labels", "digit", "--label-fraction", "0.5", "--blocks", "4"]
    assert cli.main(["probe", "--checkpoint", str(run), *few]) == 0
    printed = capsys.readouterr().out
    assert "attentive probe of 4 blocks on frozen features, 50% of the labels, mean of 3" in printed
    assert f"run folder: {run} (probe.json, probe_digit.safetensors, curves.png, " in printed
    check_saved(run, demo)
    result = json.loads((run / "probe.json").read_text())
    assert result["blocks"] == 4
    for kind, draws in result["draws"]["digit"].items():
        assert len(draws) == 3
        assert result["accuracy"]["digit"][kind] == pytest.approx(sum(draws) / 3)
        assert f"{sum(draws) / 3:.3f}" in printed
    for fraction in ("0", "1.5", "some"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(
                [
                    "probe",
                    "--checkpoint",
                    str(run),
                    "--labels",
                    "digit",
                    "--label-fraction",
                    fraction,
                ]
            )
        assert f"found '{fraction}', expected a number above 0" in capsys.readouterr().err

    for arguments, fragment in (
        (["--labels", "color"], "found labels digit, direction, expected color"),
        (["--labels", ","], "--labels: found ','"),
        (["--labels", "digit", "--train", str(run / "config.json")], "config.json"),
    ):
        assert cli.main(["probe", "--checkpoint", str(run), *arguments]) == 2
        assert fragment in capsys.readouterr().err
    assert cli.main(["probe", "--checkpoint", str(demo), "--labels", "digit"]) == 2
    assert "found no readable state.json (No such file" in capsys.readouterr().err
    (demo.parent / "young").mkdir()
    shutil.copy(run / "config.json", demo.parent / "young")
    assert cli.main(["probe", "--checkpoint", str(demo.parent / "young"), "--labels", "digit"]) == 2
    assert "found a run without a checkpoint" in capsys.readouterr().err

    write_manifest(run / "bare.csv", [replace(entry, labels={}) for entry in entries])
    monkeypatch.setattr(probe, "load_clips", None)  # rejected before a clip is decoded
    bare = ["--labels", "digit", "--test", str(run / "bare.csv")]
    assert cli.main(["probe", "--checkpoint", str(run), *bare]) == 2
    assert "bare.csv: found labels none, expected digit" in capsys.readouterr().err


def check_saved(run: Path, demo: Path) -> None:
    """Each saved probe reads the run's encoder, and has the accuracy of the first draw."""
    result, checkpoint = json.loads((run / "probe.json").read_text()), Checkpoint.find(run)
    encoder = load_target_encoder(checkpoint)
    for label, file in result["saved"].items():
        classifier, header = load_probe(run / file)
        assert header["encoder"] == {
            "checkpoint": "step_00000002",
            "step": 2,
            "weights": "teacher",
            "crc32": weights_checksum(checkpoint.weights("encoder", "teacher")),
        }
        assert (header["label"], header["draw"]) == (label, 0)
        assert classifier.norm_eps == {1: 1e-5, 4: 1e-6}[result["blocks"]]
        for key in ("blocks", "label_fraction"):
            assert header[key] == result[key]
        window = {"num_frames": header["num_frames"], "frame_step": 1}
        clips = load_clips(demo / "test.csv", [label], **window, crop_size=header["crop_size"])
        features = encoder_features(encoder)(clips.video)
        tested = number_classes(torch.tensor(header["classes"]), clips.labels[label])[2]
        accuracy = probe_accuracy(classifier, features, tested)
        assert accuracy == header["accuracy"] == result["draws"][label][PRETRAINED][0]


def check_ids(run: Path, demo: Path, capsys: pytest.CaptureFixture) -> None:
    """User ids as classes, and a test manifest with classes that the other one lacks."""

    def write(name: str, change: Callable[[int], int]) -> Path:
        entries = read_manifest(demo / name)
        changed = [replace(e, labels={"user": change(e.labels["digit"])}) for e in entries]
        write_manifest(run / name, changed)
        return run / name

    ids = {digit: 999_999_999_000 + 1_000 * digit**3 for digit in range(10)}
    files = ["--train", str(write("train.csv", ids.get))]
    arguments = ["probe", "--checkpoint", str(run), "--labels", "user", *files]
    seen = sorted({ids[entry.labels["digit"]] for entry in read_manifest(demo / "train.csv")})

    test = write("test.csv", lambda digit: 5 if digit == 1 else ids[digit])
    assert cli.main([*arguments, "--test", str(test)]) == 0
    captured = capsys.readouterr()
    assert json.loads((run / "probe.json").read_text())["classes"] == {"user": seen}
    found = sum(e.labels["user"] == 5 for e in read_manifest(test))
    assert 0 < found < 16
    assert (
        f"label_user: found {found} of 16 test videos of 1 classes that no training video has "
        "(5); they count as wrong"
    ) in captured.err

    test = write("test.csv", lambda digit: digit - 1)
    assert cli.main([*arguments, "--test", str(test)]) == 2
    assert (
        "test.csv: found 8 of 16 videos with a negative number in label_user (the lowest: -1),"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize("backend", ["pyav", "dali"])
def test_videos_that_do_not_decode_are_left_out(
    tmp_path: Path, demo: Path, backend: str, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    whole = [*read_manifest(demo / "train.csv"), *read_manifest(demo / "test.csv")] * 2

    def load(bad: list[int]) -> Clips:
        entries = [
            ruined(e, tmp_path / f"{i}.webm") if i in bad else e for i, e in enumerate(whole)
        ]
        write_manifest(tmp_path / "m.csv", entries)
        shape = {"num_frames": 2, "frame_step": 1, "crop_size": 16}
        return load_clips(tmp_path / "m.csv", ["digit"], **shape, backend=backend)

    everything, most = load([]), load([0, 70, 127])
    kept = [i for i in range(128) if i not in (0, 70, 127)]
    assert everything.sample_ids.tolist() == list(range(128)) and not everything.left_out
    assert most.sample_ids.tolist() == kept
    assert torch.equal(most.video, everything.video[kept])
    assert most.labels["digit"].tolist() == [whole[i].labels["digit"] for i in kept]
    assert [Path(path).name for path in most.left_out] == ["0.webm", "70.webm", "127.webm"]
    warnings = [r.getMessage() for r in caplog.records if "left out of the eval" in r.getMessage()]
    assert len(warnings) == 3 and "70.webm" in warnings[1]
    with pytest.raises(UserError, match=r"found 7 undecodable among the first 21 of 128 videos .*"):
        load(list(range(14, 22)))


def ruined(entry: ManifestEntry, path: Path) -> ManifestEntry:
    """An entry whose file is not a video, with matching size and time."""
    path.write_bytes(b"\x1aE\xdf\xa3" + bytes(entry.size_bytes - 4))
    return replace(entry, path=str(path), mtime_ns=path.stat().st_mtime_ns)


def test_features_that_do_not_fit_are_rejected_before_the_work() -> None:
    video = torch.zeros(3, 2, 8, 8, 3, dtype=torch.uint8)
    seen = []

    def huge(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return torch.zeros(1, 1, 1).expand(len(batch), 2**20, 2**25)

    with pytest.raises(UserError, match=r"features of it: found 3 clips, which take 42\d+\.\d GB"):
        all_features(huge, video, torch.arange(3), torch.device("cpu"), "it")
    assert seen == [3]


def test_features_that_do_not_fit_in_memory_are_refused_at_once():
    """Where the file cache fills the memory, the cache's share counts as free."""

    def wide(video: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1).expand(len(video), 2**20, 2**20)  # 4 TB a clip, and no memory

    video = torch.zeros(3, 2, 1, 1, 3, dtype=torch.uint8)
    with pytest.raises(
        UserError, match=r"^features of it: found 3 clips, which take 13194.* GB, expected at most"
    ) as refused:
        all_features(wide, video, torch.arange(3), torch.device("cpu"), "it")
    free = float(str(refused.value).partition("at most the ")[2].split()[0])
    kilobytes = {
        line.split(":")[0]: int(line.split()[1])
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    }
    reclaimable = kilobytes["Inactive(file)"]
    assert free * 1e6 > 0.5 * min(reclaimable, kilobytes["MemAvailable"])
