"""Files as the public code writes them: names, shapes, values, and what its loaders want."""

import json

import numpy as np
import pytest
import torch

from tests.exchange.runs import FIRST, SECOND, write_run
from tests.exchange.test_export import refused, visible
from tests.helpers.paths import GOLDEN, REPOSITORY
from vjepa_fast.exchange.export.published_form import HUB_MASK_TOKENS, published_mask_tokens
from vjepa_fast.exchange.export.run import export_run
from vjepa_fast.exchange.export.source import open_source
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.weights import encoder_from_published, predictor_from_published


def golden(file):
    """Names, shapes and meta of a golden file's initial weights."""
    with np.load(GOLDEN / file) as data:
        meta = json.loads(str(data["meta"]))
        parts = {
            part: {
                name.removeprefix(f"init/{part}/"): torch.from_numpy(data[name])
                for name in data.files
                if name.startswith(f"init/{part}/")
            }
            for part in ("encoder", "predictor")
        }
    return parts, meta


def run_like(folder, meta, **others):
    """A run of a golden file's sizes."""
    model = {
        "encoder": {
            "width": meta["embed_dim"],
            "depth": meta["depth"],
            "heads": meta["num_heads"],
            "mlp_ratio": meta["mlp_ratio"],
        },
        "predictor": {
            "width": meta["predictor_embed_dim"],
            "depth": meta["predictor_depth"],
            "heads": meta["predictor_num_heads"],
        },
        "patch_size": meta["patch_size"],
    }
    if meta.get("generation") == 2:
        model |= {"positions": "rope_tiled", "mask_tokens": "shared"}
    data = {"num_frames": meta["num_frames"], "crop_size": meta["crop_size"]}
    return write_run(folder, model, data=data, **others)


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def exported(run, output):
    export_run(run, "published", output)
    (file,) = (name for name in visible(output) if name != "README.md")
    return file, torch.load(output / file, weights_only=True)


def test_first_generation_names_and_shapes_are_the_golden_files(tmp_path):
    parts, meta = golden("multiblock_tiny.npz")
    file, state = exported(run_like(tmp_path / "run", meta), tmp_path / "out")
    assert file == "vjepa.pth.tar"
    for part, like in (("encoder",) * 2, ("target_encoder", "encoder"), ("predictor",) * 2):
        expected = {f"module.{name}": shape for name, shape in shapes(parts[like]).items()}
        assert shapes(state[part]) == expected
        assert next(iter(state[part])).endswith("pos_embed")
    for part, name in (("encoder", "pos_embed"), ("predictor", "predictor_pos_embed")):
        found = state[part][f"module.backbone.{name}"]
        assert (found - parts[part][f"backbone.{name}"]).abs().max() <= 1e-6


def test_second_generation_names_and_shapes_are_the_golden_files(tmp_path):
    """But for the number of mask tokens, which follows that of the public hub."""
    parts, meta = golden("rope_tiny.npz")
    file, state = exported(run_like(tmp_path / "run", meta), tmp_path / "out")
    assert file == "vjepa2.pt"
    tokens = {f"backbone.mask_tokens.{i}": (1, 1, 36) for i in range(10)}
    for part, like in (("encoder",) * 2, ("target_encoder", "encoder"), ("predictor",) * 2):
        expected = shapes(parts[like]) | (tokens if part == "predictor" else {})
        assert shapes(state[part]) == {f"module.{name}": s for name, s in expected.items()}


@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["first", "second"])
def test_values_are_the_checkpoints_bit_for_bit(model, tmp_path):
    run = write_run(tmp_path / "run", model)
    _, state = exported(run, tmp_path / "out")
    checkpoint = open_source(run).checkpoint
    for part, which in (("encoder", "master"), ("target_encoder", "teacher")):
        found, expected = encoder_from_published(state[part]), checkpoint.weights("encoder", which)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    found = predictor_from_published(state["predictor"])
    expected = checkpoint.weights("predictor", "master")
    if model is SECOND:
        expected["mask_tokens"] = expected["mask_tokens"].expand(10, -1)
    assert all(torch.equal(found[name], expected[name]) for name in expected | found)
    storages = [value.untyped_storage().nbytes() for value in state["encoder"].values()]
    assert storages == [4 * value.numel() for value in state["encoder"].values()]


def test_what_their_loaders_read_besides_loads(tmp_path):
    """Their optimizer: encoder and predictor with weight decay, then both without."""
    _, state = exported(write_run(tmp_path / "run", FIRST), tmp_path / "out")
    assert state["epoch"] == 0

    def plain(name, value):
        return "bias" in name or value.ndim == 1

    parts = [state["encoder"], state["predictor"]]
    groups = [
        {"params": [torch.zeros_like(v) for n, v in part.items() if plain(n, v) == exclude]}
        for exclude in (False, True)
        for part in parts
    ]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(state["opt"])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.04, 0.04, 0, 0]
    assert [g.get("WD_exclude") for g in optimizer.param_groups] == [None, None, True, True]
    optimizer.param_groups[0]["params"][0].grad = torch.ones_like(groups[0]["params"][0])
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(state["scaler"])
    assert scaler.get_scale() == 65536


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0] * 10), (2, [0, 1] * 5), (3, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]), (12, [*range(12)])],
)
def test_every_mask_token_of_the_hub_is_a_trained_one(count, expected):
    tokens = torch.randn(count, 4)
    found = published_mask_tokens(tokens, HUB_MASK_TOKENS)
    assert torch.equal(found, tokens[expected]) and len(found) >= HUB_MASK_TOKENS
    assert torch.equal(published_mask_tokens(tokens, 0), tokens)


LENGTHS = {"data": {"manifests": ["a", {"path": "b", "num_frames": 16}]}}


@pytest.mark.parametrize(
    ("model", "sections", "count", "note"),
    [
        (FIRST, {}, 2, ""),
        (FIRST | {"mask_tokens": "shared"}, {}, 2, ""),
        (FIRST | {"mask_tokens": "shared"}, LENGTHS, 2, "for each clip length, the public code"),
        (SECOND, LENGTHS, 10, ""),
        (SECOND | {"mask_tokens": "per_spec"}, {}, 10, "for each mask spec, the public code"),
    ],
)
def test_mask_tokens_of_the_other_generations_kind(model, sections, count, note, tmp_path):
    """The public code of each generation knows one kind; a token for all is right for both."""
    run = write_run(tmp_path / "run", model, **sections)
    _, state = exported(run, tmp_path / "out")
    own = Checkpoint.find(run).weights("predictor", "master")["mask_tokens"]
    prefix = "module.backbone.mask_tokens."
    found = [value for name, value in state["predictor"].items() if name.startswith(prefix)]
    assert len(found) == count
    assert all(torch.equal(token.flatten(), own[i % len(own)]) for i, token in enumerate(found))
    card = (tmp_path / "out" / "README.md").read_text()
    assert (note in card) if note else ("mask token" not in card)


def test_an_imported_encoder_alone(tmp_path):
    run = write_run(tmp_path / "run", SECOND, predictor=False, imported={"file": "encoder.pt"})
    _, state = exported(run, tmp_path / "out")
    assert sorted(state) == ["encoder", "epoch", "target_encoder"]
    assert "There is no predictor" in (tmp_path / "out" / "README.md").read_text()


def test_a_frozen_run_has_the_trained_encoder_twice(tmp_path):
    """The public evaluations read target_encoder."""
    teacher = {"mode": "frozen", "checkpoint": "elsewhere"}
    _, state = exported(write_run(tmp_path / "run", FIRST, teacher=teacher), tmp_path / "out")
    pairs = zip(state["encoder"].values(), state["target_encoder"].values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_true_rotations_are_refused(tmp_path):
    run = write_run(tmp_path / "run", SECOND | {"positions": "rope"})
    assert refused(tmp_path, run, "published") == (
        "--to published: found a model with positions rope, expected sincos or rope_tiled, since "
        "the public code would rotate by other angles; use --to safetensors, or "
        "train with model.positions=rope_tiled"
    )


@pytest.mark.parametrize("form", ["transformers", "published"])
def test_the_lines_of_the_page_run(form, tmp_path, monkeypatch):
    """docs/export.md, second generation."""
    text = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    section = text[text.index(f"## {form}\n") :]
    code = section.partition("```python\n")[2].partition("```")[0]
    run = write_run(tmp_path / "run", SECOND)
    export_run(run, form, tmp_path / "exports" / "mine")
    monkeypatch.chdir(tmp_path)
    names = {"video": torch.zeros(8, 3, 24, 24, dtype=torch.uint8)}
    exec(code, names)
    if form == "transformers":
        assert names["features"].shape == (1, 36, 24)
    else:
        assert len(names["encoder"]) == 28
