"""Weights that leave and come back, or come and leave, are the same bit for bit."""

import json

import pytest
import torch

from tests.exchange.runs import FIRST, SECOND, write_run
from tests.weights import published_files as files
from vjepa_fast import load_encoder
from vjepa_fast.exchange.export.run import export_run
from vjepa_fast.exchange.export.source import open_source
from vjepa_fast.exchange.import_weights import import_weights

# What an import has to be told of the runs of runs.py: no file knows heads of other widths.
TOLD = {"heads": 2, "predictor_heads": 1}
SIZE = {"crop_size": 24, "num_frames": (8,)}
FILES = {1: "vjepa.pth.tar", 2: "vjepa2.pt"}


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def weights(run):
    """Everything that a run's checkpoint holds of encoder, target encoder and predictor."""
    source = open_source(run)
    return {
        f"{part}.{name}": value.read()
        for part in ("encoder", "target_encoder", "predictor")
        for name, value in source.part(part).items()
    }


@pytest.mark.parametrize(("model", "generation"), [(FIRST, 1), (SECOND, 2)])
def test_out_and_in_and_out_of_the_published_form(model, generation, tmp_path):
    run, file = write_run(tmp_path / "run", model), FILES[generation]
    export_run(run, "published", tmp_path / "out")
    told = TOLD | (SIZE if generation == 2 else {})
    import_weights(tmp_path / "out" / file, tmp_path / "back", **told)
    before, after = weights(run), weights(tmp_path / "back")
    if generation == 2:  # one token for all lengths, as often as the public hub has it
        token = before["predictor.mask_tokens"]
        before["predictor.mask_tokens"] = token.expand(10, -1)
    assert same(before, after)
    found = open_source(tmp_path / "back")
    assert found.generation == generation and found.num_frames == 8
    export_run(tmp_path / "back", "published", tmp_path / "again")
    first, second = load(tmp_path / "out" / file), load(tmp_path / "again" / file)
    for part in ("encoder", "target_encoder", "predictor"):
        assert same(first[part], second[part])
        assert list(first[part]) == list(second[part])
    assert first.keys() == second.keys()


@pytest.mark.parametrize("mask_tokens", [1, 6])
@pytest.mark.parametrize("generation", [1, 2])
def test_in_and_out_and_in_of_a_published_file(generation, mask_tokens, tmp_path):
    second = generation == 2
    content = files.checkpoint(mask_tokens, second=second)
    path = tmp_path / FILES[generation]
    torch.save(content, path)
    told = files.SECOND if second else files.FIRST
    import_weights(path, tmp_path / "run", **told)
    export_run(tmp_path / "run", "published", tmp_path / "out")
    found = load(tmp_path / "out" / path.name)
    for part in ("encoder", "target_encoder", "predictor"):
        assert same(found[part], content[part])
    import_weights(tmp_path / "out" / path.name, tmp_path / "back", **told)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "back"))


@pytest.mark.parametrize("count", [1, 10])
def test_in_and_out_of_transformers(count, tmp_path):
    """The same files, but for the card."""
    run = write_run(tmp_path / "run", SECOND, mask_tokens=count, imported={"file": "x.pt"})
    export_run(run, "transformers", tmp_path / "out")
    import_weights(tmp_path / "out", tmp_path / "back")
    before, after = weights(run), weights(tmp_path / "back")
    before |= {  # a folder has one encoder, which stands for both
        name.replace("target_", "", 1): value
        for name, value in before.items()
        if name.startswith("target_encoder.")
    }
    assert same(before, after)
    export_run(tmp_path / "back", "transformers", tmp_path / "again")
    for name in ("config.json", "model.safetensors", "video_preprocessor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert "imported from out" in (tmp_path / "again" / "README.md").read_text()


TRUE_ROTATION = SECOND | {"positions": "rope"}
TABLE = FIRST | {"uniform_power": False, "predictor": {"width": 16, "depth": 1, "heads": 2}}


@pytest.mark.parametrize(
    ("model", "form", "file"),
    [
        (FIRST, "published", "vjepa.pth.tar"),
        (FIRST, "safetensors", ""),
        pytest.param(FIRST, "transformers", "", marks=pytest.mark.slow),
        (TABLE, "safetensors", "model.safetensors"),
        (SECOND, "published", "vjepa2.pt"),
        (SECOND, "safetensors", ""),
        (SECOND, "transformers", ""),
        (TRUE_ROTATION, "safetensors", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_our_encoder_comes_back_from_every_form(model, form, file, tmp_path):
    """The same features bit for bit as from the run itself."""
    run = write_run(tmp_path / "run", model)
    export_run(run, form, tmp_path / "out")
    told = {}
    if form == "published":
        told = {"heads": 2}
        if model is SECOND:
            told |= {"crop_size": 24, "num_frames": 8}
    loaded = load_encoder(tmp_path / "out" / file, **told)
    video = torch.randint(0, 256, (2, 8, 24, 24, 3), dtype=torch.uint8)
    assert torch.equal(loaded(video).tokens, load_encoder(run)(video).tokens)
    assert (loaded.crop_size, loaded.num_frames) == (24, 8)
    if form == "safetensors":
        import_weights(tmp_path / "out" / file, tmp_path / "back")
        assert load_encoder(tmp_path / "back").grid == loaded.grid


def test_a_run_that_was_imported_has_a_card_without_a_recipe(tmp_path):
    torch.save(files.checkpoint(), tmp_path / "vitl16.pth.tar")
    import_weights(tmp_path / "vitl16.pth.tar", tmp_path / "run", **files.FIRST)
    export_run(tmp_path / "run", "safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "As described where `vitl16.pth.tar` comes from" in card
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["manifests"] == [
        "imported"
    ]
    assert "manifest" not in card
