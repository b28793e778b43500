"""Studies: what a file may say, what is run, what is written, and going on after a stop."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.studies.conftest import PROBE
from vjepa_fast.cli import main
from vjepa_fast.errors import UserError
from vjepa_fast.studies.execute import Programs, run_study
from vjepa_fast.studies.page import results_table, write_page
from vjepa_fast.studies.plan import PlannedRun, plan_study
from vjepa_fast.studies.results import Cost, Score, cost_of, flop_unit, spread
from vjepa_fast.studies.study import Study, read_study
from vjepa_fast.training.checkpoint.format import Checkpoint


def planned(data: dict, runs: Path) -> list[PlannedRun]:
    return plan_study("some", Study.model_validate(data), runs)


def test_runs_are_planned_with_what_they_need_before_them(
    described: Callable[..., dict], tmp_path: Path
) -> None:
    frozen = ["teacher.mode=frozen", "teacher.checkpoint={pixels}"]
    variants = {"frozen": frozen, "pixels": ["objective=pixels"]}
    data = described(variants=variants, probe_every=2, baselines=["random"])
    runs = planned(data, tmp_path / "runs")
    assert [(r.variant, r.seed) for r in runs] == [
        ("pixels", 0),
        ("pixels", 1),
        ("frozen", 0),
        ("frozen", 1),
    ]
    last = runs[-1]
    assert last.needs == (tmp_path / "runs/some/pixels/seed1",)
    assert last.config.teacher.checkpoint == str(last.needs[0])
    assert (last.config.seed, last.config.log.every) == (1, 2)
    assert last.config.checkpoint.every == last.config.checkpoint.keep_every == 2
    assert [p.step for p in last.probes] == [2, 4]
    assert last.probes[0].checkpoint == last.folder / "checkpoints/step_00000002"
    # Baselines are probed once, beside the first variant's last checkpoints.
    with_baselines = [(r.variant, p.step) for r in runs for p in r.probes if "random" in p.options]
    assert with_baselines == [("frozen", 4)] * 2
    assert not any(r.is_done or p.is_done for r in runs for p in r.probes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"variant": {}}, "variant: found an unknown key"),
        ({"variants": {}}, "variants: found {}"),
        ({"variants": {"a b": []}}, "variants: found the name 'a b', which becomes a folder's"),
        ({"variants": {"..": []}}, "variants: found the name '..', which becomes a folder's"),
        ({"variants": {"a": ["x={b}"]}}, "variants: found {b} in a, expected another variant's"),
        ({"variants": {"a": ["x={a}"]}}, "variants: found {a} in a, expected another variant's"),
        (
            {"variants": {"a": ["x={b}"], "b": ["x={a}"]}},
            "variants: found {a} in b, expected another variant's name that does not need b",
        ),
        (
            {"axis": {"name": "x", "values": {"plain": 1.0}}},
            "axis.values: found plain, expected a number for each of plain, pixels",
        ),
        ({"seeds": []}, "seeds: found []"),
    ],
)
def test_mistakes_in_a_study_are_one_sentence(
    described: Callable[..., dict], tmp_path: Path, changes: dict, found: str
) -> None:
    file = tmp_path / "some.json"
    file.write_text(json.dumps(described(**changes)))
    with pytest.raises(UserError) as caught:
        read_study(str(file))
    assert str(caught.value).startswith(found)


def test_settings_that_the_config_refuses_name_the_variant(
    described: Callable[..., dict], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^variants\.fast: optim\.lr: found -1"):
        planned(described(variants={"fast": ["optim.lr=-1"]}), tmp_path)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (
            ["--labels", "digit", "--epoch", "x"],
            "argument --epochs: found 'x', expected a positive",
        ),
        (["--labels", "digit", "--flip"], "--flip: found it without --augment"),
        (["--labels", "digit", "--output=x"], "found --output=x, which the study sets"),
        ([], "the following arguments are required: --labels"),
    ],
)
def test_mistakes_of_a_probe_are_found_before_anything_runs(
    described: Callable[..., dict],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    options: list[str],
    found: str,
) -> None:
    file = tmp_path / "some.json"
    file.write_text(json.dumps(described(probes={"mine": options})))
    assert main(["study", str(file), "--runs", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith(f"error: probes.mine: {found}")
    assert not (tmp_path / "runs").exists()


def test_an_unknown_study_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    assert main(["study", "no_such_study"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: STUDY: found no_such_study, but no configs/studies/no_such")


def a_score(variant: str, seed: int, value: float, **others: object) -> Score:
    own = {"step": 4, "probe": "attentive", "label": "digit", "share": 0.1}
    own |= {"features": "pretrained encoder", "measure": "top1"}
    return Score(variant=variant, seed=seed, value=value, **(own | others))


def test_the_table_has_mean_and_deviation_over_seeds(
    described: Callable[..., dict], tmp_path: Path
) -> None:
    study = Study.model_validate(described())
    scores = [a_score("plain", seed, value) for seed, value in enumerate((0.25, 0.5, 0.75))]
    scores += [a_score("plain", 0, 0.9, step=2), a_score("pixels", 0, 0.5)]
    scores += [a_score("plain", 0, 0.125, features="random encoder")]
    costs = [
        Cost("plain", seed, 4000, 2e15, 1.0, 7.0, std, std < 0.1)
        for seed, std in ((0, 0.05), (1, 0.25))
    ]
    head, _, plain, pixels, random = results_table(study, scores, costs)
    assert head.startswith("| variant | digit, 10 % |") and head.endswith(" | clips | PFLOP |")
    assert plain == "| plain | 0.500 ± 0.250 | 7.0 | 0.15 (1 of 2 collapsed) | 4,000 | 2 |"
    assert pixels.startswith("| pixels | 0.500 |")  # of one seed there is no deviation
    assert random.startswith("| baseline: random encoder | 0.125 |")

    page = write_page("some", study, scores, costs, [], ["runs/x: failed"], tmp_path)
    text = page.read_text()
    assert plain in text and "Not done: runs/x: failed" in text and "![A title](some.png)" in text
    kept = json.loads((tmp_path / "some.json").read_text())
    assert [Score(**row) for row in kept["scores"]] == scores
    assert (tmp_path / "some.png").stat().st_size > 1000
    with pytest.raises(UserError, match=r"^STUDY: found no score of some, expected"):
        write_page("some", study, [], [], [], ["runs/x: failed"], tmp_path)


@pytest.mark.parametrize("kind", ["axis", "progress", "shares", "bars"])
def test_every_kind_of_picture(described: Callable[..., dict], tmp_path: Path, kind: str) -> None:
    changes = {"axis": {"name": "x", "values": {"plain": 1.0, "pixels": 10.0}, "log": True}}
    changes = {"axis": changes, "progress": {"probe_every": 2}, "shares": {}, "bars": {}}[kind]
    study = Study.model_validate(described(**changes))
    scores = [
        a_score(variant, seed, 0.1 * step, step=step, share=share, label=label)
        for variant in study.variants
        for seed in (0, 1)
        for step in ((2, 4) if kind == "progress" else (4,))
        for share in ((0.1, 1.0) if kind == "shares" else (0.1,))
        for label in ("digit", "direction", "motion")  # in two columns
    ]
    costs = [Cost(variant, 0, 4000, 2e15, math.nan, 7.0, 0.3, False) for variant in study.variants]
    write_page("some", study, scores, costs, [], [], tmp_path)
    assert (tmp_path / "some.png").stat().st_size > 1000


def test_a_failure_is_not_explained_by_an_earlier_one(tmp_path: Path) -> None:
    log = tmp_path / "study.log"
    log.write_text("error: an earlier one\n")
    with pytest.raises(UserError, match=r"^found exit status 1 \(.*no_such_module.*study\.log\]$"):
        Programs(1).run(["no_such_module"], log)


@pytest.mark.parametrize(("variant", "judged"), [("plain", True), ("pixels", False)])
def test_a_run_that_ends_collapsed_is_named_unless_it_predicts_pixels(
    described: Callable[..., dict], tmp_path: Path, variant: str, judged: bool
) -> None:
    run = next(r for r in planned(described(), tmp_path / "runs") if r.variant == variant)
    run.folder.mkdir(parents=True)
    metrics = run.folder / "metrics.jsonl"
    for last, collapsed in ((0.05, judged), (0.15, False)):
        rows = [{"step": 0, "std_across_clips": 0.2}, {"step": 2, "std_across_clips": last}]
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        cost = cost_of(run, 1e6)
        assert (cost.collapsed, cost.std_across_clips) == (collapsed, last)
        clips = 4 * run.config.optim.global_batch
        assert (cost.clips, cost.flops) == (clips, clips * 1e6)
        assert math.isnan(cost.rank_me) and math.isnan(cost.hours)


def test_the_unit_of_flops_suits_the_dearest_run() -> None:
    def unit(*flops: float) -> str:
        return flop_unit([Cost("a", 0, 1, f, 1.0, 1.0, 1.0, False) for f in flops])[0]

    assert unit(3e12, 2e9) == "TFLOP" and unit(1e15) == "PFLOP" and unit(9e14) == "TFLOP"
    assert unit(5e22) == "EFLOP" and unit(12.0) == unit() == "MFLOP"


def test_videos_that_a_probe_needs_are_missed_before_anything_runs(
    described: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "some.json"
    absent = str(tmp_path / "absent.csv")
    file.write_text(json.dumps(described(probes={"other": [*PROBE, "--train", absent]})))
    assert main(["study", str(file), "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: probes.other: --train: found no file {absent}, expected")
    assert not (tmp_path / "runs").exists()


def test_spread() -> None:
    assert str(spread([0.5])) == "0.500"
    assert str(spread([0.0, 1.0])) == "0.500 ± 0.707"


@pytest.mark.slow
def test_a_study_runs_fails_in_words_and_goes_on(
    described: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture, demo: Path
) -> None:
    videos = tmp_path / "videos"
    videos.symlink_to(demo)
    probe = [*PROBE, "--train", str(videos / "train.csv")]
    data = described(seeds=[0], baselines=["random"], probes={"attentive": probe})
    data["variants"]["broken"] = ['data.manifests=["no/such.csv"]']
    data["variants"]["after"] = ["teacher.mode=frozen", "teacher.checkpoint={broken}"]
    file, runs, output = tmp_path / "some.json", tmp_path / "runs", tmp_path / "pages"
    file.write_text(json.dumps(data))
    command = ["study", str(file), "--runs", str(runs), "--output", str(output)]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "[2/4] pixels, seed 0" in printed or "[1/4] pixels, seed 0" in printed
    assert "no/such.csv" in printed
    text = (output / "some.md").read_text()
    assert text.count("Not done:") == 2 and "which failed" in text
    assert "| pixels | " in text and "| baseline: random encoder | " in text
    assert Checkpoint.find(runs / "some/pixels/seed0").result_weights == "master"

    # Again: nothing of what is done is done again, nor are its videos needed.
    videos.unlink()
    del data["variants"]["broken"], data["variants"]["after"]
    file.write_text(json.dumps(data))
    logs = {log: log.read_bytes() for log in runs.glob("some/p*/**/study.log")}
    assert len(logs) == 4
    assert main(command) == 0
    assert {log: log.read_bytes() for log in logs} == logs

    # Nor is a run trained again by another study that has the same one.
    videos.symlink_to(demo)
    file.with_name("other.json").write_text(json.dumps(data))
    assert main(["study", str(file.with_name("other.json")), *command[2:]]) == 0
    assert f"plain, seed 0: the same run as {runs}/some/plain/seed0" in capsys.readouterr().out
    assert {log: log.read_bytes() for log in logs} == logs
    assert [p.name for p in (runs / "other/plain/seed0").iterdir()] == ["probes"]
    assert "2 of 2 runs are those of some." in (output / "other.md").read_text()
    tables = [(output / page).read_text().partition("![")[0] for page in ("some.md", "other.md")]
    assert tables[0] == tables[1]

    # Other options are probed, too; a finished run of another recipe is refused.
    data["probes"]["attentive"] = [*PROBE, "--seed", "1"]
    file.write_text(json.dumps(data))
    before = {log: log.read_bytes() for log in logs}
    assert main(command) == 0
    probed = [log for log in before if log.read_bytes() != before[log]]
    assert probed == [log for log in logs if log.parent.name == "attentive_4"]
    data["set"] = ["optim.lr=1e-2"]
    file.write_text(json.dumps(data))
    assert main(command) == 2
    assert "found a finished run of another recipe (optim.lr was 0.001" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_runs_and_says_how_far_it_came(
    described: Callable[..., dict], tmp_path: Path, number: int
) -> None:
    runs = planned(described(seeds=[0], set=["optim.steps=100000"]), tmp_path / "runs")
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vjepa_fast.studies.execute.wait", lambda *_, **__: signal.raise_signal(number)
        )
        with pytest.raises(KeyboardInterrupt, match=r"^after 0 of 2 runs$"):
            run_study(runs, 2, lambda *_: None)
    assert signal.getsignal(number) is before
