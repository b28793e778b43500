"""What `export` wrote comes in again: by file and by folder, with all that its config says."""

import json
import struct

import pytest
import torch

from tests.exchange.runs import FIRST, SECOND, write_run
from vjepa_fast import load_encoder
from vjepa_fast.config.networks import ModelConfig
from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.run import export_run
from vjepa_fast.exchange.import_weights import import_weights
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.training.recipe import model_changes
from vjepa_fast.weights.open_file import open_weights

NON_UNIFORM = FIRST | {"uniform_power": False, "predictor": {"width": 16, "depth": 2, "heads": 1}}
TRUE_ROTATION = SECOND | {"positions": "rope"}
FOLDER, FILE = "", "model.safetensors"
FORMS = [
    pytest.param(FIRST, "safetensors", FOLDER, id="first"),
    pytest.param(NON_UNIFORM, "safetensors", FILE, id="non-uniform"),
    pytest.param(SECOND, "safetensors", FILE, id="second"),
    pytest.param(TRUE_ROTATION, "safetensors", FOLDER, id="rope"),
    pytest.param(
        NON_UNIFORM, "transformers", FOLDER, id="first-transformers", marks=pytest.mark.slow
    ),
    pytest.param(SECOND, "transformers", FOLDER, id="transformers"),
    pytest.param(SECOND, "transformers", FILE, id="transformers-file"),
]


def same(a, b):
    return {*a} == {*b} and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("model", "form", "inside"), FORMS)
def test_an_export_is_imported_without_a_question(model, form, inside, tmp_path):
    pace = {"fps": 12.5} if "positions" in model else {"frame_step": 3}
    run = write_run(tmp_path / "run", model, data=pace)
    export_run(run, form, tmp_path / "out")
    encoder = load_encoder(tmp_path / "out" / inside)
    assert (encoder.sampling.frame_step, encoder.sampling.fps) == (
        pace.get("frame_step", 4),
        pace.get("fps"),
    )
    imported = import_weights(tmp_path / "out" / inside, tmp_path / "back")
    before, after = Checkpoint.find(run), Checkpoint.find(imported.run)
    weights = before.weights("encoder", "teacher")
    assert same(after.weights("encoder", "teacher"), weights)
    assert same(after.weights("encoder", "master"), weights)
    saved, found = (ModelConfig.model_validate(c.state["config"]["model"]) for c in (before, after))
    with_predictor = model is SECOND and form == "transformers"
    assert model_changes(saved, found, encoder_only=not with_predictor) == []
    data = after.state["config"]["data"]
    assert {key: data[key] for key in ("num_frames", "crop_size", *pace)} == {
        "num_frames": 8,
        "crop_size": 24,
        **pace,
    }
    kind = "transformers" if form == "transformers" else "safetensors"
    assert after.imported["kind"] == kind
    assert after.imported["generation"] == (1 if "positions" not in model else 2)
    by = "config.json" if form == "transformers" else "its header"
    assert imported.file.recognized["clip"] == by


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 4}, r"^--heads: found 4, expected 2, as .* says; leave it out$"),
        ({"crop_size": 32}, r"^--crop-size: found 32, expected 24"),
        ({"num_frames": (4, 8)}, r"^--num-frames: found 4,8, expected 8"),
        ({"generation": 2}, r"^--generation: found 2, expected 1"),
    ],
)
def test_options_against_the_header(options, sentence, tmp_path):
    export_run(write_run(tmp_path / "run", FIRST), "safetensors", tmp_path / "out")
    with pytest.raises(UserError, match=sentence):
        open_weights(tmp_path / "out", **options)


def with_header(path, change):
    """Rewrite the config in a safetensors header."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    own = json.loads(header["__metadata__"]["vjepa_fast"])
    change(own)
    header["__metadata__"]["vjepa_fast"] = json.dumps(own)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda own: own.update(format=2), "found format 2 of an export, expected 1"),
        (lambda own: own.pop("crop_size"), "found a header of an export without a valid config"),
        (lambda own: own.update(crop_size=None), "without a valid config"),
        (lambda own: own.update(num_frames="8 frames"), "without a valid config"),
        (lambda own: own.update(generation=2), "generation 2 with positions sincos"),
        (lambda own: own.update(model=3), "found a header of an export without a valid config"),
        (lambda own: own.update(network="both"), "found the network 'both' in the header"),
        (lambda own: own["model"]["encoder"].update(depth=3), "depth 3 in the header beside t"),
        (lambda own: own["model"]["encoder"].update(mlp_ratio=2.0), "hidden width 48 in the head"),
        (lambda own: own["model"].update(patch_size=4), "patch_size 4 in the header beside t"),
    ],
)
def test_a_header_that_was_changed(change, sentence, tmp_path):
    export_run(write_run(tmp_path / "run", FIRST), "safetensors", tmp_path / "out")
    with_header(tmp_path / "out" / "model.safetensors", change)
    with pytest.raises(UserError, match=sentence):
        open_weights(tmp_path / "out")


def test_several_files_in_a_folder(tmp_path):
    for name in ("a.pt", "b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"with several files of weights \(a.pt, b.safetensors\)"):
        open_weights(tmp_path)


@pytest.mark.parametrize("pace", [4, {}, {"fps": 0}, {"fps": "4"}, {"fps": 4, "frame_step": 4}])
def test_a_pace_that_is_none(pace, tmp_path):
    export_run(write_run(tmp_path / "run", FIRST), "safetensors", tmp_path / "out")
    with_header(tmp_path / "out" / FILE, lambda own: own.update(pace=pace))
    with pytest.raises(UserError, match=r"found the pace .*, expected a frame_step or fps above 0"):
        open_weights(tmp_path / "out")
