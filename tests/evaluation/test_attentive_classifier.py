"""The attentive classifier."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rounding.accuracy import ROUNDING, assert_accurate
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier, CrossAttention


def test_attentive_classifier():
    """Logits of each clip alone, whatever the order of its tokens; every weight takes part."""
    torch.manual_seed(0)
    classifier = AttentiveClassifier(width=24, heads=3, num_classes=5)
    tokens = torch.randn(4, 11, 24)
    logits = classifier(tokens)
    assert logits.shape == (4, 5)
    exact = copy.deepcopy(classifier).double()(tokens.double())
    assert_accurate(classifier(tokens[2:3]), logits[2:3], exact[2:3])
    assert_accurate(classifier(tokens[:, torch.randperm(11)]), logits, exact)
    assert not torch.allclose(classifier(tokens.roll(1, 2)), logits)
    logits.square().sum().backward()
    idle = [name for name, p in classifier.named_parameters() if not p.grad.abs().any()]
    assert not idle


def plain_attention(module: CrossAttention, query: Tensor, tokens: Tensor) -> Tensor:
    """The same attention with keys and values computed for every token."""
    heads = (-1, module.heads, query.shape[-1] // module.heads)
    q = module.q(query).unflatten(-1, heads[1:]).transpose(1, 2)
    key, value = module.kv(tokens).chunk(2, -1)
    k, v = (x.unflatten(-1, heads[1:]).transpose(1, 2) for x in (key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_cross_attention_equals_the_plain_form():
    """Output and gradients, for several queries and with biases that are not zero."""
    torch.manual_seed(0)
    module = CrossAttention(width=24, heads=3).double()
    query = torch.randn(4, 2, 24, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(4, 11, 24, dtype=torch.float64, requires_grad=True)
    inputs = [query, tokens, *module.parameters()]
    weights = torch.randn(4, 2, 24, dtype=torch.float64)
    outputs = [module(query, tokens), plain_attention(module, query, tokens)]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in outputs]
    torch.testing.assert_close(*gradients)


def test_cross_attention_in_fp32_is_as_accurate_as_the_plain_form():
    torch.manual_seed(0)
    module = CrossAttention(width=24, heads=3)
    query, tokens, weights = torch.randn(4, 2, 24), torch.randn(4, 11, 24), torch.randn(4, 2, 24)
    wide = copy.deepcopy(module).double()
    outputs, gradients = [], []
    for form, own, dtype in (
        (CrossAttention.__call__, module, torch.float32),
        (plain_attention, module, torch.float32),
        (plain_attention, wide, torch.float64),
    ):
        q, t = (x.to(dtype).requires_grad_() for x in (query, tokens))
        out = form(own, q, t)
        outputs.append(out.detach())
        loss = (out * weights.to(dtype)).sum()
        gradients.append(torch.autograd.grad(loss, [q, t, *own.parameters()]))
    assert_accurate(*outputs)
    for ours, torchs, exact in zip(*gradients, strict=True):
        # The gradient of the keys' biases is zero: all that is there is rounding.
        atol = 16 * ROUNDING * max(1.0, exact.abs().max().item())
        assert_accurate(ours, torchs, exact, factor=3.0, atol=atol)
