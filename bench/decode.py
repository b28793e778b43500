"""How fast clips are decoded here, by whom, from what: python bench/decode.py

Makes numbered videos, has every decoder show the planned frames (their numbers are read back, and
the pixels compared), and only then times it. Each decoder runs in a process of its own: DALI and
PyAV as the trainer runs them, decord and torchcodec, where installed, one clip a thread and the
same crop and resize in torch. Figures are for `--threads` decoding threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count, islice, product
from pathlib import Path

import av
import numpy as np
import torch

from vjepa_fast.data.decode.backend import choose_backend
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.errors import UserError

FILES, FRAMES, BATCH, STEP = 2, 96, 4, 4  # files of a case, frames of each, clips, frame step
WARM = 2  # batches
ENCODERS = {
    "h264": ("libx264", "mp4", {"preset": "veryfast"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "crf": "32"}),
}
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")  # one for each CUDA
PACKAGES = {
    "pyav": ("av",),
    "dali cpu": DALI,
    "dali gpu": DALI,
    "decord": ("decord",),
    "torchcodec": ("torchcodec",),
}
BASELINE = "pyav"
# Mean difference from PyAV's picture, in grey levels: other rounding and chroma, the same frames.
TOLERANCE = 4.0

Batches = Iterable[list[int]]
Decode = Callable[[ClipPlanner, Batches, int, int], Iterator[torch.Tensor]]


def make_videos(folder: Path, codec: str, size: tuple[int, int], gop: int) -> Path:
    """Numbered videos of one kind and their manifest; the pictures drift, as a camera's do."""
    encoder, extension, options = ENCODERS[codec]
    width, height = size
    ground = np.random.default_rng(0).integers(0, 256, (height // 8 + 40, width // 8 + 40, 3))
    ground = ground.astype(np.uint8).repeat(8, 0).repeat(8, 1)
    entries = []
    for place in range(FILES):
        path = folder / f"{codec}_{width}x{height}_{gop}_{place}.{extension}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(encoder, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.gop_size = gop
            for i in range(FRAMES):
                picture = ground[i : i + height, 2 * i : 2 * i + width].copy()
                bits = i >> (np.arange(width) * 8 // width) & 1
                picture[: height // 2] = 255 * bits[:, None]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        entries.append(probe_video(path))
    write_manifest(folder / f"{codec}_{width}x{height}_{gop}.csv", entries)
    return folder / f"{codec}_{width}x{height}_{gop}.csv"


def numbers(clip: np.ndarray) -> list[int]:
    """The numbers that the frames of uint8 [T, S, S, 3] show."""
    row = clip[:, clip.shape[1] // 4].astype(float).mean(-1)
    bits = row[:, ((np.arange(8) + 0.5) * clip.shape[2] / 8).astype(int)] > 128
    return (bits << np.arange(8)).sum(1).tolist()


def _ours(backend: str, device: str) -> Decode:
    def decode(planner: ClipPlanner, batches: Batches, crop_size: int, threads: int) -> Iterator:
        choose_backend(backend, planner.entries, torch.device(device))
        with make_loader(planner, batches, crop_size, backend, device, threads) as loader:
            for batch in loader:
                if loader.fallback:
                    raise UserError(
                        f"found that another decoder does the work of {loader.backend} on "
                        f"{loader.fallback[0]}, expected figures of {loader.backend} alone"
                    )
                yield batch.video

    return decode


def _clip_by_clip(open_at: Callable[[ManifestEntry, np.ndarray], np.ndarray]) -> Decode:
    """A reader of frames [n, H, W, 3] as a loader: a thread a clip, as many batches ahead as
    ours."""

    def one(plan: ClipPlan, entry: ManifestEntry, crop_size: int) -> torch.Tensor:
        wanted, places = np.unique(plan.frames, return_inverse=True)
        top, left, height, width = plan.crop
        rows = slice(round(top * entry.height), round((top + height) * entry.height))
        columns = slice(round(left * entry.width), round((left + width) * entry.width))
        pictures = torch.from_numpy(open_at(entry, wanted)[:, rows, columns])
        video = torch.nn.functional.interpolate(
            pictures.permute(0, 3, 1, 2), (crop_size, crop_size), mode="bilinear", antialias=True
        ).permute(0, 2, 3, 1)[torch.from_numpy(places)]
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
    """What is wrong with a decoder's frames; None where they are the planned ones."""
    ids = list(range(BATCH))
    (video,) = decode(planner, [ids], crop_size, threads)
    for plan, clip in zip(planner.plan(ids), video.cpu(), strict=True):
        if numbers(clip.numpy()) != plan.frames.tolist():
            return f"shows frames {numbers(clip.numpy())} instead of {plan.frames.tolist()}"
        expected = decode_clip(plan, planner.entries[plan.video], crop_size)
        difference = (clip.float() - expected.float()).abs().mean().item()
        if difference > TOLERANCE:
            return f"is {difference:.1f} grey levels off on average"
    return None


def _family() -> list[int]:
    """This process and all that it started, since PyAV decodes in processes of its own."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = [os.getpid()]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def _cpu_seconds() -> float:
    """CPU time of the family so far."""
    ticks = 0
    for pid in _family():
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # in user and in kernel mode
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident_mib() -> float:
    """Memory of the family; what several of them share is counted once."""
    kib = 0
    for pid in _family():
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def measure(
    decode: Decode, planner: ClipPlanner, crop_size: int, threads: int, seconds: float
) -> dict[str, float]:
    """Steady rate, CPU use and memory over at least `seconds` and two batches."""
    batches = (list(range(i * BATCH, (i + 1) * BATCH)) for i in count())
    clips = decode(planner, batches, crop_size, threads)
    for _ in range(WARM):
        next(clips)
    start, cpu, done = time.perf_counter(), _cpu_seconds(), 0
    while done < 2 * BATCH or time.perf_counter() - start < seconds:
        video = next(clips)
        done += len(video)
    if video.is_cuda:
        torch.cuda.synchronize()  # its resize and flip may still be under way
    wall, cpu, resident = time.perf_counter() - start, _cpu_seconds() - cpu, _resident_mib()
    clips.close()
    return {
        "clips_per_s": done / wall,
        "frames_per_s": done * video.shape[1] / wall,
        "cpu_percent": 100 * cpu / wall,
        "cpu_ms_per_clip": 1000 * cpu / done,  # tells more than clips/s on a busy machine
        "resident_mib": resident,
    }


def run_provider(name: str, cases: list[dict], options: argparse.Namespace) -> Iterator[dict]:
    """One row a case: figures, or why there are none."""
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
            # Crops and flips would hide the numbers; what decoding costs is the same without.
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


def machine() -> dict[str, str | int]:
    """What the figures are of."""
    found = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count() or 0}
    for package in sorted({*chain(*PACKAGES.values()), "torch", "vjepa-fast"}):
        if installed := _version(package):
            found[package] = installed
    return found


def here(names: Iterable[str]) -> dict[str, str | None]:
    """Each provider, with what keeps it from running here."""
    found: dict[str, str | None] = {}
    for name in names:
        found[name] = None
        if not any(map(_version, PACKAGES[name])):
            found[name] = "not installed"
        elif name == "dali gpu" and not torch.cuda.is_available():
            found[name] = "no GPU"
    return found


def _size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


def main(arguments: list[str] | None = None) -> int:
    """Make, check, time, print; 1 if a decoder shows wrong frames."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codecs", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(320, 240), (640, 480)])
    parser.add_argument("--gops", nargs="+", type=int, default=[12, 96], help="key frame spacing")
    parser.add_argument("--lengths", nargs="+", type=int, default=[8, 16], help="frames of a clip")
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), default=list(PROVIDERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--crop-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement, at least")
    parser.add_argument("--output", type=Path, help="rows as JSON lines")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # a provider's own process
    options = parser.parse_args(arguments)
    if options.only:
        name, cases = options.only
        for row in run_provider(name, json.loads(Path(cases).read_text()), options):
            print(json.dumps(row), flush=True)
        return 0
    return _run_all(options)


def _run_all(options: argparse.Namespace) -> int:
    facts, wrong = machine(), 0
    print(f"{options.threads} threads, {options.crop_size} px, every {STEP}th frame; {facts}")
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
        for name, obstacle in here(options.providers).items():
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
