"""Show that communication hides behind computation, on a real link of a stated rate:

    python bench/overlap.py --json overlap.json

Two processes train on this machine, each in a network namespace of its own (this needs root). The
link between them is limited to rates at which a step's communication takes 0.5, 1 and 2 times its
computation, in fp32 and in bf16. A step is measured with overlap, and without: gradients reduced
after the backward pass, weights gathered before the step ends, as until 2026-11-30. Computation and
communication alone are measured in the same processes, in turn with the steps. Before that, losses
and gradient norms are compared with plain PyTorch loops, and both ways must end with the same bits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common import (
    CONFIGS,
    add_json_argument,
    check_json,
    count,
    describe,
    picture,
    spread,
    spread_text,
    write_json,
)
from scale.link import ADDRESSES, Link, two_namespaces
from vjepa_fast.commands.terminal import text_table
from vjepa_fast.errors import UserError, exit_status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATIOS = (0.5, 1.0, 2.0)  # of communication to computation
TASKS = ("computation", "communication", "overlapped", "apart")
PRECISIONS = "fp32", "bf16"
# Token counts of a clip are about those of configs/vith16.json, a third of its grid.
MODEL = (
    "data.num_frames=16",
    "model.patch_size=8",
    "model.encoder.width=192",
    "model.encoder.depth=8",
    "model.predictor.width=48",
    "model.predictor.depth=1",
    'masks.specs=[{"num_blocks": 8, "spatial_scale": [0.15, 0.15]}, '
    '{"num_blocks": 2, "spatial_scale": [0.7, 0.7]}]',
    "masks.truncate_group=2",
    "optim.loss_exponent=2.0",  # an L1 loss has jumps in its gradient, which rounding may cross
)


class Pair:
    """The two processes.

    Args:
        link: between them.
        clips: of each process and step.
        precision: "fp32" or "bf16".
    """

    def __init__(self, link: Link, clips: int, precision: str) -> None:
        batch = [f"optim.global_batch={2 * clips}", f"optim.micro_batch={clips}"]
        overrides = [*MODEL, *batch, f"precision={precision}"]
        program = [str(Path(__file__).parent / "scale" / "pair.py"), str(CONFIGS / "tiny.json")]
        common = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500", "WORLD_SIZE": "2"}
        common |= {"OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}
        self._processes = [
            link.start(
                rank,
                [sys.executable, *program, json.dumps(overrides)],
                common | {"RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        self.facts = self._answers()[0]

    def measure(self, task: str) -> float:
        """Seconds of a task in the process that takes longer."""
        for process in self._processes:
            print(task, file=process.stdin, flush=True)
        return max(self._answers())

    def close(self) -> None:
        """End both."""
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()

    def _answers(self) -> list:
        return [self._answer(process) for process in self._processes]

    def _answer(self, process: subprocess.Popen) -> object:
        for line in process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise UserError(
            f"a process: found that it ended with status {process.wait()}, expected an answer; see "
            "what it printed above"
        )


def measure(precision: str, options: argparse.Namespace) -> dict:
    """All times in seconds, by ratio and task.

    Raises:
        UserError: no permission, or the trainer differs from the plain loop.
    """
    with two_namespaces() as link:
        pair = Pair(link, options.clips, precision)
        try:
            if not pair.facts["difference"] <= pair.facts["limit"]:  # NaN is none that agrees
                raise UserError(
                    f"losses and gradient norms in {precision}: found a difference of "
                    f"{pair.facts['difference']:.1e} from the plain loop in fp32, expected at most "
                    f"{pair.facts['limit']:.1e}; nothing is timed"
                )
            before = link.sent()
            pair.measure("communication")
            sent = max(b - a for a, b in zip(before, link.sent(), strict=True))
            alone = float(np.median([pair.measure("computation") for _ in range(options.rounds)]))
            rows = []
            for ratio in RATIOS:
                rate = sent / (ratio * alone)
                link.limit(rate)
                times = {task: [] for task in TASKS}
                for _ in range(options.rounds):
                    for task in TASKS:
                        times[task].append(pair.measure(task))
                rows.append({"ratio": ratio, "bytes_per_second": rate, "seconds": times})
            return {"sent_bytes": sent, **pair.facts, "rows": rows}
        finally:
            pair.close()


def bounds(row: dict) -> dict[str, dict[str, float]]:
    """Of each task its seconds, and of both ways of training the time relative to the longer of
    computation and communication, round by round: "p20", "p50", "p80"."""
    seconds = {task: np.array(times) for task, times in row["seconds"].items()}
    longer = np.maximum(np.median(seconds["computation"]), np.median(seconds["communication"]))
    found = {task: spread(times) for task, times in seconds.items()}
    return found | {
        f"{way}, relative": spread(seconds[way] / longer) for way in ("overlapped", "apart")
    }


def text_of(result: dict) -> str:
    """The table of a precision."""
    header = ("link", "computation", "communication", "overlapped", "one after another")
    rows = [(*header, "overlapped / longer", "one after another / longer")]
    for row in result["rows"]:
        found = bounds(row)
        cells = [f"{8 * row['bytes_per_second'] / 1e6:.0f} Mbit/s"]
        cells += [spread_text(found[task], scale=1e3, digits=0, unit=" ms") for task in TASKS]
        cells += [
            spread_text(found[f"{way}, relative"], digits=2) for way in ("overlapped", "apart")
        ]
        rows.append(tuple(cells))
    return text_table(rows)


def draw(results: dict[str, dict], path: Path) -> None:
    """Step times beside their bound and the sum, a panel for each precision."""
    with picture(path, (10, 4), columns=len(results), grid="y") as (_, panels):
        for axes, (precision, result) in zip(panels, results.items(), strict=True):
            draw_panel(axes, precision, result)


def draw_panel(axes: Axes, precision: str, result: dict) -> None:
    """The rates of a precision."""
    for column, row in enumerate(result["rows"]):
        found = bounds(row)
        parts = [found[task]["p50"] for task in ("computation", "communication")]
        bars = {
            "longer of both": (max(parts), "#bdbdbd"),
            "step with overlap": (found["overlapped"]["p50"], "#3182bd"),
            "step, one after another": (found["apart"]["p50"], "#e6550d"),
            "sum of both": (sum(parts), "#737373"),
        }
        for index, (label, (seconds, color)) in enumerate(bars.items()):
            position = column + 0.2 * (index - 1.5)
            label = label if column == 0 else None
            axes.bar(position, 1e3 * seconds, 0.18, color=color, label=label)
    names = [f"{row['ratio']:g}" for row in result["rows"]]
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="communication / computation", ylabel="ms", title=f"a step in {precision}")
    axes.legend(frameon=False, fontsize=8)


def run(options: argparse.Namespace) -> int:
    """Measure, print, save."""
    check_json(options.json)
    machine = describe(torch.device("cpu"))
    print(f"{machine['cpu']}, {machine['cores']} cores, one thread a process")
    results = {}
    for precision in PRECISIONS:
        result = results[precision] = measure(precision, options)
        print(
            f"{result['parameters'] / 1e6:.1f} M parameters in {precision}, ZeRO stage 1; "
            f"{result['sent_bytes'] / 1e6:.1f} MB and {result['calls']} calls a step\n"
            f"largest difference from the plain loop in fp32: {result['difference']:.1e} "
            f"(at most {result['limit']:.1e})\n{text_of(result)}",
            flush=True,
        )
    if options.json:
        write_json(options.json, machine | {"precisions": results})
        draw(results, options.json.with_suffix(".png"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 2 for a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=count, default=3, help="of all measurements (default: 3)")
    parser.add_argument(
        "--clips", type=count, default=4, help="of each process and step (default: 4)"
    )
    add_json_argument(parser)
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
