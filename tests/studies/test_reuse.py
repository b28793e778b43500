"""Which finished runs of other studies a study takes, and which not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vjepa_fast.config import load_config
from vjepa_fast.errors import UserError
from vjepa_fast.studies.execute import run_study
from vjepa_fast.studies.plan import PlannedRun, plan_study
from vjepa_fast.studies.reuse import videos_of
from vjepa_fast.studies.study import Study
from vjepa_fast.training.batches import make_planner
from vjepa_fast.training.recipe import settings_of

Plan = Callable[..., PlannedRun]


@pytest.fixture
def plan(described: Callable[..., dict], tmp_path: Path) -> Plan:
    """Plans a study of a name; returns its last run, by default its only one."""

    def plan(name: str, **changes: object) -> PlannedRun:
        data = described(**{"seeds": [0], "variants": {"plain": []}} | changes)
        return plan_study(name, Study.model_validate(data), tmp_path / "runs")[-1]

    return plan


def finish(run: PlannedRun, **others: object) -> PlannedRun:
    """Write what a finished run leaves, as far as a study looks at it."""
    state = {"config": settings_of(run.config), "videos": videos_of(run.config)} | others
    for probe in run.probes:
        probe.checkpoint.mkdir(parents=True, exist_ok=True)
        (probe.checkpoint / "state.json").write_text(json.dumps(state))
    return run


def test_the_same_finished_run_is_taken_and_probed_where_it_is(plan: Plan) -> None:
    first = plan("first")
    assert plan("second").folder == plan("second").home != first.home  # not finished
    finish(first)
    second = plan("second", variants={"other": ["checkpoint.every=3"]})
    assert (second.folder, second.is_done) == (first.home, True)
    assert second.probes[0].checkpoint == first.probes[0].checkpoint
    # Its probes are its own: both studies may run at the same time.
    assert second.probes[0].output == second.home / "probes/attentive_4"
    assert second.home != first.home and not second.home.exists()
    shutil.rmtree(first.home)
    assert plan("second").folder == plan("second").home
    # Removed while the study runs, it is not trained where another study would look for it.
    (failed,) = run_study([second], 1, lambda *_: None)
    assert failed.startswith(f"{first.home}: found that this run was removed, expected it to stay")
    assert not first.home.exists()


def test_scores_of_another_run_are_not_its_own(plan: Plan) -> None:
    """A variant whose settings were edited after it was probed, and that takes another run now."""
    for settings in ([], ["objective=pixels"]):
        finish(plan("pixels" if settings else "features", variants={"plain": settings}))
    (probe,) = plan("second").probes
    probe.output.mkdir(parents=True)
    (probe.output / "probe.json").write_text(json.dumps({"step": 4}))
    (probe.output / "options.json").write_text(json.dumps(probe.asked))
    assert plan("second").probes[0].is_done
    (edited,) = plan("second", variants={"plain": ["objective=pixels"]}).probes
    assert (edited.output, edited.options) == (probe.output, probe.options)
    assert not edited.is_done


def test_a_run_that_was_begun_is_taken_where_it_is_finished(plan: Plan) -> None:
    first = finish(plan("first"))
    begun = plan("second", variants={"plain": []}).home / "checkpoints/step_00000002"
    begun.mkdir(parents=True)
    assert plan("second").folder == first.home


@pytest.mark.parametrize(
    "settings",
    [
        ["optim.lr=0.01"],
        ["optim.steps=5"],
        ["compile=true"],
        ["optim.micro_batch=2"],
        ["log.collapse_every=3"],
        ["data.crop_size=32"],
    ],
    ids=str,
)
def test_another_run_is_not(plan: Plan, settings: list[str]) -> None:
    finish(plan("first"))
    second = plan("second", variants={"plain": settings})
    assert second.folder == second.home


def test_nor_is_one_of_its_own_study(plan: Plan) -> None:
    finish(plan("first"))
    again = plan("first", variants={"again": []})
    assert again.folder == again.home


def test_nor_is_one_with_another_seed(plan: Plan) -> None:
    finish(plan("first"))
    second = plan("second", seeds=[1])
    assert second.folder == second.home


def test_every_checkpoint_that_is_probed_has_to_be_there(plan: Plan) -> None:
    first = finish(plan("first"))
    second = plan("second", probe_every=2)
    assert second.folder == second.home
    finish(second)
    assert len(second.probes) == 2
    shutil.rmtree(first.home)
    assert plan("third").folder == second.home


def test_a_run_on_other_videos_is_neither_taken_nor_kept(
    plan: Plan, small_config: Callable[..., dict], tmp_path: Path
) -> None:
    manifest = tmp_path / "some.csv"
    rows = Path(small_config()["data"]["manifests"][0]).read_text().splitlines(keepends=True)
    root = Path(small_config()["data"]["manifests"][0]).parent
    for file in (row.split(",")[0] for row in rows[1:]):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).symlink_to(root / file)
    manifest.write_text("".join(rows))
    videos = [f"data.manifests={json.dumps([str(manifest)])}"]
    first = finish(plan("first", set=videos))
    assert videos_of(first.config) is not None
    assert plan("second", set=videos).folder == first.home
    manifest.write_text("".join(rows[:-1]))
    second = plan("second", set=videos)
    assert second.folder == second.home
    with pytest.raises(UserError, match=r"on other videos than data\.manifests list now, expected"):
        plan("first", set=videos)
    manifest.unlink()  # its page can still be written
    assert plan("first", set=videos).is_done
    assert plan("second", set=videos).folder == second.home


def test_a_run_that_starts_from_another_is_never_taken(plan: Plan) -> None:
    frozen = {"pixels": ["objective=pixels"], "frozen": ["teacher.mode=frozen"]}
    frozen["frozen"].append("teacher.checkpoint={pixels}")
    pixels = finish(plan("first", variants={"pixels": frozen["pixels"]}))
    second = plan("second", variants=frozen)
    assert second.needs == (second.home.parents[1] / "pixels/seed0",)
    assert second.config.teacher.checkpoint == str(pixels.home)
    finish(second)
    third = plan("third", variants=frozen)
    assert (third.config.teacher, third.folder) == (second.config.teacher, third.home)


def test_a_checkpoint_of_an_earlier_version_counts(plan: Plan) -> None:
    first = plan("first")
    saved = settings_of(first.config)
    del saved["objective"]  # features, when there was nothing else
    finish(first, config=saved)
    assert plan("second").folder == first.home


@pytest.mark.parametrize("state", ["[]", "3", "{", '{"config": null}', '{"config": {}}'])
def test_what_is_no_run_is_passed_over(plan: Plan, state: str) -> None:
    odd = plan("a", variants={"odd": []}).probes[0].checkpoint
    first = finish(plan("first"))
    for text in (state, json.dumps({"config": {"classifier": {}}})):
        odd.mkdir(parents=True, exist_ok=True)
        (odd / "state.json").write_text(text)
        assert plan("second").folder == first.home


def test_the_hash_is_that_of_the_run(small_config: Callable[..., dict], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(small_config()))
    config = load_config(file, [])
    assert videos_of(config) == make_planner(config).digest
    assert videos_of(load_config(file, ['data.manifests=["no/such.csv"]'])) is None
