"""A checkout of the public trainer is timed beside ours; what it lacks is a one-sentence error."""

from __future__ import annotations

import importlib
import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.bench.fake_peer import PARTS, SECOND_PARTS, make_checkout
from tests.helpers.paths import REPOSITORY
from tests.helpers.trainers import SECOND
from vjepa_fast.errors import UserError
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.schedules import make_schedules

BENCH = REPOSITORY / "bench"
CLIPS = 4


@pytest.fixture
def bench(monkeypatch):
    """The modules of bench/, with a small GEMM and a small copy."""
    monkeypatch.syspath_prepend(str(BENCH))
    names = {"throughput": "throughput", "clock": "step.clock", "checkout": "peer.checkout"}
    names |= {"report": "step.report", "trainers": "step.trainers", "peer_step": "peer.step"}
    names |= {"generations": "peer.generations"}
    found = SimpleNamespace(**{key: importlib.import_module(name) for key, name in names.items()})
    monkeypatch.setattr(found.clock, "GEMM_SIZE", {"cpu": 64})
    monkeypatch.setattr(found.clock, "COPY_BYTES", {"cpu": 1 << 20})
    return found


@pytest.fixture
def config_file(small_config, tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(small_config()))
    return path


@pytest.fixture
def config(bench, config_file):
    return bench.trainers.read_config(config_file, CLIPS, False, None, None)


@pytest.fixture
def second_file(small_config, tmp_path):
    """A config of the second generation."""
    path = tmp_path / "second.json"
    path.write_text(json.dumps(small_config(model=SECOND)))
    return path


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "jepa")


def run(bench, config_file, *arguments):
    common = ["--config", str(config_file), "--batch", str(CLIPS), "--steps", "3"]
    return bench.throughput.main([*common, *map(str, arguments)])


def test_a_third_row(bench, config_file, checkout, tmp_path, capsys):
    (checkout / "src" / "models" / "predictor.py").open("a").write("print('chatter')\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    output = tmp_path / "out.json"
    assert run(bench, config_file, "--peer", checkout, "--json", output) == 0
    result = json.loads(output.read_text())
    peer, row = result["peer"], result["sides"]["peer"]
    assert list(result["sides"]) == ["baseline", "ours", "peer"]
    assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
    assert row["clips_per_s"] == pytest.approx(1e3 * CLIPS / row["ms"]["p50"])
    assert row["wait_ms"]["p50"] == 0
    # a convolution of 2 x 8 x 8 pixels to width 24 and a norm; linears 24 → 12 → 24, mask tokens
    assert peer["parameters"] == {
        "encoder": 24 * (3 * 128 + 1) + 2 * 24,
        "predictor": 12 * 25 + 24 * 13 + 2 * 12,
    }
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert peer["commit"] and commit.stdout.startswith(peer["commit"])
    for spread in (peer["ratio_spread"], peer["baseline_spread"]):
        assert 0 < spread["p20"] <= spread["p50"] <= spread["p80"]
    printed = capsys.readouterr().out
    own, other = (sum(peer[key].values()) for key in ("parameters_of_ours", "parameters"))
    assert f"peer ({other:,} parameters, ours {own:,})" in printed
    assert f"commit {peer['commit']}" in printed and "normalized before the timed step" in printed
    assert str(checkout) not in output.read_text()


def test_as_many_weights_are_said(bench):
    times = {"ours": np.array([1.0, 2.0]), "peer": np.array([2.0, 4.0]), "baseline": np.ones(2)}
    weights = {"encoder": 2000, "predictor": 7}
    row = bench.report.peer_fields(times, "a/b", None, weights, dict(weights))
    assert row["ratio_spread"] == {"p20": 2.0, "p50": 2.0, "p80": 2.0}
    assert row["baseline_spread"]["p50"] == pytest.approx(0.375)
    spread = {"p20": 1.0, "p50": 1.0, "p80": 1.0}
    side = {"ms": spread, "clips_per_s": 1.0, "fraction_of_gemm": spread, "wait_ms": spread}
    side |= {"mfu": None, "step_memory_bytes": None}
    text = bench.report.steps_text({"sides": {"peer": side}, "ratio_spread": spread, "peer": row})
    assert "peer (2,007 parameters, as ours)" in text and "peer: a/b, commit unknown" in text


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--peer", "nowhere"], "found no src/models/vision_transformer.py in it, expected a"),
        (["--peer", "jepa", "--data", "demo"], "--peer: found together with --data demo"),
        (["--peer", "jepa", "--compile"], "--peer: found together with compile"),
    ],
)
def test_a_mistake_is_a_sentence(
    bench, config_file, checkout, demo, monkeypatch, capsys, arguments, found
):
    manifests = demo / "train.csv", demo / "test.csv"
    monkeypatch.setattr(bench.trainers, "make_demo", lambda folder, **_: manifests)
    monkeypatch.chdir(checkout.parent)
    assert run(bench, config_file, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --peer: ") and found in error and error.count("\n") == 1


@pytest.mark.slow  # starts a process; the third row's test does so for the first generation
def test_a_checkout_of_the_second_generation(bench, second_file, tmp_path, capsys):
    checkout, output = make_checkout(tmp_path / "vjepa2", second=True), tmp_path / "out.json"
    assert run(bench, second_file, "--peer", checkout, "--json", output) == 0
    peer = json.loads(output.read_text())["peer"]
    assert peer["repository"] == "facebookresearch/vjepa2"
    assert peer["parameters"]["predictor"] == 12 * 25 + 24 * 13 + 12  # one mask token
    assert "peer: facebookresearch/vjepa2, commit unknown" in capsys.readouterr().out


@pytest.mark.parametrize("second", [False, True])
def test_config_and_checkout_are_of_one_generation(
    bench, config_file, second_file, tmp_path, capsys, second
):
    checkout = make_checkout(tmp_path / "checkout", second=not second)
    assert run(bench, second_file if second else config_file, "--peer", checkout) == 2
    first, other = (
        f'model.positions "{positions}" and model.mask_tokens "{tokens}"'
        for positions, tokens in (("sincos", "per_spec"), ("rope_tiled", "shared"))
    )
    found, expected = (other, first) if second else (first, other)
    name = "jepa" if second else "vjepa2"
    assert capsys.readouterr().err == (
        f"error: --peer: found a config with {found}, expected {expected}, which "
        f"facebookresearch/{name} in {checkout} trains; name a checkout or a config of the same "
        "generation\n"
    )


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)  # each starts a process


@pytest.mark.parametrize(
    ("file", "old", "new", "found"),
    [
        (
            "src/parts.py",
            "import torch\n",
            "import torch, not_there.at_all\n",
            "no module not_there",
        ),
        slow(
            "src/masks/utils.py",
            "import apply_masks",
            "import torch",
            "no apply_masks in src.masks",
        ),
        slow("src/masks/utils.py", "src.parts", "src.tensors", "no module src.tensors in it"),
        slow("src/parts.py", "target.shape[1]", "1", "found predictions of shapes [[4, 1, 24]"),
        slow("src/parts.py", "self.norm = ", "self.norm = 1 / 0 *", "ended with the error above"),
    ],
    ids=["package", "name", "module", "shapes", "crash"],
)
def test_what_a_checkout_lacks(bench, config, checkout, capfd, file, old, new, found):
    text = (checkout / file).read_text()
    assert old in text
    (checkout / file).write_text(text.replace(old, new))
    with pytest.raises(UserError) as error:
        bench.checkout.Peer(checkout, config)
    assert str(error.value).startswith("--peer: found ") and found in str(error.value)
    assert ("ZeroDivisionError" in capfd.readouterr().err) == ("error above" in found)


@pytest.fixture(params=["first", "second"])
def step(request, bench, config, second_file):
    """The peer's step in this process, around the stand-in's networks."""
    parts: dict = {}
    generation = getattr(bench.generations, request.param.upper())
    if request.param == "second":
        config = bench.trainers.read_config(second_file, CLIPS, False, None, None)
    exec(SECOND_PARTS if request.param == "second" else PARTS, parts)
    names = SimpleNamespace(**parts)
    return bench.peer_step.Step(names, generation, config, torch.device("cpu"))


def test_masks_are_those_of_the_other_sides(bench, config, step):
    init_process_group()
    plain = bench.trainers.Baseline(config, torch.device("cpu"))
    for number in (0, 5):
        for own, other in zip(step.masks(number), plain.prepare(number), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_a_step_trains_and_averages(config, step):
    teacher = [p.clone() for p in step.teacher.parameters()]
    before = next(step.encoder.parameters()).clone()
    losses = [step(0, step.masks(0))]
    momentum = make_schedules(config).momentum(0)
    moved = zip(step.teacher.parameters(), teacher, step.encoder.parameters(), strict=True)
    for new, old, weight in moved:
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * weight)
    assert any(
        not torch.equal(a, b) for a, b in zip(before, step.encoder.parameters(), strict=True)
    )
    losses += [step(number, step.masks(0)) for number in range(1, 8)]
    # the four synthetic videos come again after four steps
    assert all(later < first for first, later in zip(losses[:4], losses[4:], strict=True))
