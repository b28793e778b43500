"""Measures the sides of bench/throughput.py: whole steps interleaved, parts, memory, traces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from step.clock import Clock, Rates, peak_memory
from step.gemms import gemms_alone
from step.trainers import PARTS, Baseline, Clips, Ours

if TYPE_CHECKING:
    from peer.checkout import Peer

STEPS_PER_ROUND = {"cuda": 5, "cpu": 1}  # of each side
PROFILED_STEPS = 3


@dataclass(frozen=True)
class Measured:
    """What was measured. Our step numbers tell whose masks, hence how much work, a time stands for.

    Attributes:
        times: [rounds] each: seconds of a step ("ours", …) and of its wait for data ("ours, wait",
            …), FLOP/s of the large GEMM ("gemm"), bytes/s of the large copy ("copy").
        steps: our steps that `times` covers.
        memory: peak bytes of a step beyond weights and optimizer state, by side.
        parts: median seconds of each part, by side.
        parts_steps: our steps that `parts` covers.
        gemms: the GEMMs of one of our steps timed alone (step/gemms.py); None with torch.compile.
        gemms_step: that step.
    """

    times: dict[str, np.ndarray]
    steps: range
    memory: dict[str, int | None]
    parts: dict[str, dict[str, float]]
    parts_steps: range
    gemms: dict[str, float] | None
    gemms_step: int


class Measurement:
    """Runs steps of all sides; each side's step numbers increase from measurement to measurement.

    A peer takes part in whole steps and their memory, since it runs in another process.

    Args:
        clips: micro-batches for both sides.
        first_step: step number after the gate.
    """

    def __init__(
        self,
        ours: Ours,
        baseline: Baseline,
        clips: Clips,
        clock: Clock,
        first_step: int,
        peer: Peer | None = None,
    ) -> None:
        self.ours, self.sides = ours, (baseline, ours)
        self.clips, self.clock, self.peer = clips, clock, peer
        self.device = ours.device
        self.all = [*self.sides, *([peer] if peer else [])]
        self.next_step = dict.fromkeys((side.name for side in self.all), first_step)

    def measure(self, rates: Rates, steps: int, compiled: bool) -> Measured:
        """All measurements but traces, of `steps` whole steps of each side."""
        per_round = STEPS_PER_ROUND[self.device.type]
        first = self.next_step["ours"] + per_round  # after the warm-up round
        times = self.interleaved(-(-steps // per_round), rates)
        timed = range(first, self.next_step["ours"])
        memory = self.memory()
        first = self.next_step["ours"]
        parts = self.parts(max(3, steps // 2))
        parts_steps, gemms = range(first, self.next_step["ours"]), None
        if not compiled:
            step, video = self._take(self.ours), next(self.clips)
            gemms = gemms_alone(lambda: self.ours.step(step, video, None), self.clock, self.device)
        return Measured(times, timed, memory, parts, parts_steps, gemms, parts_steps.stop)

    def _take(self, side: Ours | Baseline | Peer) -> int:
        self.next_step[side.name] += 1
        return self.next_step[side.name] - 1

    def _round(self, side: Ours | Baseline | Peer) -> tuple[float, float]:
        """Seconds of a step including the wait for its clips, and of that wait alone."""
        steps = [self._take(side) for _ in range(STEPS_PER_ROUND[self.device.type])]
        if side is self.peer:
            return side.time_steps(steps), 0.0
        prepared = [side.prepare(step) for step in steps]
        self.clips.waited()
        start = self.clock()
        for step, masks in zip(steps, prepared, strict=True):
            side.step(step, next(self.clips), masks)
        return (self.clock() - start) / len(steps), self.clips.waited() / len(steps)

    def interleaved(self, rounds: int, rates: Rates) -> dict[str, np.ndarray]:
        """`Measured.times`: a round is a few steps of each side, a large GEMM and a large copy, so
        that other load on the machine slows all of them."""
        found: dict[str, list[float]] = {}
        for i in range(rounds + 1):
            for side in self.all[:: 1 if i % 2 else -1]:
                seconds, waited = self._round(side)
                found.setdefault(side.name, []).append(seconds)
                found.setdefault(f"{side.name}, wait", []).append(waited)
            found.setdefault("gemm", []).append(rates.gemm())
            found.setdefault("copy", []).append(rates.copy())
        return {name: np.array(values[1:]) for name, values in found.items()}  # without a warm-up

    def parts(self, steps: int) -> dict[str, dict[str, float]]:
        """`Measured.parts`, on separate steps: the clock syncs after each part, which whole steps
        do not."""
        found: dict[str, list[dict[str, float]]] = {side.name: [] for side in self.sides}
        for _ in range(steps):
            for side in self.sides:
                step = self._take(side)
                video, masks = next(self.clips), side.prepare(step)
                run = partial(side.step, step, video, masks)  # called with a mark
                found[side.name].append(self.clock.time_parts(run))
        return {
            name: {part: float(np.median([times[part] for times in rows])) for part in PARTS}
            for name, rows in found.items()
        }

    def memory(self) -> dict[str, int | None]:
        """`Measured.memory`."""

        def one(side: Ours | Baseline | Peer) -> int | None:
            step = self._take(side)
            if side is self.peer:
                return side.memory(step)
            video, masks = next(self.clips), side.prepare(step)
            return peak_memory(lambda: side.step(step, video, masks), self.device)

        return {side.name: one(side) for side in self.all}

    def profile(self, folder: Path) -> list[Path]:
        """Write each side's trace (for chrome://tracing or Perfetto) and top operators into an
        existing folder; the files."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        written = []
        for side in self.sides:
            steps = [self._take(side) for _ in range(PROFILED_STEPS)]
            inputs = [(step, next(self.clips), side.prepare(step)) for step in steps]
            with torch.profiler.profile(activities=activities) as profiler:
                for arguments in inputs:
                    side.step(*arguments)
                self.clock()
            trace, table = folder / f"{side.name}.json.gz", folder / f"{side.name}.txt"
            profiler.export_chrome_trace(str(trace))
            order = f"self_{self.device.type}_time_total"
            text = profiler.key_averages().table(sort_by=order, row_limit=40)
            table.write_text(f"{PROFILED_STEPS} steps\n{text}\n", encoding="utf-8")
            written += [trace, table]
        return written
