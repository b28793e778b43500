"""A clip that cannot be decoded costs itself only: another takes its place, and it is listed.

What takes the place of a sample is a function of its id and of which files are bad
(`ClipPlanner.plan_one`): the same with any decoder, at any number of processes, after a resume.
"""

import json
import logging
import os
from pathlib import Path

import torch

from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.errors import UserError

MAX_BAD_SHARE = 0.05
_SHOWN = 10  # replaced videos that are named on the terminal
_AT_LEAST = 1000  # clips that a share is of, so that the first bad one is not all of them
_logger = logging.getLogger("vjepa_fast")


class BadVideos:
    """The bad clips of one process since it started: a line of JSON each in the file `log`.

    A line has sample_id, path, reason and replacement (the path of the video that is tried next;
    where that is bad too, it has a line of its own). More than `max_share` of the clips tried, or
    of 1,000 while they are fewer, stop the run.
    """

    def __init__(self, log: str | os.PathLike | None = None, max_share: float = MAX_BAD_SHARE):
        self._log = None if log is None else Path(log)
        self._max_share = max_share
        self._tried = 0
        self._bad = 0
        self._named: set[str] = set()

    def tried(self, clips: int) -> None:
        """Count clips that a decoder was given."""
        self._tried += clips

    def replace(self, planner: ClipPlanner, plan: ClipPlan, attempt: int, reason: str) -> ClipPlan:
        """List a bad clip and plan the `attempt`-th one (from 1 on) in its place.

        Raises UserError where there are too many of them, and where nothing can take its place: in
        an evaluation, or after all the other videos of its manifest.
        """
        try:
            other = planner.plan_one(plan.sample_id, attempt)
        except UserError as nothing_else:
            raise UserError(f"{nothing_else} (the last one: {reason})") from None
        self._bad += 1
        self._write(plan, reason, other)
        if self._bad > self._max_share * max(self._tried, _AT_LEAST):
            raise UserError(
                f"data.max_bad_fraction: found {self._bad} of {self._tried} clips undecodable (the "
                f"last one: {reason}), expected at most {self._max_share:g} of "
                f"{max(self._tried, _AT_LEAST)}; index the videos again, or set a larger share"
            )
        return other

    def _write(self, plan: ClipPlan, reason: str, other: ClipPlan) -> None:
        if plan.path not in self._named:
            self._named.add(plan.path)
            if len(self._named) <= _SHOWN:
                _logger.warning("replaced by another clip, now and whenever it comes: %s", reason)
            elif len(self._named) == _SHOWN + 1:
                place = f", see {self._log}" if self._log else ""
                _logger.warning("more videos are replaced than are shown here%s", place)
        if self._log is None:
            return
        row = {"sample_id": plan.sample_id, "path": plan.path, "reason": reason}
        line = json.dumps(row | {"replacement": other.path}) + "\n"
        try:
            with open(self._log, "a", encoding="utf-8") as file:  # one write: ranks share the file
                file.write(line)
        except OSError as error:  # a full disk is no reason to stop
            _logger.warning("cannot write to %s (%s)", self._log, error.strerror)


def decode_or_replace(
    planner: ClipPlanner, decoder: object, plans: list[ClipPlan], submitted: list, bad: BadVideos
) -> tuple[list[ClipPlan], torch.Tensor]:
    """The video of submitted plans, uint8 [B, T, S, S, 3], and the plans that it really shows.

    `decoder` is a `loader.Decoder`. Raises UserError as `BadVideos.replace` does.
    """
    plans = list(plans)
    video, failures = decoder.collect(plans, submitted)
    bad.tried(len(plans))
    attempt = 0
    while failures:
        attempt += 1
        for i, reason in failures.items():
            plans[i] = bad.replace(planner, plans[i], attempt, reason)
        places = list(failures)
        others = [plans[i] for i in places]
        found, failed = decoder.collect(others, decoder.submit(others))
        bad.tried(len(others))
        for k, i in enumerate(places):
            if k not in failed:
                video[i] = found[k]
        if video.is_cuda:  # before the decoder reuses the memory of `found`, or anyone reads it
            torch.cuda.current_stream(video.device).synchronize()
        failures = {places[k]: reason for k, reason in failed.items()}
    return plans, video
