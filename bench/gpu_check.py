"""Check that everything works on this GPU, and measure its speed, in under ten minutes:

    make gpu-check                            # or: python bench/gpu_check.py
    python bench/gpu_check.py --device cpu    # dry run of every part at tiny sizes

The parts: versions, the tests of the kernels, training steps on video files, steps of ViT-L/16,
ViT-H/16 and V-JEPA 2's ViT-L/16 against the baseline, and the kernel and decoding benchmarks. Each
part runs in its own processes on one GPU, under a time limit. A part that fails or lacks a package
does not stop the others. Writes report.md, and report.json to attach to an issue.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from common import write_json
from gpu.parts import parts
from gpu.report import as_json, headline, markdown
from gpu.run_part import Outcome, Part, run_part
from vjepa_fast.errors import UserError, exit_status

SECONDS = 590.0  # of the whole check
SLOWER = 10  # factor of a rehearsal's time limits, since CPUs are shared


def one_gpu(device: str) -> None:
    """Let parts see only the first visible GPU, or none; raises UserError if there is none."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if not torch.cuda.is_available():
        raise UserError(
            f"--device: found no GPU that torch {torch.__version__} can use, expected one; check "
            "nvidia-smi, or try a dry run with --device cpu"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.partition(",")[0]


def new_folder(asked: Path | None) -> Path:
    """An empty folder for the report; raises UserError if it is not empty."""
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = asked or Path("gpu_check") / now
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"--output: found {folder}, which is not empty, expected a new or empty folder; "
            "name another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def check(chosen: Sequence[Part], device: str, folder: Path, seconds: float) -> int:
    """Run the parts one by one, rewriting the report after each; 1 if any failed."""
    outcomes: list[Outcome] = []
    start = time.monotonic()
    for part in chosen:
        outcome = run_part(part, folder, seconds - (time.monotonic() - start))
        outcomes.append(outcome)
        why = f": {outcome.why}" if outcome.why else ""
        print(f"{outcome.title}: {outcome.status}, {outcome.seconds:.0f} s{why}", flush=True)
        so_far = time.monotonic() - start
        page = markdown(outcomes, device, so_far)
        (folder / "report.md").write_text(page, encoding="utf-8")
        write_json(folder / "report.json", as_json(outcomes, device, so_far))
    print(f"\n{page}\nwritten: {folder / 'report.md'} and report.json\n{headline(outcomes)}")
    return int(any(outcome.bad for outcome in outcomes))


def run(options: argparse.Namespace) -> int:
    """Run all parts on the device that the options name."""
    one_gpu(options.device)
    folder = new_folder(options.output)
    chosen, seconds = parts(options.device, folder), SECONDS
    if options.device == "cpu":
        chosen = [replace(part, limit=SLOWER * part.limit) for part in chosen]
        seconds *= SLOWER
    return check(chosen, options.device, folder, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 if a part failed or timed out; 2 for a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cuda (default), or cpu for a dry run",
    )
    parser.add_argument(
        "--output", type=Path, help="new or empty folder for the report (default: gpu_check/<time>)"
    )
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
