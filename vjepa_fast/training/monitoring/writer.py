"""Writes a run's metrics to JSON lines, TensorBoard and, if asked, Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vjepa_fast.errors import UserError

log = logging.getLogger("vjepa_fast")

_LEAST_SPACE = 2**18  # bytes; with less, TensorBoard's own thread would die with a traceback


def read_metrics(path: Path) -> list[dict]:
    """All complete lines of a metrics file; a kill may leave half a line at the end."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class MetricsWriter:
    """Appends to RUN/metrics.jsonl and RUN/tensorboard, and to Weights & Biases if asked.

    For rank 0 only. On resuming, lines of steps that will run again are dropped, so that no step is
    in the file twice. If the disk is full, metrics are lost until there is space, with one warning,
    and the run continues.

    Args:
        run: the run's folder.
        next_step: the first step that will be written.
        wandb: project at Weights & Biases, None for none.
        settings: the run's config as plain data, for Weights & Biases.

    Raises:
        UserError: Weights & Biases is asked for but not installed.
    """

    def __init__(self, run: Path, next_step: int, wandb: str | None, settings: dict) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] < next_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        temporary.replace(self.path)
        self._wandb = start_wandb(run, wandb, settings) if wandb else None
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._board: Any = SummaryWriter(str(run / "tensorboard"), purge_step=next_step)
        self._warned = False

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write scalars of a step (0, 1, …)."""
        try:
            self._append(json.dumps({"step": step, **values}).encode() + b"\n")
        except OSError as error:
            self._warn(step, error.strerror)
        for name, value in values.items():
            self._to_board(step, "add_scalar", name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> Path:
        """Write RUN/pictures/step_…_name.png, also to TensorBoard.

        The file's name counts the steps done, from 1, as checkpoints' do; TensorBoard's step counts
        from 0, as those of its curves.

        Args:
            step: step of the picture (0, 1, …).
            name: name of the picture.
            pixels: uint8 [height, width, 3 or 4].

        Raises:
            OSError: the file cannot be written.
        """
        path = self.path.parent / "pictures" / f"step_{step + 1:08d}_{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        self._to_board(step, "add_image", name, pixels, step, dataformats="HWC")
        return path

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Write a histogram to TensorBoard. Host sync."""
        self._to_board(step, "add_histogram", name, values.float().cpu(), step)

    def close(self) -> None:
        """Flush and close."""
        os.close(self._file)
        if self._board:
            try:
                self._board.close()
            except OSError as error:
                log.warning("TensorBoard: the last metrics are lost (%s)", error.strerror)
        if self._wandb:
            self._wandb.finish()

    def _append(self, line: bytes) -> None:
        """Append a whole line or nothing."""
        size = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def _to_board(self, step: int, method: str, *arguments: Any, **options: Any) -> None:
        if self._board is None:
            return
        if shutil.disk_usage(self.path.parent).free < _LEAST_SPACE:
            self._warn(step, "hardly any space left")
            return
        try:
            getattr(self._board, method)(*arguments, **options)
        except OSError as error:  # its writer thread has ended
            self._board = None
            self._warn(step, error.strerror)

    def _warn(self, step: int, found: str) -> None:
        if not self._warned:
            log.warning(
                "step %d: found no space for metrics in %s (%s), expected free space; free some, "
                "until then metrics are lost (the run continues)",
                step,
                self.path.parent,
                found,
            )
        self._warned = True


def start_wandb(run: Path, project: str, settings: dict) -> Any:
    """Start the run of this folder at Weights & Biases, or resume it.

    Raises:
        UserError: the package is missing.
    """
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"log.wandb: found {project!r} but no module wandb, expected the package; install it "
            "with pip install wandb, or set log.wandb to null"
        ) from None
    name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
    return wandb.init(
        project=project, name=run.name, id=name, resume="allow", dir=str(run), config=settings
    )
