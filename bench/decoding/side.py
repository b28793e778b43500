"""One decoder in a process of its own, which decodes when it is told to, so that decoders can take
turns."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

import torch

from decoding.providers import PROVIDERS, check
from decoding.usage import cpu_seconds, family, resident_mib, until_quiet
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.errors import UserError

BATCH, STEP = 4, 4  # clips, frame step
_FAILURES = (UserError, ImportError, RuntimeError, OSError)


class Decoding:
    """A decoder at work on a case. Raises one of `_FAILURES` where it cannot decode.

    Attributes:
        wrong: what is wrong with its first batch; None if nothing is.
    """

    def __init__(self, name: str, case: dict, options: argparse.Namespace) -> None:
        planner = ClipPlanner(
            [read_manifest(case["manifest"])],
            num_frames=case["num_frames"],
            frame_step=STEP,
            # Crops and flips would hide the numbers; without them decoding costs the same or more.
            augment=Augment(
                area=(1, 1), aspect_ratio=(case["width"] / case["height"],) * 2, flip=False
            ),
        )
        batches = (list(range(i * BATCH, (i + 1) * BATCH)) for i in itertools.count())
        self._clips = PROVIDERS[name](planner, batches, options.crop_size, options.threads)
        first = next(self._clips)
        self.wrong = check(planner, list(range(BATCH)), first, options.crop_size)
        next(self._clips)  # to warm up
        self._processes = family()
        until_quiet(self._processes)

    def measure(self, batches: int) -> dict[str, float]:
        """Throughput, CPU time and memory of this many batches."""
        start, cpu = time.perf_counter(), cpu_seconds(self._processes)
        for _ in range(batches):
            video = next(self._clips)
        if video.is_cuda:
            torch.cuda.synchronize()  # its resize and flip may still be running
        # As many batches are decoded ahead as before.
        looking = time.thread_time()
        wall = until_quiet(self._processes) - start
        looking = time.thread_time() - looking
        cpu = cpu_seconds(self._processes) - cpu - looking
        clips = batches * BATCH
        return {
            "clips_per_s": clips / wall,
            "frames_per_s": clips * video.shape[1] / wall,
            "cpu_percent": 100 * cpu / wall,
            "cpu_ms_per_clip": 1000 * cpu / clips,  # the reliable figure on a busy machine
            "resident_mib": resident_mib(),
        }

    def close(self) -> None:
        self._clips.close()


def serve(name: str, options: argparse.Namespace) -> None:
    """Answer requests, one JSON object a line, until the input ends."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    at_work: Decoding | None = None
    for line in sys.stdin:
        request, answer = json.loads(line), {}
        try:
            if "case" in request:
                at_work = Decoding(name, request["case"], options)
                answer = {"wrong": at_work.wrong} if at_work.wrong else {}
            elif "batches" in request:
                answer = at_work.measure(request["batches"])
            elif at_work:
                at_work.close()
                at_work = None
        except _FAILURES as error:
            answer = {"skipped": " ".join(str(error).split())[:200]}
        print(json.dumps(answer), file=answers, flush=True)


class Side:
    """The process of a decoder, as the measuring process sees it. Context manager."""

    def __init__(self, script: str, name: str, options: argparse.Namespace) -> None:
        self.name = name
        command = [sys.executable, script, "--serve", name]
        for key in ("threads", "crop_size"):
            command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (until the end)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; "wrong" tells of a process that ended."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().rpartition("\n")[2]
        return {"wrong": f"ended with {code} ({last})"}

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):  # it has ended
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
