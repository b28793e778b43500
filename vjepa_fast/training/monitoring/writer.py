"""What a run writes down: JSONL, TensorBoard, and curves as a picture."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.training.monitoring.append import Lines

log = logging.getLogger("vjepa_fast")

_LEAST_ROOM = 2**18  # bytes

LOWER_PANELS = (
    ("gradient norm", ("grad_norm_encoder", "grad_norm_predictor"), "log"),
    ("std across clips, same position", ("std_across_clips",), "linear"),
    ("RankMe of pooled target features", ("rank_me",), "linear"),
    ("learning rate", ("lr",), "linear"),
    ("clips per second", ("clips_per_second",), "linear"),
)


def read_metrics(path: Path) -> list[dict]:
    """All whole lines of a metrics file (a kill may leave half a line at the end)."""
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
    """Appends to RUN/metrics.jsonl and RUN/tensorboard, and to Weights & Biases if asked. For
    rank 0.

    On resuming, lines from steps that will be run again are dropped, so that no value stands in
    the file twice. A full disk doesn't end a run: lines wait for room, and TensorBoard, which can't
    wait, goes on in a new file once there is some.

    Args:
        run: the run's folder.
        next_step: the step that comes next.
        wandb: a project at Weights & Biases, None for none.
        settings: the run's config as plain data, which goes there too.

    Raises:
        UserError: Weights & Biases is asked for and missing.
    """

    def __init__(self, run: Path, next_step: int, wandb: str | None, settings: dict) -> None:
        self.path = run / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] < next_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        temporary.replace(self.path)
        self._lines = Lines(self.path)
        self._folder, self._purge = run / "tensorboard", next_step
        self._board: Any = None  # TensorBoard's writer
        self._room = True
        self._wandb = start_wandb(run, wandb, settings) if wandb else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line: step (0, 1, …) and scalars."""
        try:
            self._lines.append(json.dumps({"step": step, **values}))
        except OSError as error:
            self._no_room(step, error.strerror)
        else:
            if shutil.disk_usage(self.path.parent).free < _LEAST_ROOM:
                self._no_room(step, "hardly any space left")  # TensorBoard's thread would die of it
            else:
                self._room = True
        for name, value in values.items():
            self._to_board(step, "add_scalar", name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def _no_room(self, step: int, found: str) -> None:
        if self._room:
            log.warning(
                "step %d: found no room for metrics in %s (%s), expected some; the run goes on, "
                "and lines wait in memory: free space",
                step,
                self.path.parent,
                found,
            )
        self._room = False

    def _to_board(self, step: int, method: str, *arguments: Any, **options: Any) -> None:
        if not self._room:
            return
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._folder), purge_step=self._purge)
            self._purge = None
        try:
            getattr(self._board, method)(*arguments, **options)
        except OSError as error:  # its thread is gone
            self._board = None
            self._no_room(step, error.strerror)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> Path:
        """Write RUN/pictures/step_…_name.png, also to TensorBoard; uint8 [height, width, 3 or 4].

        Raises OSError where it can't be written.
        """
        path = self.path.parent / "pictures" / f"step_{step:08d}_{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        self._to_board(step, "add_image", name, pixels, step, dataformats="HWC")
        return path

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """A histogram in TensorBoard; waits for the device."""
        self._to_board(step, "add_histogram", name, values.float().cpu(), step)

    def close(self) -> None:
        """Flush and close."""
        self._lines.close()
        if self._board:
            try:
                self._board.close()
            except OSError as error:
                log.warning("TensorBoard's last lines are lost (%s)", error.strerror)
        if self._wandb:
            self._wandb.finish()


def start_wandb(run: Path, project: str, settings: dict) -> Any:
    """Begin, or on resuming go on with, the run of this folder at Weights & Biases.

    Raises:
        UserError: the package is missing.
    """
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"log.wandb: found {project!r} but no module wandb, expected the package where it is "
            "asked for; install it with pip install wandb, or set log.wandb to null"
        ) from None
    name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
    return wandb.init(
        project=project, name=run.name, id=name, resume="allow", dir=str(run), config=settings
    )


def draw_curves(run: Path) -> Path:
    """Draw RUN/metrics.jsonl to RUN/curves.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(run / "metrics.jsonl")
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    panels = (
        ("loss (falls, then may rise: the targets sharpen)", ("loss",), "linear"),
        *LOWER_PANELS,
    )
    for axis, (title, names, scale) in zip(axes.flat, panels, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            marker = "." if len(points) < 30 else ""
            axis.plot(*zip(*points, strict=True) if points else ([], []), marker=marker, label=name)
        axis.set(title=title, xlabel="step", yscale=scale)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize="small")
        if scale == "linear" and title.split()[0] in ("std", "clips", "RankMe"):
            axis.set_ylim(bottom=0)
    figure.suptitle(str(run))
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
