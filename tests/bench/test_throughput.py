"""bench/throughput.py runs, counts FLOPs as PyTorch does, and does not time a wrong side."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.paths import REPOSITORY
from tests.helpers.trainers import GENERATIONS, SECOND
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.models.sequences import pack_masks
from vjepa_fast.training.distributed.launch import init_process_group

BENCH = REPOSITORY / "bench"
MODULES = ("baseline", "clock", "gate", "gemms", "measure", "report", "roofline", "trainers")
CLIPS = 4
# narrow heads hardly see positions at the initial weights
WIDE = SECOND | {"encoder": {"width": 192, "depth": 2, "heads": 2}}


@pytest.fixture
def bench(monkeypatch):
    """The modules of bench/, with a small GEMM and a small copy."""
    monkeypatch.syspath_prepend(str(BENCH))
    found = SimpleNamespace(main=importlib.import_module("throughput"))
    for name in MODULES:
        setattr(found, name, importlib.import_module(f"step.{name}"))
    monkeypatch.setattr(found.clock, "GEMM_SIZE", {"cpu": 64})
    monkeypatch.setattr(found.clock, "COPY_BYTES", {"cpu": 1 << 20})
    return found


@pytest.fixture
def config_file(small_config, tmp_path):
    """Writes a small config and gives its path; keyword arguments as for `small_config`."""

    def write(**changes):
        path = tmp_path / "small.json"
        path.write_text(json.dumps(small_config(**changes)))
        return path

    return write


@pytest.fixture
def config(bench, config_file):
    """A small config as the benchmark reads it."""
    init_process_group()
    return bench.trainers.read_config(config_file(), CLIPS, False, None, None)


def run(bench, config, *arguments):
    """Exit status of one call of main() on a few clips."""
    common = ["--config", str(config), "--batch", str(CLIPS), "--steps", "4"]
    return bench.main.main([*common, *map(str, arguments)])


def test_it_compares_and_then_times(bench, config_file, tmp_path, capsys):
    output, traces = tmp_path / "out.json", tmp_path / "a" / "traces"
    assert run(bench, config_file(), "--json", output, "--profile", traces) == 0
    result = json.loads(output.read_text())
    ours, baseline = result["sides"]["ours"], result["sides"]["baseline"]
    assert (
        result["clips"] == CLIPS
        and result["steps"] == 4
        and result["torch"] == str(torch.__version__)
    )
    for side in (ours, baseline):
        assert 0 < side["ms"]["p20"] <= side["ms"]["p50"] <= side["ms"]["p80"]
        assert side["clips_per_s"] == pytest.approx(1e3 * CLIPS / side["ms"]["p50"])
    spread = result["ratio_spread"]
    assert spread["p20"] <= result["ratio"] == spread["p50"] <= spread["p80"]
    assert len(result["check"]["losses"]) == 3
    assert 0 < result["gemms"]["flops"] < result["gemms"]["step_flops"]

    rates, parts = result["rates"], result["parts"]
    assert [row["part"] for row in parts] == list(bench.trainers.PARTS)
    flops, gemm = sum(row["flops"] for row in parts), rates["gemm_gflop_per_s"]["p50"] * 1e9
    assert flops == pytest.approx(CLIPS * result["flops_per_clip"], rel=0.2)  # other masks
    for row in parts:
        seconds = {
            "gemm": row["flops"] / gemm,
            "bytes": row["bytes"] / rates["copy_gb_per_s"]["p50"] / 1e9,
        }
        assert row["roofline_ms"] == pytest.approx(1e3 * max(seconds.values()))
        assert seconds[row["bound_by"]] == max(seconds.values())
        assert row["gap_ms"] == pytest.approx(row["ours_ms"] - row["roofline_ms"])
        assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ours_ms"])
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    names = ("baseline.json.gz", "baseline.txt", "ours.json.gz", "ours.txt")
    assert sorted(path.name for path in traces.iterdir()) == sorted(names)
    assert "aten::addmm" in (traces / "ours.txt").read_text()
    printed = capsys.readouterr().out
    assert "baseline / ours, round by round" in printed and "patchify + target encoder" in printed


@pytest.mark.parametrize("data", ["demo", "manifest"])
def test_video_files_through_the_loader(bench, config_file, demo, tmp_path, monkeypatch, data):
    manifests = demo / "train.csv", demo / "test.csv"
    monkeypatch.setattr(bench.trainers, "make_demo", lambda folder, **_: manifests)
    path = config_file(data={"manifests": ["nowhere.csv"]} if data == "demo" else {})
    output = tmp_path / "out.json"
    chosen = "demo" if data == "demo" else manifests[1]
    assert run(bench, path, "--data", chosen, "--json", output) == 0
    result = json.loads(output.read_text())
    assert result["clock"] == "wall" and result["data"] == str(chosen)
    assert 0 < result["sides"]["ours"]["wait_ms"]["p50"] < result["sides"]["ours"]["ms"]["p50"]


def shifted(gather):
    return lambda x, index: gather(x, (index + 1) % x.shape[1])


def wrong_gather(bench, monkeypatch):
    monkeypatch.setattr(bench.baseline, "repeat_gather", shifted(bench.baseline.repeat_gather))


def wrong_pixels(bench, monkeypatch):
    monkeypatch.setattr(bench.baseline, "IMAGENET_STD", (0.229, 0.224, 0.226))


def wrong_rotation(bench, monkeypatch):
    rotate = bench.baseline.rotate
    monkeypatch.setattr(bench.baseline, "rotate", lambda x, place, tiled: rotate(x, place, False))


def no_ema_update(bench, monkeypatch):
    monkeypatch.setattr(bench.baseline.BaselineTrainer, "update_ema", lambda self, momentum: None)


def no_schedule(bench, monkeypatch):
    monkeypatch.setattr(bench.baseline.BaselineTrainer, "_set_schedules", lambda self, step: None)


def scaled_backward(bench, monkeypatch):
    loss = bench.baseline.BaselineTrainer.loss

    def doubled(self, predicted, wanted):
        value = loss(self, predicted, wanted)
        return 2 * value - value.detach()

    monkeypatch.setattr(bench.baseline.BaselineTrainer, "loss", doubled)


@pytest.mark.parametrize(
    ("spoil", "item", "changes"),
    [
        (wrong_gather, "loss of step 0", {}),
        (wrong_pixels, "loss of step 1", {}),
        (no_ema_update, "distance of the EMA weights", {}),
        (no_schedule, "loss of step 1", {}),
        (scaled_backward, "encoder's gradient norm at step 0", {}),
        (scaled_backward, "encoder's gradient norm at step 0", {"optim": {"clip_grad": None}}),
        (wrong_rotation, "loss of step 1", {"model": WIDE}),
    ],
)
def test_a_wrong_baseline_is_rejected(
    bench, config_file, tmp_path, monkeypatch, capsys, spoil, item, changes
):
    spoil(bench, monkeypatch)
    output = tmp_path / "out.json"
    assert run(bench, config_file(**changes), "--json", output) == 1
    printed = capsys.readouterr()
    assert item in printed.err and "nothing is timed" in printed.err
    assert "clips/s" not in printed.out and not output.exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--config", "nowhere.json"], "nowhere.json: found no such file"),
        (["--zero", "4"], "zero.stage"),
        (["--data", "nowhere.csv"], "nowhere.csv: found no manifest"),
        (["--json", "nowhere/out.json"], "--json: found nowhere/out.json"),
        (["--json", "out.png"], "--json: found out.png"),
        (["--profile", "small.json"], "--profile: found small.json"),
    ],
)
def test_a_mistake_is_a_sentence(
    bench, config_file, tmp_path, monkeypatch, capsys, arguments, found
):
    path = config_file()
    monkeypatch.chdir(tmp_path)
    assert run(bench, path, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and found in error and error.count("\n") == 1


def test_unequal_lengths_and_other_processes_are_rejected(bench, config_file, monkeypatch, capsys):
    assert run(bench, config_file(masks={"truncate": "none"})) == 2
    assert "masks.truncate: found 'none'" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(bench, config_file()) == 2
    assert "WORLD_SIZE: found 2, expected 1" in capsys.readouterr().err


def test_the_command_line_adds_to_the_config(bench, config_file):
    for own, asked in ((False, False), (True, False), (False, True)):
        config = bench.trainers.read_config(
            config_file(compile=own), 2, asked, 0, Path("other.csv")
        )
        assert config.compile == (own or asked) and config.zero.stage == 0
        assert config.optim.micro_batch == config.optim.global_batch == 2
        assert config.masks.truncate_group == 2 and config.data.manifests[0].path == "other.csv"


def test_parts_follow_each_other_and_leave_nothing_behind(bench, config):
    ours = bench.trainers.Ours(config)
    video = next(bench.trainers.Clips(config, ours.device, False))
    model = ours.trainer.model

    def state():
        owners = ours.trainer, ours.trainer.engine, ours.trainer.teacher
        hooks = [list(module._forward_hooks) for module in (model, model.encoder)]
        return [set(vars(owner)) for owner in owners], hooks

    before, parts = state(), bench.trainers.PARTS
    first, *others, backward, optimizer, ema = parts
    # ours marks the predictor's end, and that of the loss
    own = (first, "target", "context", "predictor", "predictor", backward, optimizer, ema)
    assert set(own) == set(parts) and set(others) == {"context", "predictor", "target"}
    for side, order in ((ours, own), (bench.trainers.Baseline(config, ours.device), parts)):
        marks = []
        side.step(0, video, side.prepare(0), marks.append)
        assert tuple(marks) == order
        side.step(1, video, side.prepare(1))
        assert len(marks) == len(order)
    assert state() == before


def test_parts_add_up_to_the_step(bench, monkeypatch):
    clock, ticks = bench.clock.Clock(torch.device("cpu"), False), iter([0.0, 2.0, 2.5, 6.0, 7.0])
    monkeypatch.setattr(clock, "_now", lambda: next(ticks))

    def step(mark):
        mark("first")
        mark("second")

    assert clock.time_parts(step) == {"first": 2.0, "second": 3.5}


@pytest.mark.parametrize("positions", ["rope_tiled", "rope"])
def test_the_second_generation_trains_alike_and_is_timed(bench, config_file, tmp_path, positions):
    """Without clipping, as in its recipe, so that there is no gradient norm to compare."""
    output = tmp_path / "out.json"
    path = config_file(model=SECOND | {"positions": positions}, optim={"clip_grad": None})
    assert run(bench, path, "--json", output) == 0
    result = json.loads(output.read_text())
    assert result["check"]["largest_relative_difference"]["ema_distance"] > 0
    assert result["ratio"] > 0 and result["gemms"]["flops"] < result["gemms"]["step_flops"]


@pytest.mark.parametrize("model", GENERATIONS)
def test_flops_by_part_as_pytorch_counts_them(bench, config_file, model):
    init_process_group()
    path = config_file(model=model)
    config = bench.trainers.read_config(path, CLIPS, False, None, None)
    ours = bench.trainers.Ours(config)
    video = next(bench.trainers.Clips(config, ours.device, False))
    m = bench.trainers.draw_masks(ours.sampler, 0, CLIPS)
    masks = pack_masks(
        *(m.context_tokens, m.context_seqlens, m.target_tokens, m.target_seqlens, m.num_tokens),
        mask_token=ours.mask_token,
    )
    work = bench.roofline.step_work(config, *ours.token_counts(0), 4)
    model = ours.trainer.model

    def counted(call):
        # the math backend writes attention as GEMMs, which the counter knows
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            result = call()
        return counter.get_total_flops(), result

    with torch.no_grad():
        target, _ = counted(lambda: encode_clips(model.encoder, video))
    context, encoded = counted(lambda: model.context(video, masks))
    predictor, predicted = counted(lambda: model.predictor(encoded, masks))
    backward, _ = counted(lambda: predicted.sum().backward())
    assert work["target"].flops == target
    assert work["context"].flops == context
    assert work["predictor"].flops == predictor
    # the mask tokens' gradient may be a small GEMM, which the formula leaves out
    rows = len(masks.predictor_source)
    mask_tokens = 2 * config.num_mask_tokens * rows * config.model.predictor.width
    assert work["backward"].flops in (backward, backward - mask_tokens)
    assert {part for part, w in work.items() if w.flops == 0} == {"masks", "optimizer", "ema"}


def test_bytes_by_hand(bench, config):
    ours = bench.trainers.Ours(config)
    context, target = ours.token_counts(0)
    fp32, bf16 = (bench.roofline.step_work(config, context, target, n) for n in (4, 2))
    encoder, all_weights = (
        sum(p.numel() for p in module.parameters())
        for module in (ours.trainer.model.encoder, ours.trainer.model)
    )
    assert fp32["ema"].bytes == 12 * encoder and bf16["ema"].bytes == 14 * encoder
    assert fp32["optimizer"].bytes == 32 * all_weights  # g twice, w, m, v read; w, m, v written
    assert bf16["optimizer"].bytes == 34 * all_weights
    # 4 clips of 4 x 3 x 3 tokens, patches of 2 x 8 x 8 pixels, two blocks of width 24
    rows, pixels = 4 * 36, 3 * 2 * 8 * 8
    block = (24 + 72) + (72 + 24) + (24 + 24) + (24 + 96) + (96 + 24) + 2 * 24
    values = pixels + 24 + 2 * block + 2 * 24
    expected = rows * pixels * (1 + 4) + 4 * (rows * values + encoder)
    assert fp32["target"].bytes == expected
    mean = bench.roofline.mean_work([fp32, bf16])
    assert mean["ema"].bytes == 13 * encoder


def test_gemms_alone(bench):
    linear = torch.nn.Linear(8, 16)
    x = torch.randn(5, 8, requires_grad=True)
    clock = bench.clock.Clock(torch.device("cpu"), decodes=False)
    found = bench.gemms.gemms_alone(lambda: linear(x).sum().backward(), clock, torch.device("cpu"))
    assert found["number"] == 3 and found["flops"] == 3 * 2 * 5 * 8 * 16
    assert found["seconds"] > 0


def test_peak_memory_sees_what_a_call_frees_again(bench):
    size = 64 << 20
    found = bench.clock.peak_memory(
        lambda: torch.ones(size, dtype=torch.uint8), torch.device("cpu")
    )
    assert 0.95 * size < found < 1.2 * size


def test_data_sheets(bench):
    assert bench.clock.datasheet_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert bench.clock.datasheet_flops("NVIDIA H100 PCIe") == 756e12
    assert bench.clock.datasheet_flops("NVIDIA GeForce RTX 4090") is None
