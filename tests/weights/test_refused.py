"""Whatever is no file of V-JEPA is refused in one sentence that names what was found."""

import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.weights.published_files import FIRST, SECOND, checkpoint, golden_checkpoint, save, tiny
from vjepa_fast.errors import UserError
from vjepa_fast.weights import encoder_to_published, predictor_to_published
from vjepa_fast.weights.open_file import open_weights

RAN = "/tmp/vjepa_fast_a_pickle_ran"


class Harm:
    """Unpickled by an ordinary loader, this runs a command."""

    def __reduce__(self):
        return os.system, (f"touch {RAN}",)


def refused(path, **options):
    """The sentence of the error."""
    with pytest.raises(UserError) as caught:
        open_weights(path, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence and "; " in sentence and ", expected " in sentence
    assert not sentence.endswith(".") and len(sentence) < 600
    return sentence


def of_another_kind(path, **options):
    found = refused(path, **options).removeprefix(f"{path}: found ")
    assert found.endswith(".safetensors file, or a folder of transformers; name one")
    return found.partition(", expected the weights of V-JEPA or V-JEPA 2")[0]


class TestPickles:
    @pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
    def test_one_that_wants_to_run_code_is_named(self, legacy, tmp_path):
        file = save(checkpoint() | {"config": Harm()}, tmp_path / "a.pth.tar", legacy=legacy)
        sentence = refused(file, **FIRST)
        assert sentence.startswith(f"{file}: found a pickle that wants to call posix.system, ")
        assert not os.path.exists(RAN)

    @pytest.mark.parametrize("protocol", [2, 4])
    def test_a_plain_pickle(self, protocol, tmp_path):
        (tmp_path / "a.pt").write_bytes(pickle.dumps({"encoder": Harm()}, protocol))
        assert "a pickle that wants to call posix.system" in refused(tmp_path / "a.pt")
        assert not os.path.exists(RAN)

    def test_a_whole_module(self, tmp_path):
        file = save(nn.Linear(2, 2), tmp_path / "a.pt")
        assert "wants to call torch.nn.modules.linear.Linear, expected tensors" in refused(file)

    def test_a_program(self, tmp_path):
        # In a process of its own: what other tests left in this one has made torch.jit.save fail.
        program = "torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), sys.argv[1])"
        subprocess.run(
            [sys.executable, "-c", f"import sys, torch; {program}", tmp_path / "a.pt"], check=True
        )
        assert of_another_kind(tmp_path / "a.pt") == "a TorchScript program"


class TestDamaged:
    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    @pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
    def test_a_truncated_file(self, legacy, kept, tmp_path):
        file = save(checkpoint(), tmp_path / "a.pth.tar", legacy=legacy)
        os.truncate(file, int(kept * file.stat().st_size))
        sentence = refused(file, **FIRST)
        assert sentence.startswith(f"{file}: found a damaged file (")
        assert sentence.endswith("), expected a whole one; copy or download it again")

    @pytest.mark.parametrize("kept", [0.001, 0.5, 0.99])
    def test_truncated_safetensors(self, kept, tmp_path):
        file = tmp_path / "a.safetensors"
        save_file(tiny().encoder.state_dict(), file)
        os.truncate(file, int(kept * file.stat().st_size))
        assert "found a damaged file (" in refused(file, **SECOND)

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "a.pt").touch()
        assert of_another_kind(tmp_path / "a.pt") == "an empty file"

    @pytest.mark.parametrize("text", ["hello\n", "<html>404 Not Found</html>", "the", "{}\n"])
    def test_a_text(self, text, tmp_path):
        (tmp_path / "a.pt").write_text(text)
        assert of_another_kind(tmp_path / "a.pt") == "a file of another kind"

    def test_a_zip_archive(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("read.me", "hello")
        assert of_another_kind(tmp_path / "a.pt") == "a zip archive of other files"

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("part", ["encoder", "predictor", "target_encoder"])
    def test_numbers_that_are_not_finite(self, part, value, tmp_path):
        content = checkpoint(second=True)
        name = next(name for name in content[part] if name.endswith("blocks.0.norm1.bias"))
        content[part][name][3] = value
        file = save(content, tmp_path / "a.pt")
        found = open_weights(file, **SECOND)
        with pytest.raises(UserError) as caught:
            found.state(part)
        assert str(caught.value) == (
            f"{file}: found NaN or infinity in {part}.{name}, expected finite weights; use an "
            "earlier checkpoint of that training"
        )

    def test_the_optimizer_may_hold_anything(self, tmp_path):
        content = checkpoint()
        content["opt"]["state"][0]["exp_avg"].fill_(float("nan"))
        found = open_weights(save(content, tmp_path / "a.pt"), **FIRST)
        assert all(value.isfinite().all() for value in found.state("encoder").values())


class TestOtherModels:
    def test_a_network_for_images(self, tmp_path):
        state = {"conv1.weight": torch.ones(4, 3, 7, 7), "layer1.0.bn1.weight": torch.ones(4)}
        assert refused(save(state, tmp_path / "resnet.pth")).startswith(
            f"{tmp_path}/resnet.pth: found tensors of another model (conv1.weight, "
            "layer1.0.bn1.weight), expected the encoder of V-JEPA, with patch_embed.proj.weight"
        )

    @pytest.mark.parametrize("extra", [{}, {"cls_token": torch.ones(1, 1, 24)}])
    def test_a_vision_transformer_for_images(self, extra, tmp_path):
        """As I-JEPA and timm have it."""
        state = tiny().encoder.state_dict() | {"pos_embed": torch.ones(1, 9, 24)} | extra
        state["patch_embed.proj.weight"] = torch.ones(24, 3, 8, 8)
        sentence = refused(save({"encoder": state}, tmp_path / "ijepa.pth.tar"), **SECOND)
        assert "found a patch embedding of images, of shape (24, 3, 8, 8), as I-JEPA" in sentence

    def test_a_class_token(self, tmp_path):
        state = tiny().encoder.state_dict() | {"cls_token": torch.ones(1, 1, 24)}
        sentence = refused(save(state, tmp_path / "a.pt"), **SECOND)
        assert "found 1 unknown tensor (cls_token) in the encoder, expected exactly" in sentence

    def test_biases_of_queries_and_values_alone(self, tmp_path):
        """As VideoMAE has them."""
        state = tiny().encoder.state_dict()
        for block in range(2):
            bias = state.pop(f"blocks.{block}.attn.qkv.bias")
            state |= {f"blocks.{block}.attn.{k}_bias": bias[:24].clone() for k in "qv"}
        sentence = refused(save(state, tmp_path / "videomae.pth"), **SECOND)
        assert "found 4 unknown tensors (blocks.0.attn.q_bias, blocks.0.attn.v_bias, " in sentence
        assert "and 2 missing tensors (blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias)" in sentence

    @pytest.mark.parametrize(
        ("part", "name", "model"),
        [
            ("encoder", "norms_block.0.weight", "V-JEPA 2.1"),
            ("encoder", "patch_embed_img.proj.weight", "V-JEPA 2.1"),
            ("encoder", "video_mod_embed", "V-JEPA 2.1"),
            ("predictor", "predictor_proj_context.weight", "V-JEPA 2.1"),
            ("predictor", "action_encoder.weight", "V-JEPA 2-AC"),
        ],
    )
    def test_relatives_are_named(self, part, name, model, tmp_path):
        content = checkpoint(second=True)
        content[part][f"module.backbone.{name}"] = torch.ones(4)
        sentence = refused(save(content, tmp_path / "a.pt"), **SECOND)
        assert f"found the {part} of {model}, which is not supported yet, expected" in sentence

    @pytest.mark.parametrize("key", ["classifier", "classifiers"])
    def test_a_probe(self, key, tmp_path):
        state = {"module.linear.weight": torch.ones(4, 4)}
        content = {key: [state] if key == "classifiers" else state, "epoch": 3}
        assert of_another_kind(save(content, tmp_path / "p.pt")) == "the weights of a probe"

    def test_a_predictor_alone(self, tmp_path):
        state = predictor_to_published(tiny().predictor.state_dict())
        assert of_another_kind(save(state, tmp_path / "p.pt")) == "a predictor alone"

    def test_no_tensors(self, tmp_path):
        found = of_another_kind(save({"epoch": 3, "lr": 0.1}, tmp_path / "p.pt"))
        assert found == "no tensors, only epoch, lr"

    def test_a_tensor(self, tmp_path):
        assert of_another_kind(save(torch.ones(3), tmp_path / "p.pt")) == "a Tensor"

    def test_no_such_file(self, tmp_path):
        assert of_another_kind(tmp_path / "a.pt") == "no such file or folder"

    def test_a_folder_of_nothing(self, tmp_path):
        assert of_another_kind(tmp_path) == "a folder without config.json and with no weights"

    def test_a_run_of_ours(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        found = of_another_kind(tmp_path)
        assert found == "a run or a checkpoint of vjepa_fast, which needs no import"


def changed(tmp_path, change, second=True):
    """A published checkpoint with a change to its content."""
    content = checkpoint(second=second)
    change(content)
    return save(content, tmp_path / "a.pt"), SECOND if second else FIRST


class TestIncomplete:
    def sentence(self, tmp_path, change, second=True):
        file, asked = changed(tmp_path, change, second)
        return refused(file, **asked).removeprefix(f"{file}: ")

    def test_a_gap_in_the_blocks(self, tmp_path):
        def change(content):
            state = content["encoder"]
            for name in [name for name in state if ".blocks.0." in name]:
                del state[name]

        assert self.sentence(tmp_path, change).startswith(
            "found the encoder without block 0, expected blocks numbered from 0"
        )

    def test_a_gap_in_the_mask_tokens(self, tmp_path):
        def change(content):
            del content["predictor"]["module.backbone.mask_tokens.0"]

        assert self.sentence(tmp_path, change).startswith("found the mask tokens 1, expected 0")

    def test_a_missing_tensor(self, tmp_path):
        def change(content):
            del content["target_encoder"]["module.backbone.norm.bias"]

        assert self.sentence(tmp_path, change).startswith(
            "found 1 missing tensor (norm.bias) in the target_encoder, expected exactly"
        )

    def test_a_target_encoder_of_another_shape(self, tmp_path):
        def change(content):
            state = content["target_encoder"]
            name = "module.backbone.blocks.1.mlp.fc2.weight"
            state[name] = torch.ones(24, 48)

        assert self.sentence(tmp_path, change).startswith(
            "found blocks.1.mlp.fc2.weight of shape (24, 48) in the target_encoder, expected "
            "(24, 96), as the other weights have it"
        )

    def test_a_deeper_target_encoder(self, tmp_path):
        def change(content):
            state = content["target_encoder"]
            for name in [name for name in state if ".blocks.1." in name]:
                state[name.replace(".blocks.1.", ".blocks.2.")] = state[name]

        found = self.sentence(tmp_path, change)
        assert found.startswith("found 12 unknown tensors (blocks.2.norm1.weight, blocks.2.")
        assert "and 7 more) in the target_encoder, expected exactly" in found

    def test_a_parameter_twice(self, tmp_path):
        def change(content):
            content["encoder"]["norm.bias"] = torch.ones(24)

        assert "found norm.bias of the encoder twice" in self.sentence(tmp_path, change)

    def test_integers(self, tmp_path):
        def change(content):
            content["encoder"]["module.backbone.norm.bias"] = torch.ones(24, dtype=torch.int8)

        assert "found encoder.module.backbone.norm.bias, which is no dense tensor" in self.sentence(
            tmp_path, change
        )

    def test_a_number_among_the_tensors(self, tmp_path):
        def change(content):
            content["encoder"]["depth"] = 12

        assert self.sentence(tmp_path, change).startswith("found depth in encoder, which are no")

    def test_tensors_that_nobody_knows(self, tmp_path):
        def change(content):
            content["extra"] = {f"t{i}": torch.ones(1) for i in range(7)}

        assert self.sentence(tmp_path, change).startswith(
            "found 7 unknown tensors (extra.t0, extra.t1, extra.t2, extra.t3, extra.t4 and 2 more)"
        )

    def test_two_target_encoders(self, tmp_path):
        def change(content):
            content["ema_encoder"] = content["target_encoder"]

        assert self.sentence(tmp_path, change).startswith("found both target_encoder and ema_enc")


class TestTables:
    def sentence(self, tmp_path, change):
        return TestIncomplete.sentence(self, tmp_path, change, second=False)

    @pytest.mark.parametrize("part", ["encoder", "target_encoder"])
    def test_a_learned_one(self, part, tmp_path):
        def change(content):
            content[part]["module.backbone.pos_embed"] += 1e-3

        found = self.sentence(tmp_path, change)
        assert "found a position table" in found and "the fixed sine-cosine table" in found

    def test_one_of_other_clips_in_the_predictor(self, tmp_path):
        def change(content):
            state = content["predictor"]
            state["module.backbone.predictor_pos_embed"] = torch.ones(1, 32, 12)

        assert "differs from that of 2 x 3 x 3 tokens" in self.sentence(tmp_path, change)

    def test_one_of_another_width(self, tmp_path):
        def change(content):
            content["encoder"]["module.backbone.pos_embed"] = torch.ones(1, 18, 12)

        found = self.sentence(tmp_path, change)
        assert "of shape (1, 18, 12), expected [1, tokens, 24]" in found

    def test_one_in_the_encoders_alone(self, tmp_path):
        def change(content):
            del content["predictor"]["module.backbone.predictor_pos_embed"]

        assert "and none in the predictor, expected it in every part" in self.sentence(
            tmp_path, change
        )

    def test_another_clip_than_the_user_says(self, tmp_path):
        file = save(checkpoint(), tmp_path / "a.pt")
        for options, sentence in (
            ({"crop_size": 32}, "--crop-size: found 32, expected 24, since"),
            ({"num_frames": [8]}, "--num-frames: found 8, expected 4, since"),
        ):
            assert refused(file, **FIRST, **options).startswith(sentence)
        assert open_weights(file, **FIRST, crop_size=24, num_frames=[4]).crop_size == 24


class TestAsked:
    def test_all_at_once(self, tmp_path):
        file = save(checkpoint(second=True), tmp_path / "a.pt")
        assert refused(file) == (
            f"{file}: found weights that do not show the encoder's attention heads or the "
            "predictor's attention heads or the size of a clip or the frames of a clip, expected "
            "--heads --predictor-heads --crop-size --num-frames; give what they were trained with "
            "(released V-JEPA 2 models take 64 frames of 256 px, or of 384 px where their name "
            "says so)"
        )

    def test_only_what_is_missing(self, tmp_path):
        file = save(golden_checkpoint("multiblock_tiny.npz")[0], tmp_path / "a.pt")
        assert refused(file).endswith("expected --heads; give what they were trained with")

    @pytest.mark.parametrize(
        ("option", "sentence"),
        [
            ({"heads": 5}, "--heads: found 5 heads, expected a divisor of 24, the width of the"),
            ({"predictor_heads": 5}, "--predictor-heads: found 5 heads, expected a divisor of 12"),
            ({"crop_size": 20}, "--crop-size: found 20, expected a multiple of 8, since the pat"),
            ({"num_frames": [3]}, "--num-frames: found 3, expected a multiple of 2, since the tub"),
            ({"heads": 0}, "--heads: found 0, expected different numbers of at least 1"),
        ],
    )
    def test_impossible_numbers(self, option, sentence, tmp_path):
        file = save(checkpoint(second=True), tmp_path / "a.pt")
        assert refused(file, **SECOND | option).startswith(sentence)

    def test_a_bare_state_dict_of_published_names_in_safetensors(self, tmp_path):
        state = encoder_to_published(tiny().encoder.state_dict())
        save_file(state, tmp_path / "a.safetensors")
        assert open_weights(tmp_path / "a.safetensors", **SECOND).kind == "published"
