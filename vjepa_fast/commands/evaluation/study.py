"""`vjepa-fast study`: runs a grid of runs and probes, and writes a page of results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vjepa_fast.commands.terminal import path_argument, positive_int
from vjepa_fast.errors import UserError

if TYPE_CHECKING:
    from vjepa_fast.studies.plan import PlannedRun
    from vjepa_fast.studies.study import Study

HELP = "train and probe the runs of a study, and write its page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "study", metavar="STUDY", help="name of a file in configs/studies/, or a JSON file"
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        default=Path("docs/studies"),
        help="folder for the page, its picture and its figures (default: docs/studies)",
    )
    parser.add_argument(
        "--runs",
        type=path_argument,
        default=Path("runs/studies"),
        help="folder for the runs (default: runs/studies)",
    )
    parser.add_argument("--jobs", type=positive_int, help="runs at a time (default: one per core)")


def run(options: argparse.Namespace) -> int:
    """Do what is not done yet, write the page, and print its table.

    Returns:
        1 where runs failed; the page has the others.

    Raises:
        UserError: a mistake in the study.
    """
    import os

    from vjepa_fast.commands.cost_of_config import mean_clip_flops
    from vjepa_fast.studies.execute import run_study
    from vjepa_fast.studies.page import results_table, write_page
    from vjepa_fast.studies.results import cost_of, scores_of

    name, study, runs = checked(options.study, options.runs)
    # Of a study that is done the page can be written again without its videos.
    for probe in dict.fromkeys(p.name for run in runs for p in run.probes if not p.is_done):
        _check_manifest(probe, study.probes[probe])
    print(f"{name}: {len(runs)} runs of {len(study.variants)} variants, in {options.runs / name}")
    if trained := sum(run.is_done for run in runs):  # all are looked at, before any starts
        print(f"{trained} of them are trained")
    for run in runs:
        if run.folder != run.home:
            print(f"{run.variant}, seed {run.seed}: the same run as {run.folder}")
    jobs = options.jobs or len(os.sched_getaffinity(0))
    failed = run_study(
        runs, jobs, lambda text, done, total: print(f"[{done}/{total}] {text}", flush=True)
    )
    finished = [run for run in runs if run.is_done]
    scores = scores_of(finished)
    # Once a variant, as it takes long: seeds only change what is drawn.
    flops: dict[str, float] = {}
    for run in finished:
        flops[run.variant] = flops.get(run.variant) or mean_clip_flops(run.config)
    costs = [cost_of(run, flops[run.variant]) for run in finished]
    folders = [run.folder for run in finished]
    page = write_page(name, study, scores, costs, folders, failed, options.output)
    print("\n".join(results_table(study, scores, costs)))
    print(f"written to {page}")
    return 1 if failed else 0


def checked(study: str, folder: Path) -> tuple[str, Study, list[PlannedRun]]:
    """Read and plan a study.

    Args:
        study: its name or its file.
        folder: of all studies' runs.

    Returns:
        name, study and runs.

    Raises:
        UserError: a mistake in the study, in a config or in the options of a probe; a run of
            another recipe where one of the study should be.
    """
    from vjepa_fast.studies.plan import plan_study
    from vjepa_fast.studies.study import read_study

    name, found = read_study(study)
    baselines = ["--baselines", ",".join(found.baselines)] if found.baselines else []
    for probe, own in found.probes.items():
        _check_probe(probe, [*own, *baselines])
    return name, found, plan_study(name, found, folder)


def _check_manifest(name: str, options: Sequence[str]) -> None:
    """Raise UserError for videos whose absence would end a probe after its run was trained."""
    from vjepa_fast.commands.evaluation.probe import parsed

    found = parsed(["--checkpoint", "planned", *options])
    for option, path in (("--train", found.train), ("--test", found.test)):
        if path and not path.is_file():
            raise UserError(
                f"probes.{name}: {option}: found no file {path}, expected a manifest; write it "
                "(docs/studies.md says how for the demo data), or name another"
            )


def _check_probe(name: str, options: Sequence[str]) -> None:
    """Raise UserError for a mistake that would end a probe after its run was trained."""
    from vjepa_fast.commands.evaluation.probe import parsed

    where = f"probes.{name}"
    for option in options:
        if option.partition("=")[0] in ("--checkpoint", "--output"):
            raise UserError(
                f"{where}: found {option}, which the study sets, expected other options; remove it"
            )
    try:
        parsed(["--checkpoint", "planned", *options])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
