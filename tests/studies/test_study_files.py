"""The studies of configs/studies: each can be read and planned, and the documentation lists it."""

import re
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.commands.evaluation.study import checked

FILES = sorted((REPOSITORY / "configs/studies").glob("*.json"))
LIST = (REPOSITORY / "docs/studies.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_has_runs_that_differ_and_the_documentation_counts_them(
    file: Path, tmp_path: Path
) -> None:
    name, study, runs = checked(file.stem, tmp_path)
    assert (name, len(runs)) == (file.stem, len(study.variants) * len(study.seeds))
    steps = sum(run.config.optim.steps for run in runs)
    probes = sum(len(run.probes) for run in runs)
    link = f"[`{name}`](../configs/studies/{name}.json)"
    row = f"| {link} | {study.title} | {len(runs)} | {steps:,} | {probes} |"
    assert row in LIST.splitlines()
    recipes = {run.config.model_dump_json(exclude={"output"}) for run in runs}
    assert len(recipes) == len(runs)


def test_the_documentation_names_the_studies_that_share_runs(tmp_path: Path) -> None:
    users: dict[str, list[str]] = {}
    for file in FILES:
        for run in checked(file.stem, tmp_path)[2]:
            own = run.config.model_dump_json(exclude={"output", "checkpoint"})
            if not run.needs:
                users.setdefault(own, []).append(file.stem)
    shared = {frozenset(names) for names in users.values() if len(set(names)) > 1}
    largest = [group for group in shared if not any(group < other for other in shared)]
    (sentence,) = re.findall(r"trained once: (.*?)\n[A-Z]", LIST, re.DOTALL)
    said = re.sub(r"\(.*?\)", "", sentence, flags=re.DOTALL)
    named = [
        {*re.findall(r"\w+", part)} & {file.stem for file in FILES}
        for part in re.split(r", (?:and )?of ", said)
    ]
    assert sorted(map(sorted, named)) == sorted(map(sorted, largest))
