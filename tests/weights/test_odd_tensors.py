"""Tensors that are stored in an unusual way are read as they are, or refused; never read wrong."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.weights.published_files import FIRST, SECOND, checkpoint, save, tiny
from tests.weights.test_refused import refused
from vjepa_fast.errors import UserError
from vjepa_fast.weights.open_file import open_weights

NORM = "module.backbone.norm.weight"
PROJ = "module.backbone.blocks.0.attn.proj.weight"


def written(change, tmp_path, second=False):
    content = checkpoint(second=second)
    change(content)
    return save(content, tmp_path / "a.pt")


class TestRead:
    def test_parameters(self, tmp_path):
        """As a state dict made with `keep_vars`, or from `named_parameters`, holds them."""
        state = {name: nn.Parameter(value) for name, value in tiny().encoder.state_dict().items()}
        found = open_weights(save(state, tmp_path / "a.pt"), **SECOND).state("encoder")
        assert not any(value.requires_grad for value in found.values())
        assert all(torch.equal(found[name], value) for name, value in state.items())

    @pytest.mark.parametrize(
        "store", [lambda x: x.t().contiguous().t(), lambda x: torch.stack([x, x], -1)[..., 0]]
    )
    def test_strided_tensors(self, store, tmp_path):
        def change(content):
            content["encoder"][PROJ] = store(content["encoder"][PROJ])

        found = open_weights(written(change, tmp_path), **FIRST).state("encoder")
        expected = checkpoint()["encoder"][PROJ]
        assert torch.equal(found["blocks.0.attn.proj.weight"], expected)

    def test_one_number_for_all(self, tmp_path):
        def change(content):
            content["encoder"][NORM] = torch.full((1,), 3.0).expand(24)

        found = open_weights(written(change, tmp_path), **FIRST).state("encoder")
        assert torch.equal(found["norm.weight"], torch.full((24,), 3.0))


class TestRefused:
    def test_numbers_too_large_for_fp32(self, tmp_path):
        def change(content):
            content["encoder"][NORM] = torch.full((24,), 1e39, dtype=torch.float64)

        found = open_weights(written(change, tmp_path), **FIRST)
        with pytest.raises(UserError, match=f"found NaN or infinity in encoder.{NORM}"):
            found.state("encoder")

    @pytest.mark.parametrize("store", [torch.Tensor.to_sparse, torch.Tensor.cfloat])
    def test_sparse_and_complex_tensors(self, store, tmp_path):
        def change(content):
            content["encoder"][NORM] = store(content["encoder"][NORM])

        assert f"found encoder.{NORM}, which is no dense" in refused(
            written(change, tmp_path), **FIRST
        )

    @pytest.mark.parametrize("shape", [(3, 2, 12), (36,), ()])
    def test_mask_tokens_of_another_shape(self, shape, tmp_path):
        def change(content):
            state = content["predictor"]
            for name in [name for name in state if "mask_tokens" in name]:
                del state[name]
            state["module.backbone.mask_tokens"] = torch.ones(shape)

        found = refused(written(change, tmp_path, second=True), **SECOND)
        assert "found a predictor without an embedding or mask tokens" in found

    @pytest.mark.parametrize(
        ("part", "name", "ours"),
        [
            ("encoder", "module.pos_embed", "pos_embed"),
            ("predictor", "mask_tokens.0", "mask_tokens.0"),
            ("target_encoder", "norm.bias", "norm.bias"),
        ],
    )
    def test_a_tensor_twice(self, part, name, ours, tmp_path):
        """Under two stacks of wrappers."""

        def change(content):
            own = next(n for n in content[part] if n.endswith(name.removeprefix("module.")))
            content[part][name] = content[part][own] * 2

        assert f"found {ours} of the {part} twice, again as {part}.{name}, expected" in refused(
            written(change, tmp_path), **FIRST
        )

    def test_a_pointer_of_git_lfs(self, tmp_path):
        """As a clone without LFS holds it for every large file."""
        file = tmp_path / "model.safetensors"
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
        assert refused(file).startswith(f"{file}: found a Git LFS pointer, expected the file")


class TestTransformers:
    def refused(self, tmp_path, change):
        transformers = pytest.importorskip("transformers")
        config = transformers.VJEPA2Config(
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=1,
            crop_size=16,
            patch_size=8,
            pred_hidden_size=12,
            pred_num_attention_heads=1,
            pred_num_hidden_layers=1,
        )
        transformers.VJEPA2Model(config).save_pretrained(tmp_path / "hf")
        file = tmp_path / "hf" / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        return refused(tmp_path / "hf")

    def test_query_and_value_of_other_shapes(self, tmp_path):
        """They have the right number of rows together."""

        def change(tensors):
            prefix = "encoder.layer.0.attention."
            query, value = tensors[f"{prefix}query.weight"], tensors[f"{prefix}value.weight"]
            tensors[f"{prefix}query.weight"] = query[:5].clone()
            tensors[f"{prefix}value.weight"] = torch.cat([query[5:], value])

        found = self.refused(tmp_path, change)
        assert "query.weight of shape (5, 12) beside " in found and "expected one shape" in found

    def test_a_bias_that_is_one_number(self, tmp_path):
        def change(tensors):
            tensors["encoder.layer.0.attention.key.bias"] = torch.tensor(1.0)

        assert "key.bias ()" in self.refused(tmp_path, change)


def test_a_checkpoint_of_v_jepa_2_1_with_both_averages(tmp_path):
    """Its distilled models have an average of their own beside the target encoder."""

    def change(content):
        content["ema_encoder"] = content["target_encoder"]
        content["encoder"]["module.backbone.norms_block.0.weight"] = torch.ones(24)

    found = refused(written(change, tmp_path, second=True), **SECOND)
    assert "found the encoder of V-JEPA 2.1, which is not supported yet" in found
