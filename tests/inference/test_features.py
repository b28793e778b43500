"""`vjepa-fast features`: what the folder holds, and which commands and videos are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.prepare.test_inspect import write_timed
from tests.helpers import videos
from tests.inference.folders import features, files, index_of, read
from vjepa_fast import cli, load_encoder
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.decode.time_stamps import clip_frames
from vjepa_fast.data.manifest.entries import entries_of
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.inference import feature_folder, load, shard_work
from vjepa_fast.inference.clips import ClipList, Sampling, inspect_video


@pytest.mark.parametrize("generation", [1, 2])
def test_features_are_those_of_load_encoder(
    runs: dict, demo: Path, tmp_path: Path, generation: int, capsys: pytest.CaptureFixture
) -> None:
    run = runs[generation]
    assert features(demo / "test.csv", run, tmp_path / "f", "--dtype", "fp32") == 0
    printed = capsys.readouterr().out
    assert "1 shard, 16 clips of 2 x 4 x 4 tokens of 24 features in fp32" in printed
    rows, found = read(tmp_path / "f")
    entries = read_manifest(demo / "test.csv")
    assert [row["path"] for row in rows] == [entry.path for entry in entries]
    assert [row["label_digit"] for row in rows] == [str(e.labels["digit"]) for e in entries]
    assert {(row["clip"], row["first_frame"], row["last_frame"]) for row in rows} == {
        ("0", "0", {1: "7", 2: "6"}[generation])
    }
    expected = load_encoder(run)([entry.path for entry in entries])
    assert torch.equal(found, expected.tokens)  # the same batch of 16

    assert (
        features(demo / "test.csv", run, tmp_path / "m", "--pool", "mean", "--format", "npz") == 0
    )
    rows, found = read(tmp_path / "m")
    assert found.dtype == torch.float16 and rows[3]["shard"] == "shards/00000.npz"
    assert torch.equal(found, expected.pooled.half())

    few = ["--dtype", "bf16", "--batch-size", "3"]
    assert features(demo / "test.csv", run, tmp_path / "b", *few) == 0
    _, found = read(tmp_path / "b")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.tokens, rtol=2**-8, atol=1e-5)


def test_clips_are_spread_over_the_video_and_windows_slide(runs: dict, tmp_path: Path) -> None:
    path = videos.write_numbered(tmp_path, "vp9", 60)
    encoder = load_encoder(runs[1])  # a clip is 8 frames of the video

    def firsts(name: str, *arguments: str) -> list[int]:
        assert features(path, runs[1], tmp_path / name, "--dtype", "fp32", *arguments) == 0
        rows, found = read(tmp_path / name)
        assert [row["clip"] for row in rows] == [str(i) for i in range(len(rows))]
        for row, tokens in zip(rows, found, strict=True):
            video = every[torch.linspace(0, 8, 4).clamp(max=7).long() + int(row["first_frame"])]
            torch.testing.assert_close(encoder(video).tokens[0], tokens, rtol=1e-5, atol=1e-5)
            assert int(row["last_frame"]) == int(row["first_frame"]) + 7
        return [int(row["first_frame"]) for row in rows]

    whole = ClipList(inspect_video(path), replace(encoder.sampling, num_frames=60, frame_step=1))
    every = decode_clip(whole.plan(0), whole.entries[0], 28)
    assert len(every) == 60
    assert firsts("one") == [26]
    assert firsts("three", "--clips", "3") == [8, 25, 43]
    assert firsts("windows", "--window-step", "20") == [0, 20, 40]
    assert firsts("tiles", "--window-step", "8") == [0, 8, 16, 24, 32, 40, 48]
    assert firsts("end", "--window-step", "52") == [0, 52]


def test_windows_in_seconds(tmp_path: Path) -> None:
    """25 frames per second; a clip of 4 frames at 4 per second takes one second."""
    entries = inspect_video(videos.write_numbered(tmp_path, "vp9", 60))
    clips = ClipList(entries, Sampling(4, 28, fps=4.0), window_step=10)
    assert [clips.plan(i).frames.tolist() for i in range(len(clips))] == [
        [start, start + 6, start + 12, start + 18] for start in (0, 10, 20, 30)
    ]
    spread = ClipList(entries, Sampling(4, 28, fps=4.0), clips=2)
    assert [spread.plan(i).frames[0] for i in range(2)] == [8, 26]
    unknown = replace(entries[0], vfr=None)  # the decoder reads the time stamps
    timed = ClipList(entries_of([unknown]), Sampling(4, 28, fps=4.0), window_step=10)
    assert [clip_frames(timed.plan(i), unknown).tolist() for i in range(4)] == [
        clips.plan(i).frames.tolist() for i in range(4)
    ]


def test_windows_in_seconds_stay_in_order_where_the_frame_rate_varies(tmp_path: Path) -> None:
    """50 frames a second, but the middle one is shown for ten: 100 frames in 12 seconds."""
    path = write_timed(tmp_path / "gap.mp4", [0.02 * i + 10 * (i > 49) for i in range(100)])
    entries = inspect_video(path)
    assert entries[0].vfr
    clips = ClipList(entries, Sampling(4, 28, fps=4.0), window_step=25)  # every 3 seconds
    found = [clip_frames(clips.plan(i), entries[0]).tolist() for i in range(len(clips))]
    assert found == [[0, 12, 25, 37], [49] * 4, [49] * 4, [49] * 4]
    middle = ClipList(entries, Sampling(4, 28, fps=4.0)).plan(0)  # as in training
    assert clip_frames(middle, entries[0]).tolist() != [49] * 4


def mixed(folder: Path) -> Path:
    """A manifest of 8 videos: the third is damaged, the sixth shorter than a clip of run 1."""
    paths = [videos.write_numbered(folder, "vp9", 20, f"v{i}") for i in range(8)]
    paths[5] = videos.write_numbered(folder, "vp9", 5, "short")
    entries = list(read_manifest(videos.manifest_of(folder, paths)))
    bad = folder / "bad.webm"
    bad.write_bytes(b"\x1aE\xdf\xa3" + bytes(entries[2].size_bytes - 4))
    entries[2] = replace(entries[2], path=str(bad), mtime_ns=bad.stat().st_mtime_ns)
    write_manifest(folder / "mixed.csv", entries)
    return folder / "mixed.csv"


def test_what_cannot_be_used_is_left_out_and_listed(
    runs: dict, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = mixed(tmp_path)
    monkeypatch.setattr(shard_work, "CLIPS_PER_SHARD", 3)
    some = ["--max-bad-fraction", "0.2", "--dtype", "fp32"]
    assert features(manifest, runs[1], tmp_path / "f", *some) == 0
    captured = capsys.readouterr()
    assert "3 shards, 6 clips" in captured.out and "2 clips left out, see index.csv" in captured.out
    assert "1 of 8 videos are shorter than a clip (8 frames of the video) and left" in captured.err
    assert "left out: " in captured.err and "bad.webm" in captured.err
    rows = index_of(tmp_path / "f")
    assert [row["row"] for row in rows] == ["0", "1", "", "0", "1", "", "0", "1"]
    assert "damaged" in rows[2]["left_out"]
    assert rows[5]["left_out"] == "shorter than a clip of 8 frames of the video"
    _, found = read(tmp_path / "f")
    good = [row["path"] for row in rows if row["shard"]]
    torch.testing.assert_close(found, load_encoder(runs[1])(good).tokens, rtol=1e-5, atol=1e-5)

    assert features(manifest, runs[1], tmp_path / "g") == 2
    assert "found 1 of 8 clips undecodable (the last one: " in capsys.readouterr().err
    write_manifest(manifest, [read_manifest(manifest)[5]])
    assert features(manifest, runs[1], tmp_path / "h") == 2
    assert "short.webm: found 5 frames at 25 frames per second, exp" in capsys.readouterr().err
    assert not (tmp_path / "h").exists()


def test_images_of_a_manifest_are_repeated_as_in_training(runs: dict, tmp_path: Path) -> None:
    pictures = tmp_path / "images"
    pictures.mkdir()
    for i in range(2):
        Image.fromarray(videos.numbered(i, 32, 32)).save(pictures / f"{i}.png")
    assert cli.main(["index", str(pictures), "--output", str(tmp_path / "i.csv")]) == 0
    for run in runs.values():
        shutil.rmtree(tmp_path / "f", ignore_errors=True)
        windows = ["--window-step", "5", "--dtype", "fp32"]
        assert features(tmp_path / "i.csv", run, tmp_path / "f", *windows) == 0
        rows, found = read(tmp_path / "f")
        assert [row["last_frame"] for row in rows] == ["0", "0"]
        picture = torch.from_numpy(videos.numbered(1, 32, 32))[2:30, 2:30]
        expected = load_encoder(run)(picture.expand(4, -1, -1, -1)).tokens[0]
        torch.testing.assert_close(found[1], expected, rtol=1e-5, atol=1e-5)


def test_commands_that_are_refused(
    runs: dict, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    test, full = demo / "test.csv", tmp_path / "full"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    Image.fromarray(videos.numbered(0)).save(tmp_path / "a.png")
    assert features(test, runs[1], full, "--pool", "mean") == 0
    entries = list(read_manifest(test))
    entries[3].labels["digit"] += 1
    write_manifest(relabeled := tmp_path / "relabeled.csv", entries)
    before = files(full)
    capsys.readouterr()
    for source, run, output, arguments, sentence in (
        (test, runs[2], full, ["--pool", "mean"], "other weights or settings (weights "),
        (test, runs[1], full, [], "(pool mean, now tokens)"),
        (test, runs[1], full, ["--pool", "mean", "--clips", "2"], "clips_per_video 1, now 2"),
        (demo / "train.csv", runs[1], full, ["--pool", "mean"], "(videos "),
        (relabeled, runs[1], full, ["--pool", "mean"], "(labels {'digit': "),
        (test, runs[1], tmp_path / "other", [], "other files (thesis.txt), expected none"),
        (test, runs[1], tmp_path / "a.png", [], "a.png: found a file, expected a folder"),
        (tmp_path / "a.png", runs[1], tmp_path / "n", [], "found an image (png), expected a v"),
        (demo, runs[1], tmp_path / "n", [], "found a folder, expected a video file"),
        (tmp_path / "no.csv", runs[1], tmp_path / "n", [], "no.csv: found no manifest"),
        (test, tmp_path, tmp_path / "n", [], "expected"),
        (test, runs[1], tmp_path / "n", ["--format", "npz", "--dtype", "bf16"], "NumPy has no"),
    ):
        assert features(source, run, output, *arguments) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "n").exists()
    assert files(full) == before
    for part in ("2/2", "1", "1/0", "a/b"):
        with pytest.raises(SystemExit):
            features(test, runs[1], full, "--shard", part)
        assert f"found '{part}', expected I/N" in capsys.readouterr().err
    for fraction in ("5", "nan", "-0.1", "a"):
        with pytest.raises(SystemExit):
            features(test, runs[1], full, f"--max-bad-fraction={fraction}")
        assert f"found '{fraction}', expected a number from 0 to 1" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(feature_folder.shutil, "disk_usage", lambda _: usage)
    assert features(test, runs[1], tmp_path / "d") == 2
    assert "d: found 0.0 GB of free disk, expected the 0.0 GB that" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert features(test, runs[1], tmp_path / "d", "--pool", "mean") == 0  # which it advises


def test_features_that_cannot_be_stored(
    runs: dict, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    def scaled(factor: float):
        def filled(*arguments):
            encoder = original(*arguments)
            encoder.norm.weight.data.mul_(factor)
            return encoder

        return filled

    original = load._filled
    monkeypatch.setattr(load, "_filled", scaled(1e6))
    assert features(demo / "test.csv", runs[1], tmp_path / "a") == 2
    assert "expected at most 6.55e+04, the largest number that --dtype fp16" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr(load, "_filled", scaled(float("inf")))
    assert features(demo / "test.csv", runs[1], tmp_path / "b", "--dtype", "fp32") == 2
    assert "found features that are NaN or infinite, expected finite" in capsys.readouterr().err
    assert not list((tmp_path / "b" / "shards").iterdir())


def test_settings_are_plain_json(runs: dict, demo: Path, tmp_path: Path) -> None:
    assert features(demo / "test.csv", runs[2], tmp_path / "f", "--pool", "mean") == 0
    found = json.loads((tmp_path / "f" / "features.json").read_text())
    assert found["weights"] == f"{load_encoder(runs[2]).checksum:08x}"
    assert (found["grid"], found["width"], found["fps"]) == ([2, 4, 4], 24, 4.0)
    assert str(tmp_path) not in json.dumps(found)
