"""Folders and files of transformers: names, numbers, and features that are its own."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vjepa_fast.errors import UserError
from vjepa_fast.kernels.patchify import IMAGENET_MEAN, IMAGENET_STD
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.weights.open_file import open_weights

transformers = pytest.importorskip("transformers")
SHAPE = {
    "hidden_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 48 / 11,
    "crop_size": 24,
    "frames_per_clip": 4,
    "patch_size": 8,
    "pred_hidden_size": 12,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
    "pred_num_mask_tokens": 3,
}


def saved(folder, kind="VJEPA2Model", **options):
    """A model of transformers with random weights, saved; and the model."""
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(**SHAPE, num_pooler_layers=1)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "40KB"}], ids=["one", "sharded"])
@pytest.mark.parametrize("kind", ["VJEPA2Model", "VJEPA2ForVideoClassification"])
def test_features_are_those_of_transformers(kind, options, tmp_path):
    theirs = saved(tmp_path / "hf", kind, **options)
    sharded = (tmp_path / "hf" / "model.safetensors.index.json").exists()
    assert sharded == bool(options)
    file = open_weights(tmp_path / "hf")
    assert (file.kind, file.generation, file.num_frames, file.crop_size) == (
        "transformers",
        2,
        (4,),
        24,
    )
    encoder = file.model["encoder"]
    assert encoder == {"width": 44, "depth": 2, "heads": 2, "mlp_ratio": 192 / 44}
    assert file.model["predictor"] == {"width": 12, "depth": 1, "heads": 2}
    ours = VisionTransformer(
        **encoder, grid=(2, 3, 3), patch_size=8, tubelet_size=2, positions="rope_tiled"
    )
    ours.load_state_dict(file.state("encoder"))
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 4, 24, 24, 3), dtype=torch.uint8, generator=generator)
    pixels = (video / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    model = theirs if kind == "VJEPA2Model" else theirs.vjepa2
    with torch.no_grad():
        expected = model(
            pixel_values_videos=pixels.permute(0, 1, 4, 2, 3), skip_predictor=True
        ).last_hidden_state
        found = encode_clips(ours, video).view_as(expected)
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    state = dict(theirs.named_parameters())
    tokens = next(value for name, value in state.items() if name.endswith("mask_tokens"))
    assert torch.equal(file.state("predictor")["mask_tokens"], tokens.reshape(3, 12))
    left_out = {name for name in state if name.startswith(("pooler.", "classifier."))}
    assert file.left_out.keys() == left_out
    assert bool(left_out) == (kind == "VJEPA2ForVideoClassification")


@pytest.mark.parametrize("kind", ["VJEPA2Model", "VJEPA2ForVideoClassification"])
def test_the_file_beside_its_config_or_alone(kind, tmp_path):
    saved(tmp_path / "hf", kind)
    folder = open_weights(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    assert open_weights(file).model == folder.model
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(
        UserError, match=r"do not show .* expected --heads --predictor-heads --crop"
    ):
        open_weights(file)
    alone = open_weights(file, heads=2, predictor_heads=2, crop_size=24, num_frames=[4])
    assert alone.model == folder.model
    assert alone.recognized["generation"] == "2, by the absence of a position table"


def test_a_folder_without_a_predictor(tmp_path):
    saved(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = {n: v for n, v in load_file(file).items() if not n.startswith("predictor.")}
    save_file(tensors, file)
    assert list(open_weights(tmp_path / "hf").parts) == ["encoder"]


def changed(folder, **values):
    """A saved folder whose config.json says something else."""
    saved(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("hidden_size", 48, "48 beside tensors of 44"),
        ("num_hidden_layers", 3, "3 beside tensors of 2"),
        ("mlp_ratio", 4.0, "4.0 beside tensors of 4.36"),
        ("patch_size", 16, "16 beside tensors of 8"),
        ("tubelet_size", 1, "1 beside tensors of 2"),
        ("pred_hidden_size", 24, "24 beside tensors of 12"),
        ("pred_num_hidden_layers", 12, "12 beside tensors of 1"),
        ("pred_num_mask_tokens", 10, "10 beside tensors of 3"),
        ("hidden_act", "relu", "relu, expected gelu"),
        ("layer_norm_eps", 1e-5, "1e-05, expected 1e-06"),
    ],
)
def test_numbers_that_are_not_those_of_the_tensors(key, value, found, tmp_path):
    folder = changed(tmp_path / "hf", **{key: value})
    with pytest.raises(UserError, match=f"config.json: found {key} {found}"):
        open_weights(folder)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"model_type": "videomae"}, "a config.json of model_type videomae"),
        (
            {"hierarchical_layers": [2, 5]},
            "found a config.json of V-JEPA 2.1, which is not supported",
        ),
        ({"hierarchical_layers": [2], "model_type": "x"}, "found a config.json of V-JEPA 2.1"),
        ({"mlp_ratio": None}, "found mlp_ratio None beside tensors of 4.36"),
        ({"mlp_ratio": "4"}, "found mlp_ratio 4 beside tensors of 4.36"),
        ({"num_attention_heads": "two"}, "found num_attention_heads 'two' in a config"),
        ({"num_attention_heads": 7}, "found 7 heads, expected a divisor of 44"),
        ({"crop_size": 20}, "--crop-size: found 20, expected a multiple of 8"),
    ],
)
def test_configs_of_something_else(values, found, tmp_path):
    with pytest.raises(UserError, match=found):
        open_weights(changed(tmp_path / "hf", **values))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 4}, r"^--heads: found 4, expected 2, as .*config.json says; leave it out$"),
        ({"predictor_heads": 4}, r"^--predictor-heads: found 4, expected 2"),
        ({"crop_size": 32}, r"^--crop-size: found 32, expected 24"),
        ({"generation": 1}, r"^--generation: found 1, expected 2"),
    ],
)
def test_options_against_the_config(options, sentence, tmp_path):
    saved(tmp_path / "hf")
    with pytest.raises(UserError, match=sentence):
        open_weights(tmp_path / "hf", **options)


def test_lengths_of_a_predictor_that_the_config_does_not_know(tmp_path):
    saved(tmp_path / "hf")
    found = open_weights(tmp_path / "hf", num_frames=(8, 4))
    assert found.num_frames == (4, 8)
    plain = open_weights(tmp_path / "hf").state("predictor")["mask_tokens"]
    assert torch.equal(found.state("predictor")["mask_tokens"], plain[[1, 0, 2]])


class TestBrokenFolders:
    def test_without_weights(self, tmp_path):
        saved(tmp_path / "hf")
        (tmp_path / "hf" / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"a folder without model\.safetensors and without"):
            open_weights(tmp_path / "hf")

    def test_without_a_shard(self, tmp_path):
        saved(tmp_path / "hf", max_shard_size="40KB")
        (tmp_path / "hf" / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
        shards = sorted((tmp_path / "hf").glob("model-*"))
        shards[-1].unlink()
        with pytest.raises(UserError, match=r"found no model-0000.*safetensors, which .* names"):
            open_weights(tmp_path / "hf")

    @pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
    def test_an_index_of_something_else(self, text, tmp_path):
        saved(tmp_path / "hf", max_shard_size="40KB")
        (tmp_path / "hf" / "model.safetensors.index.json").write_text(text)
        with pytest.raises(UserError, match=r"index.json: found (JSON text|a file|no weight_map)"):
            open_weights(tmp_path / "hf")

    def test_an_index_that_names_too_little(self, tmp_path):
        saved(tmp_path / "hf", max_shard_size="40KB")
        path = tmp_path / "hf" / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        del index["weight_map"]["encoder.layernorm.bias"]
        path.write_text(json.dumps(index))
        with pytest.raises(UserError, match=r"encoder\.layernorm\.bias in only one of"):
            open_weights(tmp_path / "hf")

    @pytest.mark.parametrize(
        ("removed", "sentence"),
        [
            ("encoder.layer.1.attention.key.bias", "query.bias without key, expected query, key"),
            ("encoder.layernorm.bias", r"1 missing tensor \(norm.bias\) in the encoder"),
            ("predictor.embeddings.mask_tokens", "a predictor without an embedding or mask tokens"),
        ],
    )
    def test_without_a_tensor(self, removed, sentence, tmp_path):
        saved(tmp_path / "hf")
        file = tmp_path / "hf" / "model.safetensors"
        save_file({n: v for n, v in load_file(file).items() if n != removed}, file)
        with pytest.raises(UserError, match=sentence):
            open_weights(tmp_path / "hf")

    def test_with_a_tensor_that_nobody_knows(self, tmp_path):
        saved(tmp_path / "hf")
        file = tmp_path / "hf" / "model.safetensors"
        save_file(load_file(file) | {"surprise.weight": torch.ones(3)}, file)
        with pytest.raises(UserError, match=r"found 1 unknown tensor \(surprise.weight\)"):
            open_weights(tmp_path / "hf")
