"""Clips that cannot be decoded: replaced, deterministically, or left out; both are logged.

The replacement for a sample is a function of its id and of which files are bad
(`ClipPlanner.plan_one`): the same with any decoder, at any number of processes, after a resume.
"""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import Future
from pathlib import Path

import torch

from vjepa_fast.data.decode.backend import Decoder
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.errors import UserError

MAX_BAD_FRACTION = 0.05
_SHOWN = 10  # replaced videos that are named on the terminal
_AT_LEAST = 1000  # clips that the fraction is of, so that a run does not stop at its first bad one
log = logging.getLogger("vjepa_fast")


class BadClips:
    """The bad clips of one process since it started.

    Args:
        path: file that gets a line of JSON for each: sample_id, path, reason, and replacement, the
            path of the video that is tried next (if that is bad too, it gets its own line).
        max_fraction: of the clips tried, or of 1,000 while they are fewer; more stop the run.
    """

    def __init__(
        self, path: str | os.PathLike | None = None, max_fraction: float = MAX_BAD_FRACTION
    ) -> None:
        self._path = None if path is None else Path(path)
        self._max_fraction = max_fraction
        self._tried = 0
        self._bad = 0
        self._named: set[str] = set()

    def tried(self, clips: int) -> None:
        """Count clips that a decoder was given."""
        self._tried += clips

    def replace(self, planner: ClipPlanner, plan: ClipPlan, attempt: int, reason: str) -> ClipPlan:
        """Log a bad clip and plan its replacement, the `attempt`-th (from 1 on) for its sample.

        Raises:
            UserError: there are too many bad clips, or no replacement: in an evaluation, or after
                all the other videos of the manifest.
        """
        try:
            other = planner.plan_one(plan.sample_id, attempt)
        except UserError as nothing_else:
            raise UserError(f"{nothing_else} (the last one: {reason})") from None
        self._bad += 1
        self._write(plan, reason, other)
        counted = max(self._tried, _AT_LEAST)
        if self._bad > self._max_fraction * counted:
            raise UserError(
                f"data.max_bad_fraction: found {self._bad} of {self._tried} clips undecodable (the "
                f"last one: {reason}), expected at most {self._max_fraction:g} of {counted}; index "
                "the videos again, or set a larger fraction"
            )
        return other

    def _write(self, plan: ClipPlan, reason: str, other: ClipPlan) -> None:
        if plan.path not in self._named:
            self._named.add(plan.path)
            if len(self._named) <= _SHOWN:
                log.warning("bad clip, replaced by another one now and in later epochs: %s", reason)
            elif len(self._named) == _SHOWN + 1:
                where = f", see {self._path}" if self._path else ""
                log.warning("further replaced videos are not shown here%s", where)
        if self._path is None:
            return
        row = {"sample_id": plan.sample_id, "path": plan.path, "reason": reason}
        line = json.dumps(row | {"replacement": other.path}) + "\n"
        try:
            with open(self._path, "a", encoding="utf-8") as file:  # ranks share it: a single write
                file.write(line)
        except OSError as error:  # a full disk is no reason to stop
            log.warning("cannot write to %s (%s)", self._path, error.strerror)


class LeftOut:
    """Counts clips or videos that are left out since they do not decode, and names them in the log.

    Args:
        total: how many there are.
        max_fraction: of them; more are an error.
        option: its name, for the message.
        unit: what is counted, for the message.
    """

    def __init__(self, total: int, max_fraction: float, option: str, unit: str = "clips") -> None:
        self._total, self._max_fraction = total, max_fraction
        self._option, self._unit = option, unit
        self._bad = 0

    def note(self, path: str, reason: str) -> None:
        """Warn of one more and count it. Raises UserError where it is one too many."""
        log.warning("left out: %s", reason)
        self.count(path, reason)

    def count(self, path: str, reason: str) -> None:
        """Count one more of this file. Raises UserError where it is one too many."""
        self._bad += 1
        if self._bad > self._max_fraction * self._total:
            raise UserError(
                f"{path}: found {self._bad} of {self._total} {self._unit} undecodable (the last "
                f"one: {reason}), expected at most {self._option} = {self._max_fraction:g} of them;"
                " index the videos again, or set a larger fraction"
            )


def decode_or_replace(
    planner: ClipPlanner,
    decoder: Decoder,
    plans: list[ClipPlan],
    submitted: list[Future],
    bad: BadClips,
) -> tuple[list[ClipPlan], torch.Tensor]:
    """Wait for submitted plans; clips that cannot be decoded are replaced until all can.

    Returns:
        The plans that are shown, and their video, uint8 [B, T, S, S, 3].

    Raises:
        UserError: see `BadClips.replace`.
    """
    plans = list(plans)
    video, failures = decoder.collect(plans, submitted)
    bad.tried(len(plans))
    attempt = 0
    while failures:
        attempt += 1
        for i, reason in failures.items():
            plans[i] = bad.replace(planner, plans[i], attempt, reason)
        positions = list(failures)
        others = [plans[i] for i in positions]
        found, failed = decoder.collect(others, decoder.submit(others))
        bad.tried(len(others))
        for k, i in enumerate(positions):
            if k not in failed:
                video[i] = found[k]
        if video.is_cuda:  # host sync: before the decoder reuses `found`, or anyone reads `video`
            torch.cuda.current_stream(video.device).synchronize()
        failures = {positions[k]: reason for k, reason in failed.items()}
    return plans, video
