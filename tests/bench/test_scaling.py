"""The scaling model gives results computed by hand; bench/scaling.py and bench/growth.py run."""

from __future__ import annotations

import importlib
import json

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.training.monitoring.environment import processor

BENCH = REPOSITORY / "bench"


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("scale.model")


@pytest.fixture
def parts(model):
    return model.Parts(24, target=2, context=1, predictor=1, backward=4, optimizer=0.8, ema=0.4)


def test_a_ring_within_a_host_and_rings_between_hosts(model):
    links = model.Links(per_host=8, inside=10.0, between=2.0, latency=0.5)
    assert model.gather_seconds(80.0, 1, links) == 0
    # 7/8 of 80 bytes at 10 bytes/s, in 7 messages
    assert model.gather_seconds(80.0, 8, links) == pytest.approx(7 + 7 * 0.5)
    # then each device passes half of its tenth … of 10 bytes at 2 bytes/s, in one more message
    assert model.gather_seconds(80.0, 16, links) == pytest.approx(7 + 2.5 + 8 * 0.5)


def test_one_device_sends_nothing(model, parts):
    links = model.Links(8, 1.0, 1.0, 1.0)
    for stage in range(4):
        step = model.step_on(1, stage, parts, model.Bytes(100, 50, 25, 4, 4), links, 48, 24)
        assert step.communication == step.waits == 0
        assert step.accumulation == 2 and step.compute == 16 and step.update == pytest.approx(1.2)


def test_what_each_stage_sends(model, parts):
    """Two devices, a link of 1 byte/s: a gather of V bytes takes V / 2 seconds."""
    links, sizes = model.Links(8, 1.0, 1.0, 0.0), model.Bytes(8.0, 4.0, 2.0, 4, 2)
    steps = [model.step_on(2, stage, parts, sizes, links, 96, 24) for stage in range(4)]
    assert all(step.accumulation == 2 and step.compute == 16 for step in steps)
    # a reduce-scatter takes 4 seconds: two of them, one, one for each micro-batch
    assert [step.reduction for step in steps] == [8, 4, 8, 8]
    assert [step.weights for step in steps] == [0, 2, 2, 4]
    assert [step.teacher for step in steps] == [0, 1, 1, 1]
    assert [step.update for step in steps] == pytest.approx([1.2, 0.6, 0.6, 0.6])
    # a reduction begins after a quarter of a backward pass of 4 seconds: 8 end 5 later, 4 end 1
    # later, twice at stage 2. The target encoder's first bucket takes 0.5 seconds, so it ends 2.5
    # after the step, as the student's second bucket has arrived; the others come in time.
    assert [step.waits for step in steps] == [5, 1 + 0.5, 2 + 0.5, 8 + 4]
    assert steps[1].exposed == pytest.approx(16 + 0.6 + 1.5)
    assert steps[1].apart == pytest.approx(16 + 0.6 + 7)
    assert steps[1].best == pytest.approx(16 + 0.6)


def test_a_reduction_waits_for_gradients_and_a_pass_for_weights(model):
    # three quarters of the reduction fit behind three quarters of the pass; the last bucket waits
    assert model.hidden_behind(8.0, 4.0, 4) == 1
    assert model.hidden_behind(4.0, 8.0, 4) == 8 - 3
    assert model.hidden_behind(4.0, 8.0, 1) == 8
    # weights of 8 seconds for passes of 2 and 2: the last bucket is used in a quarter of a pass
    assert model.gathered_ahead(2.0, 8.0, 4, 2.0, 8.0, 4) == pytest.approx(16 + 0.5 - 4)
    assert model.gathered_ahead(8.0, 4.0, 4, 2.0, 4.0, 4) == 1  # the first bucket
    assert model.gathered_ahead(8.0, 4.0, 1, 2.0, 4.0, 1) == 4


def test_calls_take_their_latency(model, parts):
    """On two devices a call is one message."""
    links, sizes = model.Links(8, 1e30, 1e30, 1.0), model.Bytes(4e9, 2e9, 1e9, 7, 5)
    steps = [model.step_on(2, stage, parts, sizes, links, 96, 24) for stage in range(4)]
    # seven buckets, twice, once and for both micro-batches; stage 3 two buckets of 5e8 elements,
    # twice; and a small all-reduce, or two
    assert [step.reduction for step in steps] == [14 + 2, 7 + 4, 14 + 4, 4 + 4]
    # stage 3: 21 fetches, twice forward, half of them again backward, and one more
    assert [step.weights for step in steps] == [0, 7, 7, 21 * 3 + 1]
    assert [step.teacher for step in steps] == [0, 5, 5, 2]


def test_a_small_batch_per_process_is_one_micro_batch(model, parts):
    links = model.Links(8, 1e9, 1e9, 0.0)
    step = model.step_on(8, 1, parts, model.Bytes(0, 0, 0, 1, 1), links, 48, 24)
    assert step.micro_batch == 6 and step.accumulation == 1 and step.compute == 2


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("scaling")


def measured_file(folder, **changes):
    """What the throughput benchmark writes, as far as it matters here."""
    names = ("masks", "target", "context", "predictor", "backward", "optimizer", "ema")
    parts = [{"part": name, "ours_ms": 10.0} for name in names]
    result = {"config": "vith16.json", "clips": 24, "precision": "bf16", "device": "a GPU"}
    path = folder / "step.json"
    path.write_text(json.dumps(result | {"parts": parts} | changes))
    return path


def test_a_table_and_a_picture(scaling, tmp_path, capsys):
    output = tmp_path / "scaling.json"
    measured = measured_file(tmp_path, cpu="a CPU (torch: AVX2)")
    assert scaling.main([str(measured), "--json", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["device"] == "a GPU" and result["cpu"] == "a CPU (torch: AVX2)"
    steps = result["steps"]
    assert {step["devices"] for step in steps} == {2**k for k in range(11)}
    one = [step for step in steps if step["devices"] == 1]
    # 128 micro-batches of four parts of 10 ms, then AdamW and the average
    assert all(step["exposed"] == pytest.approx(128 * 0.04 + 0.02) for step in one)
    most = {step["stage"]: step for step in steps if step["devices"] == 1024}
    assert most[1]["micro_batch"] == 3 and most[1]["compute"] == pytest.approx(0.04 * 3 / 24)
    # what 1,023 of 1,024 GPUs hold of the encoder's bf16 weights passes each GPU, within its host
    # and between hosts, in buckets of 2^26 elements and three smaller ones
    inside, between = 7 / 8 * 2 * 631_648_000 / 315e9, 127 / 128 * 2 * 631_648_000 / 8 / 35e9
    assert most[1]["teacher"] == pytest.approx(inside + between + (10 + 3) * 134 * 1e-5)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "stage 1, ms" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--weak"]])
def test_parts_from_stated_rates(scaling, tmp_path, capsys, more):
    output = tmp_path / "stated.json"
    path = REPOSITORY / "configs" / "tiny.json"
    stated = ["--config", str(path), "--tflops", "0.001", "--json", str(output), *more]
    assert scaling.main(stated) == 0
    text = capsys.readouterr().out
    assert "no measurement: FLOPs at 0.001 TFLOP/s" in text
    assert ("32 clips a GPU" if more else "global batch 32") in text
    steps = [s for s in json.loads(output.read_text())["steps"] if s["stage"] == 1]
    config = scaling.load_config(path)
    flops = scaling.clip_flops(config, *scaling.count_tokens(config)).total
    for step in steps:
        clips = 32 if more else 32 / step["devices"]
        assert step["compute"] == pytest.approx(clips * flops / 1e9)
    assert [s["devices"] for s in steps] == [2**k for k in range(11 if more else 6)]


def test_mistakes_are_a_sentence(scaling, tmp_path, capsys):
    broken = tmp_path / "broken.json"
    measured_file(tmp_path, parts=[]).rename(broken)
    for arguments, found in (
        ([], "FILE: found none and --tflops none"),
        ([tmp_path / "none.json", "--tflops", "4"], "none.json and --tflops 4.0"),
        ([tmp_path / "none.json"], "found FileNotFoundError"),
        ([broken], "broken.json: found TypeError"),
        ([measured_file(tmp_path), "--config", "configs/tiny.json"], "--config: found tiny.json"),
    ):
        assert scaling.main(list(map(str, arguments))) == 2
        error = capsys.readouterr().err
        assert found in error and error.count("\n") == 1


@pytest.mark.parametrize("option", ["--tflops", "--memory", "--per-host", "--inside", "--between"])
def test_a_rate_of_zero_is_a_sentence(scaling, capsys, option):
    with pytest.raises(SystemExit):
        scaling.main([option, "0"])
    assert f"argument {option}: found '0', expected a" in capsys.readouterr().err


@pytest.mark.slow
def test_the_model_is_checked_against_processes(scaling, tmp_path, capsys):
    output = tmp_path / "check.json"
    assert scaling.main(["--check", "--json", str(output)]) == 0
    assert "predicted and measured differ by a factor of" in capsys.readouterr().out
    result = json.loads(output.read_text())
    assert result["cpu"] == processor()
    found = result["found"]
    assert set(found) == {"1", "2", "4"} and set(found["4"]["ms"]) == {"0", "1", "2", "3"}


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("growth")


def test_a_slope_is_an_exponent(growth):
    points = [growth.Point(0, flops, [1e-12 * flops**0.75]) for flops in (1e9, 3e9, 2e10)]
    assert growth.slope(points) == pytest.approx(0.75)


def test_growth_runs_and_counts(growth, small_config, tmp_path, capsys):
    path, output = tmp_path / "small.json", tmp_path / "growth.json"
    path.write_text(json.dumps(small_config(data={"crop_size": 48})))
    assert growth.main(["--config", str(path), "--repeats", "2", "--json", str(output)]) == 0
    axes = json.loads(output.read_text())["axes"]
    assert len(axes) == 6
    clips = axes["clips per step"]["points"]
    assert clips[1]["gflop"] == pytest.approx(2 * clips[0]["gflop"], rel=0.2)  # other masks
    depth = axes["encoder depth"]["points"]
    assert [p["value"] for p in depth] == [1, 2, 4]
    assert depth[2]["gflop"] - depth[1]["gflop"] == pytest.approx(
        2 * (depth[1]["gflop"] - depth[0]["gflop"])
    )
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "slope" in capsys.readouterr().out
    assert growth.main(["--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "--json" in capsys.readouterr().err
