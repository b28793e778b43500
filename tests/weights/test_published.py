"""Published weight names to ours and back; weights are loaded exactly or rejected."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.paths import GOLDEN
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.models.jepa import build_vjepa
from vjepa_fast.weights import (
    encoder_from_published,
    encoder_to_published,
    load_exactly,
    predictor_from_published,
    predictor_to_published,
    probe_from_published,
)


def golden(file, prefix):
    with np.load(GOLDEN / file) as data:
        names = [name for name in data.files if name.startswith(prefix)]
        return {name.removeprefix(prefix): torch.from_numpy(data[name]) for name in names}


def make(num_mask_tokens=2, depth=2):
    return build_vjepa(
        encoder={"width": 24, "depth": depth, "heads": 2},
        predictor={"width": 12, "depth": depth, "heads": 2},
        grid=(1, 2, 2),
        patch_size=4,
        tubelet_size=2,
        num_mask_tokens=num_mask_tokens,
        seed=3,
    )


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "module.module.backbone."])
def test_names_of_published_checkpoints(prefix):
    """Of the golden files, only the position tables have no counterpart in our weights."""
    model = make()
    encoder = golden("multiblock_tiny.npz", "init/encoder/")
    predictor = golden("multiblock_tiny.npz", "init/predictor/")
    assert set(encoder) - set(encoder_to_published(model.encoder.state_dict())) == {
        "backbone.pos_embed"
    }
    assert set(predictor) - set(predictor_to_published(model.predictor.state_dict())) == {
        "backbone.predictor_pos_embed"
    }
    for published, from_published, ours in (
        (encoder, encoder_from_published, model.encoder),
        (predictor, predictor_from_published, model.predictor),
    ):
        renamed = {prefix + name.removeprefix("backbone."): v for name, v in published.items()}
        found = from_published(renamed)
        assert found.keys() == ours.state_dict().keys()
        name = "blocks.1.attn.qkv.weight"
        (source,) = (n for n in published if n.endswith(name))
        assert torch.equal(found[name], published[source])


@pytest.mark.parametrize("num_mask_tokens", [1, 2, 12])
def test_round_trip(num_mask_tokens):
    model = make(num_mask_tokens)
    with torch.no_grad():
        model.predictor.mask_tokens.normal_()
    encoder, predictor = model.encoder.state_dict(), model.predictor.state_dict()
    published = predictor_to_published(predictor)
    assert same(encoder_from_published(encoder_to_published(encoder)), encoder)
    assert same(predictor_from_published(published), predictor)
    tokens = {name: tuple(v.shape) for name, v in published.items() if "mask_tokens" in name}
    assert tokens == {f"backbone.mask_tokens.{i}": (1, 1, 12) for i in range(num_mask_tokens)}
    # a file may sort them as text: 0, 1, 10, 11, 2 …
    assert same(predictor_from_published(dict(sorted(published.items()))), predictor)


def test_a_published_state_is_loaded():
    target, source = make(), make()
    with torch.no_grad():
        for p in source.parameters():
            p.normal_()
    published = predictor_to_published(source.predictor.state_dict())
    load_exactly(target.predictor, predictor_from_published(published), "predictor")
    assert same(target.predictor.state_dict(), source.predictor.state_dict())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_probe(prefix):
    state = golden("attentive_probe.npz", "state/")
    width, classes = state["linear.weight"].shape[1], state["linear.weight"].shape[0]
    probe = AttentiveClassifier(width, 4, classes)
    renamed = {prefix + name: value for name, value in state.items()}
    load_exactly(probe, probe_from_published(renamed), "probe")
    assert torch.equal(probe.linear.weight, state["linear.weight"])
    unused = "pooler.cross_attention_block.xattn.proj."
    assert set(state) - set(probe.state_dict()) == {unused + "weight", unused + "bias"}


@pytest.mark.parametrize(
    ("kept", "found"),
    [(["0", "2"], r"\['0', '2'\]"), (["1"], r"\['1'\]"), (["0", "one"], r"\['0', 'one'\]")],
)
def test_mask_tokens_with_a_gap(kept, found):
    state = {f"backbone.mask_tokens.{i}": torch.zeros(1, 1, 12) for i in kept}
    with pytest.raises(UserError, match=rf"^predictor: found mask tokens {found}, expected \['0'"):
        predictor_from_published(state)


def test_an_unknown_name_is_kept():
    state = {"module.backbone.surprise": torch.zeros(1), "predictor_surprise.weight": torch.ones(1)}
    assert set(predictor_from_published(state)) == {"surprise", "predictor_surprise.weight"}
    assert set(encoder_from_published(state)) == {"surprise", "predictor_surprise.weight"}


def rejected(state):
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_exactly(module, state, "probe.safetensors")
    assert same(module.state_dict(), before)
    sentence = str(caught.value)
    assert "\n" not in sentence and ". " not in sentence
    assert sentence.endswith("; use the model section that these weights were trained with")
    return sentence.removesuffix("; use the model section that these weights were trained with")


STATE = {
    "0.weight": torch.ones(2, 3),
    "0.bias": torch.ones(2),
    "1.weight": torch.ones(2),
    "1.bias": torch.ones(2),
}


def test_missing_names():
    state = {name: value for name, value in STATE.items() if name != "0.bias"}
    assert rejected(state) == (
        "probe.safetensors: found 0 unknown names [] and 1 missing names ['0.bias'], expected "
        "exactly the names of Sequential"
    )


def test_unknown_names():
    """The message names at most three."""
    extra = {f"more.{i}": torch.zeros(1) for i in range(5)}
    assert "found 5 unknown names ['more.0', 'more.1', 'more.2'] and 0 missing names []" in (
        rejected(STATE | extra)
    )


def test_nothing_to_load():
    assert "4 missing names ['0.bias', '0.weight', '1.bias']" in rejected({})


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3)], ids=str)
def test_other_shapes(shape):
    assert rejected(STATE | {"0.weight": torch.zeros(shape)}) == (
        f"probe.safetensors: found 0.weight of shape {shape}, expected (2, 3)"
    )


def test_a_shallower_model_is_rejected():
    deep, shallow = make(depth=3), make(depth=2)
    with pytest.raises(UserError, match=r"^encoder: found 12 unknown names \['blocks\.2\.attn"):
        load_exactly(shallow.encoder, deep.encoder.state_dict(), "encoder")
    with pytest.raises(
        UserError, match=r"found mask_tokens of shape \(3, 12\), expected \(2, 12\)"
    ):
        load_exactly(shallow.predictor, make(3).predictor.state_dict(), "predictor")
