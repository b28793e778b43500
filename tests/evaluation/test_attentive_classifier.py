"""The attentive classifier."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rounding.accuracy import assert_accurate
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
