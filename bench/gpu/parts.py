"""The parts of bench/gpu_check.py: their commands, and how to read each result.

On a CPU the same parts run at tiny sizes: a dry run, which tests the commands, not the speed.
"""

from __future__ import annotations

import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from common import spread_text
from gpu.run_part import ROOT, Part, installed
from vjepa_fast.errors import UserError
from vjepa_fast.training.monitoring.writer import read_metrics

TRAINING = ("deepspeed", "pydantic", "safetensors", "av")
STEPS = {"cuda": 50, "cpu": 3}
MODELS = {"vitl16": "ViT-L/16", "vith16": "ViT-H/16", "v2_vitl16": "V-JEPA 2's ViT-L/16"}
Result = tuple[dict[str, Any], list[str]]


def read_device(folder: Path) -> Result:
    """Versions and device, from the last line of the log."""
    found = json.loads((folder / "device.log").read_text(encoding="utf-8").splitlines()[-1])
    return found, [f"{name}: {value}" for name, value in found.items()]


def read_tests(folder: Path) -> Result:
    """pytest's last line."""
    last = (folder / "kernel_tests.log").read_text(encoding="utf-8").splitlines()[-1].strip("= ")
    if "passed" not in last or "skipped" in last:
        raise UserError(f"kernel tests: found {last!r}, expected all of them to run; see the log")
    return {"pytest": last}, [last]


def read_training(folder: Path, steps: int) -> Result:
    """First and last loss, rate and data wait, from the run's metrics."""
    (path,) = folder.glob("run*/metrics.jsonl")
    rows = [row for row in read_metrics(path) if "loss" in row]
    first, last = rows[0], rows[-1]
    if last["step"] != steps - 1 or not all(math.isfinite(row["loss"]) for row in rows):
        raise UserError(
            f"{path.name}: found step {last['step']} with loss {last['loss']} at the end, expected "
            f"step {steps - 1} and finite losses; see the log"
        )
    line = (
        f"{steps} steps, loss {first['loss']:.3f} → {last['loss']:.3f}, "
        f"{last['clips_per_second']:.0f} clips/s, data wait {last['data_wait']:.0%}"
    )
    return {"first": first, "last": last}, [line]


def read_throughput(folder: Path, name: str) -> Result:
    """Whole steps of both sides: time, rate, memory."""
    result = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    lines = []
    for side, row in result["sides"].items():
        mfu, memory = row["mfu"], row["step_memory_bytes"]
        lines.append(
            f"{side}: {row['ms']['p50']:.1f} ms, {row['clips_per_s']:.1f} clips/s, "
            f"{row['fraction_of_gemm']['p50']:.0%} of the large GEMM's rate"
            + (f", {mfu:.0%} MFU" if mfu else "")
            + (f", {memory / 1e6:.0f} MB per step" if memory else "")
        )
    lines.append(f"baseline / ours: {spread_text(result['ratio_spread'], 2, unit=' x')}")
    return result, lines


def read_kernels(folder: Path) -> Result:
    """Our rows; lines for forward, and forward plus backward."""
    text = (folder / "kernels.jsonl").read_text(encoding="utf-8")
    rows = [row for row in map(json.loads, text.splitlines()) if row["provider"] == "ours"]
    if not rows:
        raise UserError("kernels.jsonl: found no row, expected one for each kernel; see the log")
    lines = [
        f"{row['op']}, {row['shape']}, {row['pass']}: {row['p50_us']:.0f} µs, "
        f"{row['fraction_of_copy']:.0%} of a copy, {row['over_baseline']:.2f} x the baseline"
        for row in rows
        if row["pass"] != "backward"
    ]
    return {"rows": rows}, lines


def read_colors(folder: Path) -> Result:
    """How far both decoders' colors are from the drawn ones, from the last line of the log."""
    rows = json.loads((folder / "colors.log").read_text(encoding="utf-8").splitlines()[-1])
    lines = [
        f"{row['video']}: DALI {row['dali']:.1f}, PyAV {row['pyav']:.1f} gray levels off"
        for row in rows
    ]
    return {"rows": rows}, lines


def read_decode(folder: Path, provider: str) -> Result:
    """All rows; raises UserError if DALI is installed and `provider` has no figure."""
    text = (folder / "decode.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    timed = [row for row in rows if "clips_per_s" in row]
    if installed("nvidia.dali") and provider not in {row["provider"] for row in timed}:
        why = [row["skipped"] for row in rows if row["provider"] == provider and "skipped" in row]
        raise UserError(
            f"{provider}: found no figure ({'; '.join(why) or 'not tried'}), expected it to "
            "decode; see the log"
        )
    lines = [
        f"{row['provider']}, {row['codec']} {row['width']}x{row['height']}: "
        f"{row['clips_per_s']:.1f} clips/s, {row['cpu_ms_per_clip']:.0f} CPU ms a clip"
        for row in timed
    ]
    if not installed("nvidia.dali"):
        lines.append("DALI is not installed here: no figures of the GPU decoder")
    return {"rows": rows}, lines


def _bench(script: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, str(ROOT / "bench" / script), *map(str, arguments))


def _training(device: str, folder: Path) -> list[tuple[str, ...]]:
    """Make demo videos, then train on them.

    H.264 on a GPU, since NVDEC rejects VP9 of the demo's size; VP9 on a CPU, since DALI decodes it
    there.
    """
    clips, demo = 512 if device == "cuda" else 32, folder / "demo"
    made = ("--output", demo, "--clips", clips, "--test-clips", 8)
    codec = ("--codec", "h264" if device == "cuda" else "vp9")
    steps = STEPS[device]
    settings = {
        "output": json.dumps(str(folder / "run")),
        "data.manifests": json.dumps([str(demo / "train.csv")]),
        "optim.steps": steps,
        "optim.warmup_steps": min(10, steps - 1),
        "log.every": 10,
    }
    if device == "cpu":
        settings |= dict.fromkeys(("optim.global_batch", "optim.micro_batch"), 8)
        settings["masks.truncate_group"] = 8
    given = [item for key, value in settings.items() for item in ("--set", f"{key}={value}")]
    module = (sys.executable, "-m", "vjepa_fast.cli", "demo-data")
    script = str(ROOT / "vjepa_fast" / "train.py")
    config = str(ROOT / "configs" / "tiny.json")
    return [
        (*module, *map(str, made), *codec),
        (sys.executable, script, "--config", config, *map(str, given)),
    ]


def parts(device: str, folder: Path) -> list[Part]:
    """All parts in the order in which they run, the most important first.

    Args:
        device: "cuda", or "cpu" for the rehearsal.
        folder: where the report and the parts' results go.
    """
    cuda = device == "cuda"
    threads = min(16, len(os.sched_getaffinity(0)))
    provider = "dali gpu" if cuda else "dali cpu"
    on_device = ("--device", "cuda") if cuda else ()
    tests = ("tests/kernels/triton_kernels", *on_device)
    spread = ("-n", min(8, threads)) if installed("xdist") else ()  # to compile on all cores
    harness = () if cuda else ("-k", "harness")
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    kernel = () if cuda else ("--only", "gather", "--clips", 1, "--repeats", 1)
    size = ("320x240", "640x480") if cuda else ("96x64",)
    sizes = ("--crop-size", 224, "--seconds", 1) if cuda else ("--crop-size", 32, "--seconds", 0.1)
    decode = ("--rounds", 3, *sizes)
    providers = ("pyav", "dali cpu", "dali gpu") if cuda else ("pyav", "dali cpu")
    interpreted = {"TRITON_INTERPRET": "1", "VJEPA_FAST_KERNELS": "triton", "OMP_NUM_THREADS": "1"}

    def throughput(name: str) -> Part:
        tiny = "v2_tiny.json" if name.startswith("v2") else "tiny.json"
        config = ROOT / "configs" / (f"{name}.json" if cuda else tiny)
        sizes = ("--steps", 30) if cuda else ("--steps", 1, "--batch", 2)
        result = ("--json", folder / f"{name}.json")
        model = MODELS[name] if cuda else f"{tiny} in place of {MODELS[name]}"
        return Part(
            name,
            f"a training step of {model} against the baseline",
            [_bench("throughput.py", "--config", config, *sizes, *result)],
            {"vitl16": 100, "vith16": 150, "v2_vitl16": 100}[name],
            partial(read_throughput, name=name),
            TRAINING,
        )

    return [
        Part("device", "the machine", [_bench("gpu/device.py", device)], 60, read_device),
        Part(
            "kernel_tests",
            "the kernels' tests",
            [(*pytest, *map(str, spread), *tests, *harness)],
            240,
            read_tests,
            ("pytest", "hypothesis"),
            {"VJEPA_FAST_REQUIRE_CUDA": "1"} if cuda else interpreted,
        ),
        Part(
            "training",
            "real training steps on demo videos",
            _training(device, folder),
            90,
            partial(read_training, steps=STEPS[device]),
            TRAINING,
        ),
        throughput("vitl16"),
        throughput("vith16"),
        throughput("v2_vitl16"),
        Part(
            "kernels",
            "the kernels against PyTorch",
            [_bench("kernels.py", "--no-compile", *kernel, "--output", folder / "kernels.jsonl")],
            90,
            read_kernels,
        ),
        Part(
            "colors",
            "the colors of decoded video",
            [_bench("gpu/colors.py", device)],
            60,
            read_colors,
            ("av", "pydantic", "nvidia.dali"),
        ),
        Part(
            "decode",
            "video decoding",
            [
                _bench(
                    "decode.py",
                    *("--codecs", "h264" if cuda else "vp9", "--gops", 12, "--lengths", 16),
                    *("--sizes", *size, "--threads", threads, *decode),
                    *("--providers", *providers, "--output", folder / "decode.jsonl"),
                )
            ],
            90,
            partial(read_decode, provider=provider),
            ("av", "pydantic"),
        ),
    ]
