"""bench/video/transcode.py compares settings, and does not time wrong copies."""

import importlib
import json
from contextlib import contextmanager

import av
import numpy as np
import pytest

from tests.helpers import videos
from tests.helpers.paths import REPOSITORY

SHIPPED, PLAIN, VP9 = "H.264, as shipped", "plain, CAVLC", "VP9"


@pytest.fixture
def bench(monkeypatch):
    """The benchmark with one small source, whose frames show their numbers."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    module = importlib.import_module("video.transcode")

    def sources(folder):
        pictures = [videos.numbered(i, 48, 64) for i in range(70)]
        return [videos.write_video(folder / "0.mp4", pictures, "h264", options={"crf": "0"})]

    monkeypatch.setattr(module, "write_sources", sources)
    monkeypatch.setattr(module, "FRAMES", 70)
    return module


@pytest.mark.slow
def test_it_compares_size_quality_and_time(bench, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    arguments = ["--only", SHIPPED, VP9, "--clips", "2", "--rounds", "1", "--output", str(output)]
    assert bench.main(arguments) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["setting"], row["gop"]) for row in rows] == [(SHIPPED, 12), (VP9, 12)]
    for row in rows:
        assert row["kb_per_second"] > 0 and row["psnr"] > 30 and row["encoding_ms_per_second"] > 0
        assert row["pyav_ms"] > 0 and row["cpu"] and row["torch"]
    assert rows[0]["dali_ms"] is None  # it decodes no H.264 on a CPU
    assert SHIPPED in capsys.readouterr().out


def test_every_setting_has_its_own_name(bench):
    names = [setting.name for setting in bench.SETTINGS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("wrong", ["frames", "pixels"])
def test_wrong_copies_are_not_timed(bench, monkeypatch, capsys, wrong):
    real = bench.decoders

    @contextmanager
    def decoders(copies):
        with real(copies) as named:

            def decode(ids):
                clips = named["PyAV"](ids)
                return [c.roll(1, dims=0) if wrong == "frames" else c // 2 for c in clips]

            yield {"PyAV": decode}

    monkeypatch.setattr(bench, "decoders", decoders)
    assert bench.main(["--only", PLAIN, "--clips", "1", "--rounds", "1"]) == 1
    printed = capsys.readouterr()
    assert f"{PLAIN}: found that a copy as PyAV decodes it is off by" in printed.err
    assert "ms/clip" not in printed.out


@pytest.mark.slow
def test_sources_move(bench, monkeypatch, tmp_path):
    sources = importlib.import_module("video.sources")
    monkeypatch.setattr(sources, "SIZE", (48, 64))
    monkeypatch.setattr(sources, "FRAMES", 12)
    paths = sources.write_sources(tmp_path, 2)
    shown = []
    for path in paths:
        with av.open(str(path)) as container:
            shown.append([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert [(len(frames), frames[0].shape) for frames in shown] == [(12, (48, 64, 3))] * 2
    for frames in (*shown, [shown[0][0], shown[1][0]]):  # over time, and between the videos
        assert np.abs(frames[-1].astype(int) - frames[0]).mean() > 4
