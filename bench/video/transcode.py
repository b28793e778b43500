"""Compare settings for copies by `vjepa-fast transcode`: python bench/video/transcode.py

Renders videos, makes copies of them with each setting, checks them, and times decoding clips of 16
frames, every 4th, at random places, to 224 px: CPU time with PyAV, and with DALI what it decodes on
a CPU. The quality of the settings is about the same (the table has each one's PSNR), so that bytes
and times can be compared. Rounds alternate over the settings, and the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # bench/, as its commands have it

import av
import numpy as np
import torch

from common import count, describe, machine_text, new_file
from video.settings import LOSSLESS, SETTINGS, Setting
from video.sources import FPS, FRAMES, write_sources
from vjepa_fast.commands.terminal import text_table
from vjepa_fast.data.decode.backend import DALI_CODECS
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.manifest.entries import entries_of
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.prepare import encode
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.errors import UserError

LENGTH, STEP, CROP_SIZE, SHORT_SIDE = 16, 4, 224, 320
BATCH = 4  # clips that DALI decodes together
TOLERANCE = 6.0  # gray levels between clips of a copy and of the lossless one, on average

Decode = Callable[[Sequence[int]], list[torch.Tensor]]


@dataclass
class Copies:
    """What one setting made of the videos."""

    setting: Setting
    planner: ClipPlanner
    bytes_per_second: float
    encoding: float  # CPU seconds for a second of video
    psnr: float = 0.0


def make_copies(setting: Setting, sources: Sequence[Path], folder: Path) -> Copies:
    """Encode copies as `vjepa-fast transcode` does, with the setting as its only codec."""
    folder.mkdir()
    how = setting.encoder, setting.suffix, setting.options, setting.muxing
    paths = [folder / f"{source.stem}{setting.suffix}" for source in sources]
    start = time.process_time()
    with mock.patch.dict(encode.CODECS, {"this": how}):
        for source, path in zip(sources, paths, strict=True):
            settings = encode.Settings("this", SHORT_SIDE, setting.gop)
            encode.encode_copy(str(source), None, FRAMES, path, settings, "bench")
    seconds = len(paths) * FRAMES / FPS
    encoding = (time.process_time() - start) / seconds
    planner = ClipPlanner(
        [entries_of([probe_video(path) for path in paths])],
        num_frames=LENGTH,
        frame_step=STEP,
        augment=Augment(),
    )
    return Copies(setting, planner, sum(p.stat().st_size for p in paths) / seconds, encoding)


def check(copies: Copies, original: Copies, clips: int) -> str | None:
    """Set `copies.psnr`; what is wrong with the copies or with the decoded clips, else None."""
    errors = []
    for entry, source in zip(copies.planner.entries, original.planner.entries, strict=True):
        copy, exact = _luma(entry.path), _luma(source.path)
        if copy.shape != exact.shape:
            return f"has {copy.shape} pixels instead of {exact.shape}"
        errors.append(((copy.astype(np.int16) - exact) ** 2).mean(dtype=np.float64))
    copies.psnr = float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-9))))
    with decoders(copies) as named:
        for name, decode in named.items():
            plans = copies.planner.plan(range(clips))
            for plan, clip in zip(plans, decode(range(clips)), strict=True):
                off = _off(clip, plan, original.planner.entries[plan.video])
                if off[0] > TOLERANCE or off[0] >= min(off[-1], off[1]):
                    gray = f"{off} gray levels (by frame before, after)"
                    return f"as {name} decodes it is off by {gray}"
    return None


def _off(clip: torch.Tensor, plan: ClipPlan, source: ManifestEntry) -> dict[int, float]:
    """Mean difference of a clip from the source's, in gray levels, by a shift of the frames."""
    off = {}
    for shift in (-1, 0, 1):
        frames = (plan.frames + shift).clip(0, FRAMES - 1)
        exact = decode_clip(replace(plan, frames=frames), source, CROP_SIZE)
        off[shift] = (clip.float() - exact.float()).abs().mean().item()
    return off


def _luma(path: str) -> np.ndarray:
    """uint8 [frames, H, W]."""
    with av.open(path) as container:
        frames = [frame.to_ndarray()[: frame.height] for frame in container.decode(video=0)]
    return np.stack(frames)


@contextmanager
def decoders(copies: Copies) -> Iterator[dict[str, Decode]]:
    """By name, what decodes the copies on a CPU: PyAV, and DALI if it can."""
    entries, plan = copies.planner.entries, copies.planner.plan
    found: dict[str, Decode] = {
        "PyAV": lambda ids: [decode_clip(p, entries[p.video], CROP_SIZE) for p in plan(ids)]
    }
    if entries[0].codec not in DALI_CODECS["cpu"] or not find_spec("nvidia.dali"):
        yield found
        return
    from vjepa_fast.data.decode.dali import DaliDecoder

    with closing(DaliDecoder(entries, CROP_SIZE, torch.device("cpu"), num_workers=1)) as dali:

        def decode(ids: Sequence[int]) -> list[torch.Tensor]:
            clips: list[torch.Tensor] = []
            for start in range(0, len(ids), BATCH):
                plans = plan(ids[start : start + BATCH])
                video, failures = dali.collect(plans, dali.submit(plans))
                if failures or dali.fallback:
                    raise UserError(f"found clips that DALI does not decode: {failures}")
                clips += video
            return clips

        yield found | {"DALI": decode}


def measure(made: Sequence[Copies], clips: int, rounds: int) -> list[dict[str, float]]:
    """For each setting, by decoder: median CPU milliseconds for a clip."""
    with ExitStack() as stack:
        calls = [
            (i, name, call)
            for i, copies in enumerate(made)
            for name, call in stack.enter_context(decoders(copies)).items()
        ]
        seconds: dict[tuple[int, str], list[float]] = {(i, name): [] for i, name, _ in calls}
        for each in range(-1, rounds):  # the first round warms up
            for i, name, call in calls:
                start = time.process_time()
                call(range(clips))
                if each >= 0:
                    seconds[i, name].append((time.process_time() - start) / clips)
    rows: list[dict[str, float]] = [{} for _ in made]
    for (i, name), found in seconds.items():
        rows[i][name] = 1000 * float(np.median(found))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Render, encode, check, time, print; 1 if copies or clips are wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SETTING")
    parser.add_argument("--clips", type=count, default=24, help="timed clips (default: 24)")
    parser.add_argument("--rounds", type=count, default=5, help="of all settings (default: 5)")
    parser.add_argument("--output", type=new_file, help="file for the results, as JSON lines")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    facts = describe(torch.device("cpu"))
    print(machine_text(facts))
    with tempfile.TemporaryDirectory() as folder:
        return _run(Path(folder), options, facts)


def _run(folder: Path, options: argparse.Namespace, facts: dict[str, Any]) -> int:
    sources = write_sources(folder)
    original = make_copies(LOSSLESS, sources, folder / "lossless")
    lossless = [Path(entry.path) for entry in original.planner.entries]
    made = []
    for setting in SETTINGS:
        if setting.name in options.only:
            copies = make_copies(setting, lossless, folder / str(len(made)))
            if wrong := check(copies, original, BATCH):
                print(f"{setting.name}: found that a copy {wrong}", file=sys.stderr)
                return 1
            made.append(copies)
    rows = [
        {
            "setting": copies.setting.name,
            "gop": copies.setting.gop,
            "kb_per_second": copies.bytes_per_second / 1000,
            "psnr": copies.psnr,
            "encoding_ms_per_second": 1000 * copies.encoding,
            "pyav_ms": found["PyAV"],
            "dali_ms": found.get("DALI"),
        }
        for copies, found in zip(made, measure(made, options.clips, options.rounds), strict=True)
    ]
    heads = "setting", "GOP", "kB/s", "PSNR", "encoding, ms/s", "PyAV, ms/clip", "DALI, ms/clip"
    cells = [[_cell(value) for value in row.values()] for row in rows]
    print(text_table([heads, *cells]))
    if options.output:
        options.output.write_text("".join(json.dumps(row | facts) + "\n" for row in rows))
    return 0


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
