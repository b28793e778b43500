"""Heads with stacked weights compute what each would alone."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.paths import REPOSITORY
from tests.rounding.accuracy import ROUNDING, assert_accurate
from vjepa_fast.evaluation.heads.spec import HeadSpec, ProbeForm, make_head
from vjepa_fast.evaluation.heads.stack import HeadStack
from vjepa_fast.weights import load_exactly, probe_from_published

GOLDEN = Path(REPOSITORY) / "tests/golden/attentive_probe.npz"
FORMS = [
    ProbeForm("attentive", 24, 3),
    ProbeForm("attentive", 24, 2, blocks=4, norm_eps=1e-6),
    ProbeForm("linear", 24),
]
SPECS = [
    HeadSpec("digit", 10, 0, 1.0, 1e-3, 0.01),
    HeadSpec("speed", 1, 0, 1.0, 1e-3, 0.01),
    HeadSpec("motion", 4, 1, 1.0, 1e-3, 0.01),
    HeadSpec("digit", 10, 1, 1.0, 1e-3, 0.01),
    HeadSpec("digit", 10, 0, 1.0, 3e-3, 0.01),
]


def make_stack(form, specs=SPECS, noise=0.1):
    """A stack whose biases, norms and queries are as random as the rest."""
    stack = HeadStack(form, specs, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(torch.empty_like(p).normal_(std=noise, generator=generator))
    return stack


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.kind} {form.blocks}")
def test_heads_start_as_they_would_alone(form):
    stack = HeadStack(form, SPECS, seed=3)
    for i, spec in enumerate(SPECS):
        alone = make_head(form, spec.outputs, 3 + spec.draw)
        found = stack.single(i).state_dict()
        assert found.keys() == alone.state_dict().keys()
        assert all(torch.equal(found[name], value) for name, value in alone.state_dict().items())
    first, other_draw, same_draw = (stack.single(i).linear.weight for i in (0, 3, 4))
    assert torch.equal(first, same_draw) and not torch.equal(first, other_draw)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.kind} {form.blocks}")
def test_outputs_and_gradients_are_those_of_each_head_alone(form):
    stack, tokens = make_stack(form), 3 + 2 * torch.randn(5, 11, 24)
    outputs = stack(tokens)
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "digit": (3, 5, 10),
        "speed": (1, 5, 1),
        "motion": (1, 5, 4),
    }
    ours = [outputs["digit"][0], outputs["speed"][0], outputs["motion"][0]]
    ours += [outputs["digit"][1], outputs["digit"][2]]
    weights = [torch.randn_like(x) for x in ours]
    sum((x * w).sum() for x, w in zip(ours, weights, strict=True)).backward()
    for i, (found, weight) in enumerate(zip(ours, weights, strict=True)):
        forms = stack.single(i), copy.deepcopy(stack.single(i)).double()
        plain = [form(tokens.to(form.linear.weight.dtype)) for form in forms]
        assert_accurate(found.detach(), *(x.detach() for x in plain))
        for out in plain:
            (out * weight.to(out.dtype)).sum().backward()
        stacked = stack.weights()
        for (name, p), exact in zip(
            forms[0].named_parameters(), forms[1].parameters(), strict=True
        ):
            own = stacked[name].grad[i]
            if name.startswith("linear."):
                assert not own[len(p) :].any()
                own = own[: len(p)]
            # Of a gradient that is zero, as the keys' biases', all that is there is rounding.
            atol = 64 * ROUNDING * max(1.0, exact.grad.abs().max().item())
            assert_accurate(own, p.grad, exact.grad, factor=3.0, atol=atol)


def test_features_in_half_precision_are_computed_in_fp32():
    stack, tokens = make_stack(FORMS[0]), torch.randn(2, 7, 24).bfloat16()
    outputs, expected = stack(tokens), stack(tokens.float())
    assert all(torch.equal(outputs[name], expected[name]) for name in outputs)


def test_published_classifier():
    """Logits of the published classifier, as one head of several."""
    with np.load(GOLDEN) as data:
        meta = json.loads(str(data["meta"]))
        state = {n[6:]: torch.from_numpy(data[n]) for n in data.files if n.startswith("state/")}
        features, logits = torch.from_numpy(data["features"]), torch.from_numpy(data["logits"])
    form = ProbeForm("attentive", meta["embed_dim"], meta["num_heads"])
    specs = [HeadSpec("a", meta["num_classes"], i, 1.0, 1e-3, 0.01) for i in range(3)]
    stack, golden = make_stack(form, specs), make_head(form, meta["num_classes"], 0)
    load_exactly(golden, probe_from_published(state), "state")
    with torch.no_grad():
        for name, value in golden.state_dict().items():
            stack.weights()[name][1] = value
        found = stack(features)["a"]
    assert (found[1] - logits).abs().max() < 1e-5  # the tolerance published with the file
    assert (found[0] - logits).abs().max() > 1e-3


def test_heads_of_a_target_have_the_same_outputs():
    specs = [HeadSpec("a", outputs, 0, 1.0, 1e-3, 0.01) for outputs in (2, 3)]
    with pytest.raises(ValueError, match=r"^specs: found \[\('a', 2\), \('a', 3\)\], expected"):
        HeadStack(FORMS[0], specs, 0)
    with pytest.raises(ValueError, match=r"^specs: found \[\], expected heads"):
        HeadStack(FORMS[0], [], 0)
