"""Published weights become a checkpoint of ours, and nothing else is written."""

import json

import pytest
import torch

from tests.helpers.trainers import make_trainer
from tests.weights.published_files import FIRST, SECOND, checkpoint, golden_checkpoint, save
from vjepa_fast.cli import main
from vjepa_fast.config import parse_config
from vjepa_fast.errors import UserError
from vjepa_fast.exchange.import_weights import import_weights
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.weights.open_file import open_weights

GENERATIONS = [pytest.param(False, id="first"), pytest.param(True, id="second")]


def asked(second):
    return SECOND if second else FIRST


def same(a, b):
    return {*a} == {*b} and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("second", GENERATIONS)
def test_all_weights_arrive(second, tmp_path):
    file = save(checkpoint(3, second=second), tmp_path / "tiny.pth.tar")
    run = import_weights(file, tmp_path / "runs/a", **asked(second)).run
    found = Checkpoint.find(run)
    source = open_weights(file, **asked(second))
    assert found.verify() is None
    assert same(found.weights("encoder", "teacher"), source.state("target_encoder"))
    assert not same(found.weights("encoder", "master"), source.state("target_encoder"))
    for part in ("encoder", "predictor"):
        assert same(found.weights(part, "master"), source.state(part))
    assert found.weights("predictor", "master")["mask_tokens"].shape == (3, 12)
    assert found.imported == {
        "file": "tiny.pth.tar",
        "kind": "published",
        "generation": 2 if second else 1,
        "parts": ["encoder", "predictor", "target_encoder"],
    }
    assert (found.result_weights, found.state["step"]) == ("teacher", 0)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.json"]
    assert [path.name for path in run.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("second", GENERATIONS)
def test_groups_are_those_of_a_trainer(second, tmp_path):
    count = 1 if second else 2
    file = save(checkpoint(count, second=second), tmp_path / "tiny.pt")
    found = Checkpoint.find(import_weights(file, tmp_path / "run", **asked(second)).run)
    shards = make_trainer(second=second).shards
    own = {s.name: [list(pair) for pair in zip(s.names, s.shapes, strict=True)] for s in shards}
    assert found.state["groups"] == json.loads(json.dumps(own))


@pytest.mark.parametrize("second", GENERATIONS)
def test_the_stored_config(second, tmp_path):
    file = save(checkpoint(2, second=second), tmp_path / "tiny.pt")
    imported = import_weights(file, tmp_path / "run", **asked(second))
    config = parse_config(json.loads((imported.run / "config.json").read_text()))
    assert config == parse_config(Checkpoint.find(imported.run).state["config"])
    assert json.loads(config.model_dump_json()) == imported.config
    assert [manifest.path for manifest in config.data.manifests] == ["imported"]
    assert (config.data.num_frames, config.data.crop_size) == (4, 24)
    assert config.data.fps == (4 if second else None)
    assert config.model.positions == ("rope_tiled" if second else "sincos")
    assert config.model.mask_tokens == ("shared" if second else "per_spec")
    assert config.output == str(imported.run)


def test_one_encoder_is_written_as_both(tmp_path):
    file = save(checkpoint(second=True)["encoder"], tmp_path / "encoder.pt")
    imported = import_weights(file, tmp_path / "run", **SECOND)
    found = Checkpoint.find(imported.run)
    assert same(found.weights("encoder", "teacher"), found.weights("encoder", "master"))
    assert [group.partition(".")[0] for group in found.state["groups"]] == ["encoder"] * 2
    assert found.imported["parts"] == ["encoder"]


def test_a_target_encoder_alone_is_written_as_both(tmp_path):
    content = {"target_encoder": checkpoint(second=True)["target_encoder"], "epoch": 3}
    imported = import_weights(save(content, tmp_path / "ema.pt"), tmp_path / "run", **SECOND)
    found = Checkpoint.find(imported.run)
    assert same(found.weights("encoder", "teacher"), found.weights("encoder", "master"))
    assert imported.written == {"encoder": "target_encoder", "target_encoder": "target_encoder"}


def test_several_lengths(tmp_path):
    file = save(checkpoint(4, second=True), tmp_path / "tiny.pt")
    run = import_weights(file, tmp_path / "run", **SECOND | {"num_frames": (8, 4)}).run
    found = Checkpoint.find(run)
    assert parse_config(found.state["config"]).data.lengths == (4, 8)
    as_they_are = open_weights(file, **SECOND).state("predictor")["mask_tokens"]
    tokens = found.weights("predictor", "master")["mask_tokens"]
    assert torch.equal(tokens, as_they_are[[1, 0, 2, 3]])


def test_the_command_says_what_went_where(tmp_path, capsys):
    content, _ = golden_checkpoint("multiblock_tiny.npz")
    file = save(content | {"opt": {"state": {0: torch.ones(3)}}}, tmp_path / "tiny.pth.tar")
    run = tmp_path / "run"
    assert main(["import", str(file), "--output", str(run), "--heads", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["in", "the", "file", "tensors", "parameters", "where", "it", "went"],
        ["encoder", "28", "75,120", "encoder"],
        ["predictor", "32", "16,920", "predictor"],
        ["target_encoder", "28", "75,120", "target", "encoder"],
    ]
    assert "opt                    1                 left out: state of the optimizer" in lines
    assert sum("left out: position table, computed anew" in line for line in lines) == 3
    assert "generation 1, by a position table and 2 mask tokens" in lines
    assert "clips of 8 frames, 48 px, by its position table" in lines
    text = "\n".join(lines)
    section = text[text.index('"model": ') :].partition("\nrun folder")[0]
    config = parse_config(json.loads((run / "config.json").read_text()))
    pasted = json.loads(f"{{{section}}}")["model"]
    assert parse_config({**json.loads(config.model_dump_json()), "model": pasted}) == config
    assert lines[-1].endswith(f"--set init.checkpoint={run}")


def test_an_output_that_exists(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"^--output: found .*run, which exists, expected a new"):
        import_weights(tmp_path / "no_matter.pt", tmp_path / "run")
