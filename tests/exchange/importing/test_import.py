"""Published weights become a checkpoint of ours, and nothing else is written."""

import json
import os
import shlex
import shutil

import pytest
import torch

from tests.helpers.forked_runs import small_file_system
from tests.helpers.paths import REPOSITORY
from tests.helpers.trainers import make_trainer
from tests.weights.published_files import FIRST, SECOND, checkpoint, golden_checkpoint, save
from vjepa_fast.cli import main
from vjepa_fast.commands.report import report_html
from vjepa_fast.commands.weights.import_weights import RECIPES, is_recipes_model
from vjepa_fast.config import parse_config
from vjepa_fast.config.networks import ModelConfig
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.probe import run_probe
from vjepa_fast.evaluation.settings import ProbeSettings
from vjepa_fast.exchange.import_weights import import_weights
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.training.recipe import model_changes
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


def test_the_command_to_go_on_with_an_encoder_alone(tmp_path, capsys):
    """The predictor is then a fresh one; and a shell takes the line as it is."""
    file = save(checkpoint(second=True)["encoder"], tmp_path / "encoder.pt")
    options = ["--heads", "2", "--crop-size", "24", "--num-frames", "4"]
    assert main(["import", str(file), "--output", str(tmp_path / "my run"), *options]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[:3] == ["deepspeed", "vjepa_fast/train.py", "--config"]
    assert words[4::2] == ["--set"] * 3
    assert words[5::2] == [
        f"init.checkpoint={tmp_path / 'my run'}",
        "init.predictor=fresh",
        'data.manifests=["data/mine.csv"]',
    ]


def test_a_link_keeps_its_name(tmp_path):
    """Caches of downloads hold links to files whose names are checksums."""
    file = save(checkpoint(), tmp_path / "0a1b2c")
    (tmp_path / "vitl16.pth.tar").symlink_to(file)
    run = import_weights(tmp_path / "vitl16.pth.tar", tmp_path / "run", **FIRST).run
    assert Checkpoint.find(run).imported["file"] == "vitl16.pth.tar"


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
    assert lines[-2].endswith("configs/adapt_vitl16.json (put this model section into it):")
    assert lines[-1] == (
        f"deepspeed vjepa_fast/train.py --config configs/adapt_vitl16.json --set "
        f"init.checkpoint={run} --set 'data.manifests=[\"data/mine.csv\"]'"
    )


@pytest.mark.parametrize("generation", [1, 2])
def test_the_recipes_are_for_the_models_that_the_command_says(generation):
    """Those of a published ViT-L/16 as `open_weights` finds it."""
    recipe = json.loads((REPOSITORY / RECIPES[generation]).read_text())["model"]
    encoder = {"width": 1024, "depth": 24, "heads": 16, "mlp_ratio": 4.0}
    heads = 16 if generation == 1 else 12
    found = ModelConfig.model_validate(
        {
            "encoder": encoder,
            "predictor": {"width": 384, "depth": 12, "heads": heads},
            "positions": "sincos" if generation == 1 else "rope_tiled",
        }
    )
    assert model_changes(ModelConfig.model_validate(recipe), found) == []
    section = found.model_dump()
    assert is_recipes_model(section, generation)
    for other in (
        {"encoder": encoder | {"depth": 23}},
        {"patch_size": 14},
        {"tubelet_size": 1},
        {"positions": "rope"},
    ):
        assert not is_recipes_model(section | other, generation)


class TestNothingIsLeft:
    """Of an import that fails, and nothing is lost."""

    def test_where_the_output_exists(self, tmp_path):
        (tmp_path / "run").mkdir()
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=r"^--output: found .*run, which exists, expected a"):
            import_weights(save(checkpoint(), tmp_path / "a.pt"), tmp_path / "run", **FIRST)
        assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "a.pt"])

    @pytest.mark.parametrize("part", ["encoder", "predictor", "target_encoder"])
    def test_of_weights_that_are_not_finite(self, part, tmp_path):
        content = checkpoint()
        content[part] |= {n: v / 0 for n, v in content[part].items() if n.endswith(".norm1.bias")}
        file = save(content, tmp_path / "a.pt")
        for output in ("run", "new/newer/run"):
            with pytest.raises(UserError, match=f"found NaN or infinity in {part}.module.backbone"):
                import_weights(file, tmp_path / output, **FIRST)
        assert [*tmp_path.iterdir()] == [file]

    @pytest.mark.parametrize(
        ("output", "reason"), [("/proc/x/run", "No such file"), ("x" * 300, "File name too long")]
    )
    def test_where_no_folder_can_be_made(self, output, reason, tmp_path):
        file = save(checkpoint(), tmp_path / "a.pt")
        with pytest.raises(
            UserError, match=rf"^--output: found .*, which cannot be made \({reason}"
        ):
            import_weights(file, tmp_path / output, **FIRST)
        assert [*tmp_path.iterdir()] == [file]

    def test_where_the_disk_is_too_small(self, tmp_path, monkeypatch):
        file = save(checkpoint(), tmp_path / "a.pt")
        import_weights(file, tmp_path / "first", **FIRST)
        size = sum(path.stat().st_size for path in (tmp_path / "first").rglob("*.*"))
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
        with pytest.raises(UserError, match=r"MB of free disk, expected .* MB; free some, or"):
            import_weights(file, tmp_path / "run", **FIRST)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size + 2**17))
        import_weights(file, tmp_path / "run", **FIRST)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "first", "run"]

    @pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
    def test_where_the_disk_fills_up(self, tmp_path, monkeypatch):
        """Another program writes to it at the same time."""
        file = save(checkpoint(), tmp_path / "a.pt")
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with small_file_system(tmp_path / "disk", 2**16):
            with pytest.raises(UserError, match="found No space left on device while writing"):
                import_weights(file, tmp_path / "disk/run", **FIRST)
            assert [*(tmp_path / "disk").iterdir()] == []

    def test_of_a_killed_import(self, tmp_path):
        stale = tmp_path / ".run.writing" / "checkpoints" / "step_00000000"
        stale.mkdir(parents=True)
        (stale / "shard_00007.safetensors").touch()
        import_weights(save(checkpoint(), tmp_path / "a.pt"), tmp_path / "run", **FIRST)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "run"]
        assert len([*(tmp_path / "run").rglob("shard_*")]) == 1

    def test_of_a_mistake_on_the_command_line(self, tmp_path, capsys):
        file = save(checkpoint(second=True), tmp_path / "a.pt")
        assert main(["import", str(file), "--output", str(tmp_path / "run")]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert captured.err.startswith(f"error: {file}: found weights that do not show ")
        assert [*tmp_path.iterdir()] == [file]


def test_the_report_of_imported_weights(tmp_path):
    run = import_weights(save(checkpoint(), tmp_path / "a.pth.tar"), tmp_path / "run", **FIRST).run
    html = report_html(run)
    assert "no run, but weights to start one from" in html and "unfinished" not in html
    assert "<tr><td>imported from</td><td>a.pth.tar</td></tr>" in html
    assert "<tr><td>networks</td><td>encoder, predictor, target encoder</td></tr>" in html


def test_a_probe_on_imported_weights_needs_videos(tmp_path):
    run = import_weights(save(checkpoint(), tmp_path / "a.pth.tar"), tmp_path / "run", **FIRST).run
    with pytest.raises(UserError, match=r"^--train: found none for .*imported from a.pth.tar"):
        run_probe(ProbeSettings(run, ("digit",)), write=print)
