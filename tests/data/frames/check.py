"""Compares what the index, the decoders and `transcode` make of a file with a full decode of it.

python -m tests.data.frames.check                      # the table of all cases
python -m tests.data.frames.check 'h264-*' --keep /tmp/x   # of some, whose files are kept
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import av
import numpy as np
import torch

from tests.data.frames.makers import avi_files, field_files, mp4_files, odd_streams, remuxes
from tests.data.frames.makers.matrix import matrix
from tests.data.frames.makers.numbered_videos import Case, numbers
from vjepa_fast.data.decode.dali import DaliDecoder
from vjepa_fast.data.decode.pyav import decode_pixels
from vjepa_fast.data.decode.time_stamps import clip_frames
from vjepa_fast.data.ffmpeg import BadVideo
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.frame_sampling import TimedWindow, Windows, window_frames
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.transcode import transcode_manifest
from vjepa_fast.errors import UserError

WINDOW = 16  # frames of a clip
STEPS = (1, 2, 4)
FPS = 9.3  # no whole seconds: 1.001 s is both the edge of an NTSC frame and a point plus its tick
CROP = 96  # pixels
DALI_CODECS = ("vp8", "vp9", "mjpeg")  # that its CPU decoder takes


def all_cases() -> list[Case]:
    """Every special situation, then the matrix."""
    makers = remuxes, odd_streams, avi_files, mp4_files, field_files
    return [case for maker in makers for case in maker.situations()] + matrix()


def reference(path: Path) -> list[int]:
    """The numbers of all frames, decoded from the start by plain PyAV."""
    return decoded(path)[0]


def decoded(path: Path) -> tuple[list[int], np.ndarray | None]:
    """The numbers of all frames, decoded from the start by plain PyAV, and when they are shown, in
    seconds from the first on: float64 [frames], or None where these do not ascend."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [frame for packet in container.demux(stream) for frame in packet.decode()]
        gray = [frame.reformat(format="gray").to_ndarray() for frame in frames]
    times = [frame.time for frame in frames]
    if None in times or times != sorted(set(times)):
        return (numbers(np.stack(gray)) if gray else []), None
    return numbers(np.stack(gray)), np.array(times) - times[0]


@dataclass
class Verdict:
    """What became of a case.

    Attributes:
        frames: in the manifest; None where the index refuses the file.
        expected: frames of the reference.
        refused: the index's reason.
        clips: how many clips are "right", "wrong" and "refused", by decoder; "fps": of how many the
            frame numbers are those that the frames' time stamps give.
        examples: the first of each that is not right, in words.
        copy: what is wrong with the copy made by `transcode`; "" if nothing is, None if untried.
    """

    frames: int | None = None
    expected: int = 0
    refused: str = ""
    clips: dict[str, Counter] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    copy: str | None = None

    def add(self, decoder: str, wanted: list[int], found: list[int] | str) -> None:
        outcome = "right" if found == wanted else "refused" if isinstance(found, str) else "wrong"
        counts = self.clips.setdefault(decoder, Counter())
        counts[outcome] += 1
        if counts[outcome] == 1 and outcome != "right":
            self.examples.append(f"{decoder} {outcome}: wanted {wanted}, found {found}")

    def faults(self, case: Case) -> list[str]:
        """Everything that is not as it has to be, in words."""
        if case.refused:
            ok = re.search(case.refused, self.refused)
            return [] if ok else [f"expected refusal {case.refused!r}, found {self.refused!r}"]
        if self.refused:
            return [f"refused by the index: {self.refused}"]
        found = []
        if self.frames != self.expected:
            found.append(f"the manifest says {self.frames} of {self.expected} frames")
        found += self.examples
        if self.copy:
            found.append(f"copy: {self.copy}")
        return found

    def line(self) -> str:
        if self.frames is None:
            return f"index refuses: {self.refused}"
        parts = [f"frames {self.frames}/{self.expected}"]
        for decoder, counts in self.clips.items():
            tally = "/".join(str(counts[key]) for key in ("right", "wrong", "refused"))
            parts.append(f"{decoder} {tally}")
        if self.copy is not None:
            parts.append(f"copy {self.copy or 'right'}")
        return ", ".join(parts)


def plans(entry: ManifestEntry, starts: int, seed: int = 0) -> list[ClipPlan]:
    """Clips of every step and by fps, at `starts` places each: near the places where decoders
    change their way (0, 32, the end), and at random."""
    rng, found = np.random.default_rng(seed), []
    for step in STEPS:
        last = max(entry.frames - WINDOW * step, 0)
        places = [0, last, min(32, last), min(31, last)]
        places += rng.integers(0, last + 1, max(starts - 4, 0)).tolist()
        for first in sorted(set(places[:starts])):
            frames = window_frames([entry.frames], WINDOW, step, np.array([first]))[0]
            found.append(frames)
    windows = Windows(WINDOW, 1, fps=FPS)
    found += [TimedWindow(windows, 0, at) for at in np.linspace(0, 1, max(starts // 2, 2))]
    whole = (0.0, 0.0, 1.0, 1.0)
    return [ClipPlan(i, entry.path, 0, f, whole, False, {}) for i, f in enumerate(found)]


def check(path: Path, starts: int = 10, dali: bool = False, copy: bool = False) -> Verdict:
    """Index, decode and copy a file; see `Verdict`."""
    shown, times = decoded(path)
    verdict = Verdict(expected=len(shown))
    try:
        entry = probe_video(path)
    except BadVideo as reason:
        verdict.refused = str(reason)
        return verdict
    verdict.frames = entry.frames
    todo = plans(entry, starts)
    for plan in todo:
        try:
            frames = clip_frames(plan, entry).tolist()
            wanted = [shown[i] if i < len(shown) else None for i in frames]
            if isinstance(plan.frames, TimedWindow) and times is not None:
                at_times = plan.frames.frames(replace(entry, frames=len(times)), times)
                verdict.add("fps", at_times.tolist(), frames)
            found = numbers(decode_pixels(plan, entry, CROP)[..., 1])
        except UserError as error:
            wanted, found = [], str(error)
        verdict.add("pyav", wanted, found)
    if dali and entry.codec in DALI_CODECS:
        with closing(DaliDecoder([entry], CROP, torch.device("cpu"), 1)) as decoder:
            for plan in todo:
                video, failures = decoder.collect([plan], decoder.submit([plan]))
                wanted = [shown[i] for i in clip_frames(plan, entry)]
                verdict.add("dali", wanted, failures.get(0) or numbers(video.numpy()[0, ..., 1]))
    if copy:
        verdict.copy = _copy_fault(entry, shown)
    return verdict


def _copy_fault(entry: ManifestEntry, shown: list[int]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "m.csv"
        write_manifest(manifest, [entry])
        try:
            target, _ = transcode_manifest(manifest, Path(folder) / "copy", "h264", 64, 12, 1)
        except UserError as error:
            return re.sub(r".*\(the first: .*?: (.*)\), expected at least one.*", r"\1", str(error))
        [copied] = read_manifest(target)
        found = reference(copied.path)
        if found == shown:
            return ""
        return f"{len(found)} frames, expected {len(shown)}; {_difference(found, shown)}"


def _difference(found: list[int], expected: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
    return (
        "the first ones alike"
        if at is None
        else f"frame {at} shows {found[at]}, not {expected[at]}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["*"], help="patterns of cases; all")
    parser.add_argument("--keep", type=Path, help="folder of the files; temporary")
    parser.add_argument("--starts", type=int, default=10, help="places of clips for each step; 10")
    parser.add_argument("--copy", action="store_true", help="check transcode too")
    parser.add_argument("--dali", action="store_true", help="check DALI too")
    options = parser.parse_args()
    av.logging.set_level(av.logging.PANIC)
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in all_cases():
            if not any(fnmatch(case.name, name) for name in options.names):
                continue
            path = folder / f"{case.name}.{case.suffix}"
            case.make(path)
            verdict = check(path, options.starts, options.dali, options.copy)
            faults = verdict.faults(case)
            bad += bool(faults)
            print("FAIL" if faults else "ok  ", case.name, "|", verdict.line(), flush=True)
            for fault in faults:
                print("      ", fault[:300])
            if not options.keep:
                path.unlink()
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
