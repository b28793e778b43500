"""What all forms of an export share: nothing half-written, one sentence for a mistake, a card."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.exchange.runs import FIRST, SECOND, config_of, write_run
from vjepa_fast.cli import main
from vjepa_fast.config import parse_config
from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.form import write_safetensors
from vjepa_fast.exchange.export.run import export_run, write_checked
from vjepa_fast.exchange.export.safetensors_form import safetensors_form
from vjepa_fast.exchange.export.source import open_source
from vjepa_fast.exchange.new_folder import write_new_folder
from vjepa_fast.training.batches import make_planner
from vjepa_fast.weights.open_file import open_weights

TRUE_ROTATION = SECOND | {"positions": "rope"}


def visible(folder):
    """Everything in a folder."""
    return sorted(path.name for path in folder.iterdir())


def refused(tmp_path, run, form, output=None, **others):
    """The sentence of an export that is refused, and leaves nothing."""
    output = output or tmp_path / "out"
    before = visible(tmp_path)
    with pytest.raises(UserError) as caught:
        export_run(run, form, output, **others)
    assert visible(tmp_path) == before
    sentence = str(caught.value)
    assert "\n" not in sentence and ". " not in sentence
    return sentence


@pytest.mark.parametrize("model", [FIRST, SECOND, TRUE_ROTATION], ids=["first", "second", "rope"])
def test_safetensors_hold_the_encoder_and_its_config(model, tmp_path):
    run = write_run(tmp_path / "run", model)
    done = export_run(run, "safetensors", tmp_path / "out")
    assert visible(tmp_path / "out") == ["README.md", "model.safetensors"]
    assert done.difference == 0
    file = tmp_path / "out" / "model.safetensors"
    expected = open_source(run).checkpoint.weights("encoder", "teacher")
    found = load_file(file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["vjepa_fast"])
    config = open_source(run).checkpoint.state["config"]
    assert header == {
        "format": 1,
        "generation": 1 if model is FIRST else 2,
        "model": config["model"],
        "num_frames": 8,
        "crop_size": 24,
        "pace": {"frame_step": 4},
        "network": "target_encoder",
        "step": 40,
    }


def test_the_size_is_known_before(tmp_path):
    source = open_source(write_run(tmp_path / "run", FIRST))
    form = safetensors_form(source)
    write_checked(form, source, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == form.size


def test_of_a_frozen_target_the_trained_encoder_is_exported(tmp_path, capsys):
    teacher = {"mode": "frozen", "checkpoint": "elsewhere"}
    run = write_run(tmp_path / "run", FIRST, teacher=teacher)
    assert main(["export", str(run), "--to", "safetensors", "--output", str(tmp_path / "out")]) == 0
    assert "network: encoder, step 40 of run" in capsys.readouterr().out
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = open_source(run).checkpoint.weights("encoder", "master")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Exported network: the trained encoder." in card
    assert "Target encoder: frozen." in card


@pytest.mark.parametrize(
    "form", ["safetensors", pytest.param("transformers", marks=pytest.mark.slow)]
)
def test_the_trained_encoder_can_be_chosen(form, tmp_path, capsys):
    run = write_run(tmp_path / "run", SECOND)
    probe = {"step": 40, "accuracy": {"digit": {"pretrained encoder": 0.75}}}
    (run / "probe.json").write_text(json.dumps(probe))
    command = ["export", str(run), "--to", form, "--network", "encoder"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "network: encoder, step 40 of run" in capsys.readouterr().out
    checkpoint = open_source(run).checkpoint
    found = open_weights(tmp_path / "out").state("encoder")
    assert all(torch.equal(found[n], w) for n, w in checkpoint.weights("encoder", "master").items())
    assert not torch.equal(
        found["norm.weight"], checkpoint.weights("encoder", "teacher")["norm.weight"]
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Exported network: the trained encoder." in card
    assert "## Probe" not in card  # which was trained on the target encoder


@pytest.mark.parametrize(
    ("form", "network", "sentence"),
    [
        ("published", "encoder", "^--network: found encoder with --to published"),
        ("safetensors", "target_encoder", "^--network: found target_encoder, but .* is of a run"),
    ],
)
def test_networks_that_cannot_be_chosen(form, network, sentence, tmp_path):
    teacher = {"mode": "frozen", "checkpoint": "elsewhere"}
    run = write_run(tmp_path / "run", FIRST, teacher=teacher)
    with pytest.raises(UserError, match=sentence):
        export_run(run, form, tmp_path / "out", network=network)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_by_its_own_folder(tmp_path):
    run = write_run(tmp_path / "run", FIRST, step=7)
    export_run(run / "checkpoints" / "step_00000007", "safetensors", tmp_path / "out")
    assert "step 7" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_is_of_the_run_and_names_no_place(tmp_path):
    manifests = ["/secret/place/a.csv", {"path": "/secret/place/b.csv", "fps": 4, "num_frames": 16}]
    run = write_run(
        tmp_path / "run",
        SECOND,
        data={"manifests": manifests, "weights": [0.25, 2]},
        init={"checkpoint": "/secret/place/run", "target_encoder": "encoder"},
    )
    probe = {"step": 40, "blocks": 4, "accuracy": {"digit": {"pretrained encoder": 0.75}}}
    probe["file"] = "/secret/x"
    (run / "probe.json").write_text(json.dumps(probe))
    export_run(run, "safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "library_name: vjepa_fast\n",
        "2 manifests of videos.",
        "Manifest 1: 8 frames a clip, one frame in 4; weight 0.25.",
        "Manifest 2: 16 frames a clip, 4 a second; weight 2.",
        "encoder from checkpoint, predictor from checkpoint, target encoder from encoder;",
        "Step 40 of 100, 24 clips a step.",
        "momentum 0.998 to 1.",
        '"num_blocks": 2',
        "Test scores of an attentive probe of 4 blocks at step 40.",
        "digit: pretrained encoder 0.750",
    ):
        assert text in card
    assert "secret" not in card and str(tmp_path) not in card
    head = card.split("---")[1]
    assert not [line for line in head.splitlines() if line.startswith("license")]


def test_the_card_counts_the_videos_that_the_run_saw(demo, tmp_path, caplog):
    data = {"manifests": [str(demo / name) for name in ("train.csv", "test.csv")]}
    optim = {"lr_schedule": "constant"}
    digest = make_planner(parse_config(config_of(tmp_path, FIRST, data=data))).digest
    run = write_run(tmp_path / "run", FIRST, videos=digest, data=data, optim=optim)
    card = card_of(run, tmp_path / "out")
    assert "Manifest 1: 48 videos, 8 frames a clip, one frame in 4; by its number of" in card
    assert "Manifest 2: 16 videos, " in card
    assert "steps, then constant; weight decay" in card
    for what, changes in {
        "moved": {"data": {"manifests": [str(tmp_path / "gone.csv")]}, "videos": digest},
        "changed": {"data": data, "videos": "0" * 64},
    }.items():
        card = card_of(write_run(tmp_path / what, FIRST, **changes), tmp_path / f"card_{what}")
        assert "Manifest 1: 8 frames a clip" in card
    assert not caplog.records


def card_of(run, output):
    export_run(run, "safetensors", output)
    return (output / "README.md").read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"accuracy": 3}', '{"accuracy": {"a": {"b": "c"}}}'])
def test_an_unreadable_probe_json_costs_its_section_alone(text, tmp_path):
    run = write_run(tmp_path / "run", FIRST)
    (run / "probe.json").write_text(text)
    export_run(run, "safetensors", tmp_path / "out")
    assert "## Probe" not in (tmp_path / "out" / "README.md").read_text()


def test_an_imported_checkpoint_says_what_it_was(tmp_path):
    imported = {"file": "vitl16.pth.tar", "kind": "published", "generation": 1, "parts": []}
    run = write_run(tmp_path / "run", FIRST, step=0, imported=imported)
    export_run(run, "safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from weights that were imported from vitl16.pth.tar" in card
    assert "AdamW" not in card and "manifest" not in card
    assert "Exported network: the target encoder" in card


def test_an_imported_encoder_that_is_the_only_one_is_no_average(tmp_path):
    imported = {"file": "a.safetensors", "parts": ["encoder", "predictor"]}
    run = write_run(tmp_path / "run", SECOND, step=0, imported=imported)
    export_run(run, "safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Exported network: the imported file's only encoder." in card
    assert "average" not in card


CARDS = """
import re, sys
for folder in sys.argv[1:]:
    text = open(f"{folder}/README.md").read()
    (code,) = re.findall(r"```python\\n(.+?)```", text, re.S)
    assert len(code.splitlines()) == 3, code
    found = {}
    exec(code, found)
    print(folder, len(found["weights"]))
"""


@pytest.mark.parametrize(("model", "name"), [(FIRST, "my-export"), (SECOND, "v2.1 of ours")])
def test_the_lines_of_the_card_run(model, name, tmp_path):
    run = write_run(tmp_path / "run", model)
    forms = ("safetensors", "published")
    for form in forms:
        export_run(run, form, tmp_path / f"{name} {form}")
    done = subprocess.run(
        [sys.executable, "-c", CARDS, *(f"{name} {form}" for form in forms)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    extra = model is FIRST  # the position table
    assert done.stdout.splitlines() == [
        f"{name} safetensors 28",
        f"{name} published {28 + extra}",
    ]


@pytest.mark.parametrize("there", ["folder", "file", "dangling link"])
def test_an_output_that_exists(there, tmp_path):
    run = write_run(tmp_path / "run", FIRST)
    output = tmp_path / "out"
    if there == "folder":
        output.mkdir()
    elif there == "file":
        output.write_text("mine")
    else:
        output.symlink_to(tmp_path / "nowhere")
    assert refused(tmp_path, run, "safetensors") == (
        f"--output: found {output}, which exists, expected a new folder; name another one, or "
        "remove it"
    )


def test_an_output_below_a_file(tmp_path):
    run = write_run(tmp_path / "run", FIRST)
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file" / "out", tmp_path / "file" / "a" / "out"):
        assert refused(tmp_path, run, "safetensors", output) == (
            f"--output: found {output}, which cannot be made (Not a directory), expected a place "
            "for a new folder; name another one"
        )


@pytest.mark.parametrize("is_file", [False, True])
def test_an_output_that_another_program_makes_meanwhile(is_file, tmp_path):
    def fill(folder):
        (folder / "model.safetensors").write_text("ours")
        output.write_text("theirs") if is_file else (output / "theirs").mkdir(parents=True)

    output = tmp_path / "out"
    with pytest.raises(UserError, match=r"^--output: found .*/out, which exists, expected a new"):
        write_new_folder(output, 0, fill)
    assert visible(tmp_path) == ["out"]
    assert output.read_text() == "theirs" if is_file else visible(output) == ["theirs"]


def test_a_run_without_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert "found a run without a checkpoint" in refused(tmp_path, run, "safetensors")


def test_no_run_at_all(tmp_path):
    assert "found no readable state.json" in refused(tmp_path, tmp_path / "run", "published")


def test_a_corrupt_checkpoint(tmp_path):
    run = write_run(tmp_path / "run", FIRST)
    shard = run / "checkpoints" / "step_00000040" / "shard_00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    sentence = refused(tmp_path, run, "safetensors")
    assert sentence.endswith(
        "found other bytes than were written, expected an intact shard; remove this checkpoint and "
        "export an older one"
    )


def test_weights_that_are_not_finite(tmp_path, monkeypatch):
    from tests.exchange import runs

    made = runs.random_model

    def broken(*arguments, **others):
        model = made(*arguments, **others)
        model.encoder.norm.bias.data[3] = float("nan")
        return model

    monkeypatch.setattr(runs, "random_model", broken)
    run = write_run(tmp_path / "run", FIRST)
    assert "found features that are not finite" in refused(tmp_path, run, "safetensors")


@pytest.mark.parametrize("form", ["safetensors", "published", "transformers"])
def test_a_disk_that_fills_up(form, tmp_path):
    """By a limit on the size of files."""
    run = write_run(tmp_path / "run", SECOND)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        sentence = refused(tmp_path, run, form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sentence.startswith(
        f"{tmp_path / 'out'}: found File too large while writing, expected room for "
    )
    assert export_run(run, form, tmp_path / "out").files  # the same command again


def test_a_disk_that_is_too_small(tmp_path):
    source = open_source(write_run(tmp_path / "run", FIRST))
    form = replace(safetensors_form(source), size=10**18)
    with pytest.raises(UserError, match=r"MB of free disk, expected 1000000000000\.0 MB; free"):
        write_checked(form, source, tmp_path / "out")
    assert visible(tmp_path) == ["run"]


def test_features_that_differ(tmp_path):
    """The check after writing can fail, and then nothing is left."""
    source = open_source(write_run(tmp_path / "run", FIRST))
    wrong = source.part("encoder")  # in place of the target encoder

    def write(folder):
        write_safetensors(folder / "model.safetensors", wrong, {"format": "pt"})

    form = replace(safetensors_form(source), write=write)
    with pytest.raises(UserError, match=r"found features that differ from ours by .+ at most 0;"):
        write_checked(form, source, tmp_path / "out")
    assert visible(tmp_path) == ["run"]


def test_a_file_that_does_not_load(tmp_path):
    source = open_source(write_run(tmp_path / "run", FIRST))
    form = safetensors_form(source)

    def write(folder):
        form.write(folder)
        os.truncate(folder / "model.safetensors", 20_000)

    with pytest.raises(UserError, match="found that what was written does not load") as caught:
        write_checked(replace(form, write=write), source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert visible(tmp_path) == ["run"]


def test_what_a_killed_export_left_is_removed(tmp_path):
    run = write_run(tmp_path / "run", FIRST)
    left = tmp_path / ".out.writing"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    export_run(run, "safetensors", tmp_path / "out")
    assert visible(tmp_path) == ["out", "run"]


def test_a_probe_is_for_transformers(tmp_path):
    run = write_run(tmp_path / "run", SECOND)
    sentence = refused(tmp_path, run, "safetensors", probe=tmp_path / "probe.safetensors")
    assert sentence.startswith("--probe: found it with --to safetensors, expected --to transf")
