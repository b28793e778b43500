"""The attentive classifier."""

import copy

import torch

from tests.rounding.accuracy import assert_accurate
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier


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
