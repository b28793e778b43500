"""Time video decoding by PyAV, DALI, decord and torchcodec: python bench/decode.py

Encodes videos whose frames show their frame numbers. A decoder is timed only after a check that its
clips have the planned frames and the pixels of PyAV's clips. Each decoder runs in its own process.
PyAV and DALI run as in training. decord and torchcodec, if installed, decode one clip per thread,
with the same crop and resize in torch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from common import count, describe, machine_text, new_file
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.errors import UserError

FILES, FRAMES, BATCH, STEP = 2, 96, 4, 4  # files per case, frames per file, clips, frame step
WARM_UP = 2  # batches
ENCODERS = {
    "h264": ("libx264", "mp4", {"preset": "veryfast"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "crf": "32"}),
}
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")  # one per CUDA version
PACKAGES = {
    "pyav": ("av",),
    "dali cpu": DALI,
    "dali gpu": DALI,
    "decord": ("decord",),
    "torchcodec": ("torchcodec",),
}
BASELINE = "pyav"
# Mean difference from PyAV's pixels in gray levels: rounding and chroma differ between decoders.
TOLERANCE = 4.0

Batches = Iterable[list[int]]
Decode = Callable[[ClipPlanner, Batches, int, int], Iterator[torch.Tensor]]


def make_videos(folder: Path, codec: str, size: tuple[int, int], gop: int) -> Path:
    """Make numbered videos of one kind and their manifest; the background pans like a camera."""
    encoder, extension, options = ENCODERS[codec]
    width, height = size
    ground = np.random.default_rng(0).integers(0, 256, (height // 8 + 40, width // 8 + 40, 3))
    ground = ground.astype(np.uint8).repeat(8, 0).repeat(8, 1)
    entries = []
    for i in range(FILES):
        path = folder / f"{codec}_{width}x{height}_{gop}_{i}.{extension}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(encoder, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.gop_size = gop
            for frame in range(FRAMES):
                image = ground[frame : frame + height, 2 * frame : 2 * frame + width].copy()
                bits = frame >> (np.arange(width) * 8 // width) & 1
                image[: height // 2] = 255 * bits[:, None]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        entries.append(probe_video(path))
    write_manifest(folder / f"{codec}_{width}x{height}_{gop}.csv", entries)
    return folder / f"{codec}_{width}x{height}_{gop}.csv"


def frame_numbers(clip: np.ndarray) -> list[int]:
    """The numbers shown by the frames of a clip, uint8 [T, S, S, 3]."""
    row = clip[:, clip.shape[1] // 4].astype(float).mean(-1)
    bits = row[:, ((np.arange(8) + 0.5) * clip.shape[2] / 8).astype(int)] > 128
    return (bits << np.arange(8)).sum(1).tolist()


def _ours(backend: str, device: str) -> Decode:
    """The loader as the trainer uses it."""

    def decode(planner: ClipPlanner, batches: Batches, crop_size: int, threads: int) -> Iterator:
        with make_loader(planner, batches, crop_size, backend, device, threads) as loader:
            for batch in loader:
                if loader.fallback:
                    raise UserError(
                        f"found that another decoder took over from {loader.backend} on "
                        f"{loader.fallback[0]}, expected {loader.backend} to decode every clip; "
                        "see the log for its error"
                    )
                yield batch.video

    return decode


def _clip_by_clip(read_frames: Callable[[ManifestEntry, np.ndarray], np.ndarray]) -> Decode:
    """Make a loader from a function that reads frames [n, H, W, 3]: one clip per thread, as many
    batches ahead as ours."""

    def one(plan: ClipPlan, entry: ManifestEntry, crop_size: int) -> torch.Tensor:
        wanted, order = np.unique(plan.frames, return_inverse=True)
        top, left, height, width = plan.crop
        rows = slice(round(top * entry.height), round((top + height) * entry.height))
        columns = slice(round(left * entry.width), round((left + width) * entry.width))
        frames = torch.from_numpy(read_frames(entry, wanted)[:, rows, columns])
        video = torch.nn.functional.interpolate(
            frames.permute(0, 3, 1, 2), (crop_size, crop_size), mode="bilinear", antialias=True
        ).permute(0, 2, 3, 1)[torch.from_numpy(order)]
        return video.flip(2) if plan.flip else video

    def decode(planner: ClipPlanner, batches: Batches, crop_size: int, threads: int) -> Iterator:
        batches = iter(batches)
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque = deque()
            while True:
                for ids in islice(batches, 2 - len(ahead)):
                    plans = planner.plan(ids)
                    clips = [
                        pool.submit(one, p, planner.entries[p.video], crop_size) for p in plans
                    ]
                    ahead.append(clips)
                if not ahead:
                    return
                yield torch.stack([clip.result() for clip in ahead.popleft()])

    return decode


def _decord(entry: ManifestEntry, wanted: np.ndarray) -> np.ndarray:
    from decord import VideoReader

    return VideoReader(entry.path, num_threads=1).get_batch(wanted.tolist()).asnumpy()


def _torchcodec(entry: ManifestEntry, wanted: np.ndarray) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(entry.path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(wanted.tolist()).data.numpy()


PROVIDERS: dict[str, Decode] = {
    "pyav": _ours("pyav", "cpu"),
    "dali cpu": _ours("dali", "cpu"),
    "dali gpu": _ours("dali", "cuda"),
    "decord": _clip_by_clip(_decord),
    "torchcodec": _clip_by_clip(_torchcodec),
}


def check(decode: Decode, planner: ClipPlanner, crop_size: int, threads: int) -> str | None:
    """What is wrong with a decoder's first batch; None if it shows the planned frames."""
    ids = list(range(BATCH))
    (video,) = decode(planner, [ids], crop_size, threads)
    for plan, clip in zip(planner.plan(ids), video.cpu(), strict=True):
        shown = frame_numbers(clip.numpy())
        if shown != plan.frames.tolist():
            return f"shows frames {shown} instead of {plan.frames.tolist()}"
        expected = decode_clip(plan, planner.entries[plan.video], crop_size)
        difference = (clip.float() - expected.float()).abs().mean().item()
        if difference > TOLERANCE:
            return f"is off by {difference:.1f} gray levels on average"
    return None


def _family() -> list[int]:
    """Ids of this process and its descendants, since PyAV decodes in processes of its own."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = [os.getpid()]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def _cpu_seconds() -> float:
    """CPU time of these processes so far."""
    ticks = 0
    for pid in _family():
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # user and kernel mode
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident_mib() -> float:
    """Memory of these processes; pages that they share are counted once."""
    kib = 0
    for pid in _family():
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def measure(
    decode: Decode, planner: ClipPlanner, crop_size: int, threads: int, seconds: float
) -> dict[str, float]:
    """Throughput, CPU use and memory over at least `seconds` and two batches."""
    batches = (list(range(i * BATCH, (i + 1) * BATCH)) for i in itertools.count())
    clips = decode(planner, batches, crop_size, threads)
    for _ in range(WARM_UP):
        next(clips)
    start, cpu, done = time.perf_counter(), _cpu_seconds(), 0
    while done < 2 * BATCH or time.perf_counter() - start < seconds:
        video = next(clips)
        done += len(video)
    if video.is_cuda:
        torch.cuda.synchronize()  # its resize and flip may still be running
    wall, cpu, resident = time.perf_counter() - start, _cpu_seconds() - cpu, _resident_mib()
    clips.close()
    return {
        "clips_per_s": done / wall,
        "frames_per_s": done * video.shape[1] / wall,
        "cpu_percent": 100 * cpu / wall,
        "cpu_ms_per_clip": 1000 * cpu / done,  # the reliable figure on a busy machine
        "resident_mib": resident,
    }


def run_provider(name: str, cases: list[dict], options: argparse.Namespace) -> Iterator[dict]:
    """A row for each case: figures, or the reason why there are none."""
    torch.set_num_threads(1)
    decode = PROVIDERS[name]
    skipped = set()
    for case in cases:
        row = {"provider": name, "baseline": name == BASELINE}
        row |= {key: case[key] for key in ("codec", "width", "height", "gop", "num_frames")}
        planner = ClipPlanner(
            [read_manifest(case["manifest"])],
            num_frames=case["num_frames"],
            frame_step=STEP,
            # Crops and flips would hide the numbers; without them decoding costs the same.
            augment=Augment(
                area=(1, 1), aspect_ratio=(case["width"] / case["height"],) * 2, flip=False
            ),
        )
        try:
            wrong = check(decode, planner, options.crop_size, options.threads)
            if not wrong:
                figures = measure(
                    decode, planner, options.crop_size, options.threads, options.seconds
                )
        except (UserError, ImportError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            if reason not in skipped:
                yield row | {"skipped": reason}
            skipped.add(reason)
            continue
        yield row | ({"wrong": wrong} if wrong else figures)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """`common.describe`, and the versions of the decoders."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    versions = {package: _version(package) for package in sorted({*chain(*PACKAGES.values())})}
    return describe(device) | {package: found for package, found in versions.items() if found}


def obstacles(names: Iterable[str]) -> dict[str, str | None]:
    """For each provider why it cannot run here; None if it can."""
    found: dict[str, str | None] = {}
    for name in names:
        found[name] = None
        if not any(map(_version, PACKAGES[name])):
            found[name] = "not installed"
        elif name == "dali gpu" and not torch.cuda.is_available():
            found[name] = "no GPU"
    return found


def _size(text: str) -> tuple[int, int]:
    """An argparse type: WIDTHxHEIGHT."""
    width, _, height = text.partition("x")
    return count(width), count(height)


def main(arguments: list[str] | None = None) -> int:
    """Make videos, check, time, print; 1 if a decoder shows wrong frames."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codecs", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    sizes = [(320, 240), (640, 480)]
    parser.add_argument("--sizes", nargs="+", type=_size, default=sizes, help="e.g. 320x240")
    parser.add_argument("--gops", nargs="+", type=count, default=[12, 96], help="frames per GOP")
    parser.add_argument("--lengths", nargs="+", type=count, default=[8, 16], help="frames per clip")
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), default=list(PROVIDERS))
    parser.add_argument("--threads", type=count, default=2, help="for PyAV: processes (default: 2)")
    parser.add_argument("--crop-size", type=count, default=224, help="pixels (default: 224)")
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement (default: 0.5)")
    parser.add_argument("--output", type=new_file, help="file for the results, as JSON lines")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # of a provider's process
    options = parser.parse_args(arguments)
    if options.only:
        name, cases = options.only
        for row in run_provider(name, json.loads(Path(cases).read_text()), options):
            print(json.dumps(row), flush=True)
        return 0
    return _run_all(options)


def _run_all(options: argparse.Namespace) -> int:
    facts, wrong = machine(), 0
    print(machine_text(facts))
    print(
        f"{options.threads} decoding threads, clips of {options.crop_size} px, every {STEP}th frame"
    )
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            kind: make_videos(Path(folder), *kind)
            for kind in product(options.codecs, options.sizes, options.gops)
        }
        cases = [
            {"codec": codec, "width": size[0], "height": size[1], "gop": gop}
            | {"num_frames": length, "manifest": str(manifest)}
            for (codec, size, gop), manifest in kinds.items()
            for length in options.lengths
        ]
        listed = Path(folder) / "cases.json"
        listed.write_text(json.dumps(cases))
        output = options.output.open("w") if options.output else None
        for name, obstacle in obstacles(options.providers).items():
            if obstacle:
                print(f"{name:11} {obstacle}")
                continue
            for row in _in_own_process(name, listed, options):
                wrong += "wrong" in row
                print(_line(row), flush=True)
                if output:
                    output.write(json.dumps(row | {"threads": options.threads} | facts) + "\n")
        if output:
            output.close()
    return int(wrong > 0)


def _in_own_process(name: str, cases: Path, options: argparse.Namespace) -> Iterator[dict]:
    command = [sys.executable, __file__, "--only", name, str(cases)]
    for key in ("threads", "crop_size", "seconds"):
        command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process:
            yield from map(json.loads, process.stdout)
        if process.returncode:
            errors.seek(0)
            last = errors.read().strip().rpartition("\n")[2]
            yield {"provider": name, "wrong": f"ended with {process.returncode} ({last})"}


def _line(row: dict) -> str:
    case = "{codec:5} {width}x{height} gop {gop:3} {num_frames:2} frames" if "codec" in row else ""
    head = f"{row['provider']:11} {case.format(**row)}"
    for key in ("wrong", "skipped"):
        if key in row:
            return f"{head}  {key}: {row[key]}"
    return head + (
        f"{row['clips_per_s']:8.1f} clips/s {row['frames_per_s']:8.0f} frames/s "
        f"{row['cpu_percent']:4.0f} % CPU {row['cpu_ms_per_clip']:6.1f} CPU ms/clip "
        f"{row['resident_mib']:6.0f} MiB"
    )


if __name__ == "__main__":
    raise SystemExit(main())
