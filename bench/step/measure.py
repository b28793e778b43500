"""The measurements of bench/throughput.py: whole steps in turns, parts apart, traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from step.clock import Clock, Laps, Rates, peak_memory
from step.sides import PARTS, Clips, Ours, Plain

if TYPE_CHECKING:
    from peer.side import Peer

Side = Ours | Plain
PER_TURN = {"cuda": 5, "cpu": 1}  # steps of a side before it is the other's turn
PROFILED = 3


class Measurement:
    """Steps of all sides, whose numbers go on from measurement to measurement. A peer takes part
    where its process can be asked: in whole steps and their memory."""

    def __init__(
        self,
        sides: Sequence[Side],
        clips: Clips,
        clock: Clock,
        first: int,
        peer: Peer | None = None,
    ) -> None:
        self.sides, self.clips, self.clock, self.peer = sides, clips, clock, peer
        self.device = sides[0].device
        self.all = [*sides, *([peer] if peer else [])]
        self.numbers = dict.fromkeys((side.name for side in self.all), first)

    def _next(self, side: Side | Peer) -> int:
        self.numbers[side.name] += 1
        return self.numbers[side.name] - 1

    def turn(self, side: Side | Peer) -> tuple[float, float]:
        """Seconds of a step, waiting for its clips included, and of the waiting alone."""
        steps = [self._next(side) for _ in range(PER_TURN[self.device.type])]
        if side is self.peer:
            return side.turn(steps), 0.0
        ready = [side.prepare(number) for number in steps]
        self.clips.waited()
        start = self.clock()
        for number, masks in zip(steps, ready, strict=True):
            side.step(number, next(self.clips), masks)
        return (self.clock() - start) / len(steps), self.clips.waited() / len(steps)

    def in_turns(self, turns: int, rates: Rates) -> dict[str, np.ndarray]:
        """Whole steps and the device's rates, in turns, so that whatever else the machine does
        slows them all.

        Returns:
            [turns] each: seconds of a step and of its wait for data by side ("ours",
            "ours, wait", …), FLOP/s of the large product ("gemm"), bytes/s of the copy ("copy").
        """
        found: dict[str, list[float]] = {}
        for turn in range(turns + 1):
            for side in self.all[:: 1 if turn % 2 else -1]:
                seconds, waited = self.turn(side)
                found.setdefault(side.name, []).append(seconds)
                found.setdefault(f"{side.name}, wait", []).append(waited)
            found.setdefault("gemm", []).append(rates.gemm())
            found.setdefault("copy", []).append(rates.copy())
        return {name: np.array(values[1:]) for name, values in found.items()}  # without a warm-up

    def parts(self, steps: int) -> dict[str, dict[str, float]]:
        """Median seconds of each part by side, on steps of their own: between parts the clock
        waits for the device, which whole steps don't."""
        laps = {side.name: Laps(self.clock) for side in self.sides}
        for _ in range(steps):
            for side in self.sides:
                number, lap = self._next(side), laps[side.name]
                video, masks = next(self.clips), side.prepare(number)
                with side.marked(lap.mark), lap.step():
                    side.step(number, video, masks, lap.mark)
        return {
            name: {part: float(np.median([step[part] for step in lap.steps])) for part in PARTS}
            for name, lap in laps.items()
        }

    def memory(self) -> dict[str, int | None]:
        """Bytes that a step of each side takes beside its weights and optimiser, at the peak."""

        def one(side: Side | Peer) -> int | None:
            number = self._next(side)
            if side is self.peer:
                return side.memory(number)
            video, masks = next(self.clips), side.prepare(number)
            return peak_memory(lambda: side.step(number, video, masks), self.device)

        return {side.name: one(side) for side in self.all}

    def profile(self, folder: Path) -> list[Path]:
        """Write a trace (for chrome://tracing or Perfetto) and a table of the top operators of
        each side into a folder that is there."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        written = []
        for side in self.sides:
            numbers = [self._next(side) for _ in range(PROFILED)]
            inputs = [(n, next(self.clips), side.prepare(n)) for n in numbers]
            with torch.profiler.profile(activities=activities) as profiler:
                for arguments in inputs:
                    side.step(*arguments)
                self.clock()
            trace, table = folder / f"{side.name}.json.gz", folder / f"{side.name}.txt"
            profiler.export_chrome_trace(str(trace))
            order = f"self_{self.device.type}_time_total"
            text = profiler.key_averages().table(sort_by=order, row_limit=40)
            table.write_text(f"{PROFILED} steps\n{text}\n", encoding="utf-8")
            written += [trace, table]
        return written
