"""Published checkpoints: names, shapes, and the model that follows from them."""

import math

import pytest
import torch

from tests.weights.published_files import (
    CROP,
    FIRST,
    FRAMES,
    SECOND,
    checkpoint,
    golden_checkpoint,
    save,
    tiny,
)
from vjepa_fast.config.networks import ENCODER_PRESETS
from vjepa_fast.errors import UserError
from vjepa_fast.models.jepa import build_vjepa
from vjepa_fast.models.positions import position_table
from vjepa_fast.weights import encoder_to_published, predictor_to_published
from vjepa_fast.weights.open_file import open_weights
from vjepa_fast.weights.reading.find_model import ENCODER_HEADS
from vjepa_fast.weights.reading.names import TABLE, UNUSED_TABLE

GENERATIONS = [pytest.param(False, id="first"), pytest.param(True, id="second")]
GOLDENS = ["multiblock_tiny.npz", "clipped_nonuniform_tiny.npz", "rope_tiny.npz"]


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("file", GOLDENS)
def test_the_model_of_the_golden_checkpoints(file, tmp_path):
    content, meta = golden_checkpoint(file)
    second = meta.get("generation", 1) == 2
    asked = {"crop_size": meta["crop_size"], "num_frames": [meta["num_frames"]]} if second else {}
    found = open_weights(
        save(content, tmp_path / "tiny.pth.tar"),
        heads=meta["num_heads"],
        predictor_heads=meta["predictor_num_heads"],
        **asked,
    )
    assert (found.kind, found.generation) == ("published", 2 if second else 1)
    assert (found.num_frames, found.crop_size) == ((meta["num_frames"],), meta["crop_size"])
    assert found.model == {
        "encoder": {
            "width": meta["embed_dim"],
            "depth": meta["depth"],
            "heads": meta["num_heads"],
            "mlp_ratio": meta["mlp_ratio"],
        },
        "patch_size": meta["patch_size"],
        "tubelet_size": meta["tubelet_size"],
        "positions": "rope_tiled" if second else "sincos",
        "uniform_power": meta.get("uniform_power", True),
        "predictor": {
            "width": meta["predictor_embed_dim"],
            "depth": meta["predictor_depth"],
            "heads": meta["predictor_num_heads"],
        },
        "mask_tokens": "shared" if second else "per_spec",
        "depth_scaled_init": second,
    }
    for name, value in found.state("target_encoder").items():
        assert torch.equal(value, content["target_encoder"][f"module.backbone.{name}"])
    assert len(found.left_out) == (0 if second else 3)
    used = sum(math.prod(w.shape) for part in found.parts.values() for w in part.values())
    assert used == sum(
        value.numel()
        for state in content.values()
        for name, value in state.items()
        if not name.endswith("pos_embed")
    )


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("second", GENERATIONS)
@pytest.mark.parametrize(
    "prefix", ["", "backbone.", "module.", "module.backbone.", "module.module.backbone."]
)
def test_all_that_a_published_checkpoint_holds(prefix, second, legacy, tmp_path):
    """Weights by our names in the order of our networks; everything else with a reason."""
    content = checkpoint(second=second, prefix=prefix)
    file = open_weights(
        save(content, tmp_path / "tiny.pth.tar", legacy=legacy), **(SECOND if second else FIRST)
    )
    model, other = tiny(1), tiny(2)
    # the optimizer took a step before the checkpoint was written
    assert list(file.state("encoder")) == list(dict(model.encoder.named_parameters()))
    assert same(file.state("target_encoder"), dict(other.encoder.named_parameters()))
    assert list(file.state("predictor")) == list(dict(model.predictor.named_parameters()))
    reasons = {name.split(".")[0]: reason for name, reason in file.left_out.items()}
    assert reasons.pop("opt") == "state of the optimizer"
    assert reasons == ({} if second else dict.fromkeys(content.keys() & file.parts.keys(), TABLE))
    moments = [name for name in file.left_out if name.startswith("opt.state.")]
    assert len(moments) == 3 * len([*model.parameters()])


def test_the_ema_of_newer_files(tmp_path):
    file = save(checkpoint(second=True, target="ema_encoder"), tmp_path / "tiny.pt")
    found = open_weights(file, **SECOND)
    assert same(found.state("target_encoder"), dict(tiny(2).encoder.named_parameters()))


def test_a_bare_encoder(tmp_path):
    state = encoder_to_published(tiny().encoder.state_dict())
    found = open_weights(save(state, tmp_path / "encoder.pt"), **SECOND | {"predictor_heads": None})
    assert list(found.parts) == ["encoder"] and found.target_encoder == "encoder"
    assert same(found.state("encoder"), dict(tiny().encoder.named_parameters()))
    assert found.model["predictor"] == {"width": 384, "depth": 12, "heads": 12}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_floats(dtype, tmp_path):
    content = checkpoint()
    for part in ("encoder", "predictor", "target_encoder"):
        content[part] = {name: value.to(dtype) for name, value in content[part].items()}
    found = open_weights(save(content, tmp_path / "tiny.pth.tar"), **FIRST)
    assert (found.generation, found.crop_size) == (1, CROP)
    for name, value in found.state("encoder").items():
        expected = content["encoder"][f"module.backbone.{name}"].float()
        assert value.dtype == torch.float32 and torch.equal(value, expected)


def large(mask_tokens=2, width=192, predictor_width=384, mlp_ratio=4.0, second=True):
    """A checkpoint of a published width, one block deep."""
    model = build_vjepa(
        encoder={"width": width, "depth": 1, "heads": 1, "mlp_ratio": mlp_ratio},
        predictor={"width": predictor_width, "depth": 1, "heads": 1},
        grid=(1, 1, 1),
        patch_size=2,
        tubelet_size=2,
        num_mask_tokens=mask_tokens,
        positions="rope_tiled",
    )
    content = {
        "encoder": encoder_to_published(model.encoder.state_dict()),
        "predictor": predictor_to_published(model.predictor.state_dict()),
    }
    if not second:
        content["encoder"]["backbone.pos_embed"] = position_table(width, (2, 3, 3))[None]
        table = position_table(predictor_width, (2, 3, 3))[None]
        content["predictor"]["backbone.predictor_pos_embed"] = table
    return content


def test_heads_of_the_published_widths():
    assert {(p.width, p.heads) for p in ENCODER_PRESETS.values()} == {*ENCODER_HEADS.items()}


@pytest.mark.parametrize("second", GENERATIONS)
def test_heads_follow_from_the_published_widths(second, tmp_path):
    """Of the predictor: in the first generation the encoder's, in the second 12."""
    file = save(large(second=second), tmp_path / "tiny.pt")
    found = open_weights(file, **{} if not second else {"crop_size": 6, "num_frames": [4]})
    assert found.model["encoder"]["heads"] == 3
    assert found.model["predictor"]["heads"] == (12 if second else 3)


def test_the_ratio_of_the_giant(tmp_path):
    file = save(large(width=1408, mlp_ratio=48 / 11, predictor_width=12), tmp_path / "g.pt")
    found = open_weights(file, predictor_heads=2, crop_size=4, num_frames=[2])
    assert found.model["encoder"]["mlp_ratio"] == ENCODER_PRESETS["vit_giant"].mlp_ratio
    assert found.model["encoder"]["heads"] == 22


class TestGenerations:
    """Released files of the second generation hold position tables that they do not use."""

    def test_ten_mask_tokens_are_of_the_second(self, tmp_path):
        file = save(checkpoint(10, second=True, tables=True), tmp_path / "vitl.pt")
        found = open_weights(file, heads=2, predictor_heads=2)
        assert (found.generation, found.model["positions"]) == (2, "rope_tiled")
        assert found.recognized == {
            "generation": "2, by 10 mask tokens (its position table is not used)",
            "clip": "a position table that the model does not use",
        }
        assert (found.num_frames, found.crop_size) == ((FRAMES,), CROP)
        assert [*found.left_out.values()].count(UNUSED_TABLE) == 3

    def test_an_unused_table_is_only_a_default(self, tmp_path):
        file = save(checkpoint(10, second=True, tables=True), tmp_path / "vitl.pt")
        found = open_weights(file, **SECOND | {"crop_size": 32, "num_frames": [8]})
        assert (found.num_frames, found.crop_size) == ((8,), 32)
        assert found.recognized["clip"] == "the options given"

    def test_an_unused_table_of_another_kind_is_no_default(self, tmp_path):
        content = checkpoint(10, second=True, tables=True)
        for part in ("encoder", "target_encoder"):
            content[part]["module.backbone.pos_embed"] += 0.1
        file = save(content, tmp_path / "vitl.pt")
        with pytest.raises(UserError, match="expected --crop-size --num-frames; give what"):
            open_weights(file, heads=2, predictor_heads=2)
        assert open_weights(file, **SECOND).generation == 2

    def test_a_width_that_only_the_second_has(self, tmp_path):
        content = large(width=1408, mlp_ratio=48 / 11, predictor_width=12, second=False)
        file = save({"encoder": content["encoder"]}, tmp_path / "g.pt")
        found = open_weights(file)
        assert (found.generation, found.crop_size, found.num_frames) == (2, 6, (4,))
        assert found.recognized["generation"].startswith("2, by the width 1408")

    @pytest.mark.parametrize("count", [1, 2, 6])
    def test_a_table_beside_other_mask_tokens_is_of_the_first(self, count, tmp_path):
        found = open_weights(save(checkpoint(count), tmp_path / "a.pth.tar"), **FIRST)
        assert (found.generation, found.model["positions"]) == (1, "sincos")
        expected = f"1, by a position table and {count} mask tokens"
        assert found.recognized["generation"] == expected

    def test_no_table_is_of_the_second(self, tmp_path):
        found = open_weights(save(checkpoint(second=True), tmp_path / "a.pt"), **SECOND)
        assert found.recognized["generation"] == "2, by the absence of a position table"

    def test_an_encoder_with_a_table_alone_is_of_either(self, tmp_path):
        file = save(checkpoint()["encoder"], tmp_path / "encoder.pt")
        with pytest.raises(UserError, match="expected --generation; give 1 for V-JEPA, 2 for"):
            open_weights(file, **FIRST)
        first = open_weights(file, **FIRST, generation=1)
        assert (first.generation, first.num_frames, first.crop_size) == (1, (FRAMES,), CROP)
        second = open_weights(file, **FIRST, generation=2)
        assert second.model["positions"] == "rope_tiled"
        assert (second.num_frames, second.crop_size) == ((FRAMES,), CROP)

    def test_what_the_user_says_counts(self, tmp_path):
        content = checkpoint(10)
        file = save(content, tmp_path / "a.pth.tar")
        assert open_weights(file, heads=2, predictor_heads=2).generation == 2
        found = open_weights(file, **FIRST, generation=1)
        assert found.generation == 1
        assert found.recognized["generation"] == "1, by the options given"


class TestLengths:
    def test_tokens_of_several_lengths_ascend(self, tmp_path):
        file = save(checkpoint(4, second=True), tmp_path / "a.pt")
        tokens = open_weights(file, **SECOND).state("predictor")["mask_tokens"]
        found = open_weights(file, **SECOND | {"num_frames": (8, 4, 16)})
        assert found.num_frames == (4, 8, 16)
        assert torch.equal(found.state("predictor")["mask_tokens"], tokens[[1, 0, 2, 3]])

    def test_more_lengths_than_tokens(self, tmp_path):
        file = save(checkpoint(2, second=True), tmp_path / "a.pt")
        with pytest.raises(UserError, match=r"^--num-frames: found 3 lengths, expected at most 2"):
            open_weights(file, **SECOND | {"num_frames": (8, 4, 16)})

    def test_the_first_generation_has_one(self, tmp_path):
        file = save(checkpoint(), tmp_path / "a.pth.tar")
        with pytest.raises(UserError, match=r"^--num-frames: found 2 lengths, expected one"):
            open_weights(file, **FIRST, num_frames=(4, 8))

    @pytest.mark.parametrize("lengths", [(4, 4), (0,), ()], ids=str)
    def test_no_lengths(self, lengths, tmp_path):
        file = save(checkpoint(second=True), tmp_path / "a.pt")
        with pytest.raises(UserError, match=r"^--num-frames: found .*expected different numbers"):
            open_weights(file, **SECOND | {"num_frames": lengths})
