"""The attentive classifier of four blocks, beside the one of `transformers`."""

import copy

import pytest
import torch

from tests.rounding.accuracy import ROUNDING, assert_accurate
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.models.block import NORM_EPS
from vjepa_fast.weights import load_exactly, probe_from_published, probe_to_transformers

# width, heads, blocks, clips, tokens
SHAPES = [(24, 1, 4, 2, 7), (48, 4, 4, 3, 12), (36, 3, 4, 1, 2), (32, 2, 1, 4, 9), (32, 2, 2, 2, 5)]


def make(width, heads, blocks, classes=5, norm_eps=NORM_EPS, seed=0):
    """A classifier whose biases, norms and query are as random as the rest."""
    generator = torch.Generator().manual_seed(seed)
    classifier = AttentiveClassifier(width, heads, classes, blocks, norm_eps)
    with torch.no_grad():
        for p in classifier.parameters():
            p.add_(torch.empty_like(p).normal_(std=0.1, generator=generator))
    return classifier


def as_transformers(classifier):
    """`VJEPA2ForVideoClassification` without an encoder, with these weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VJEPA2Config(
        hidden_size=classifier.width,
        num_attention_heads=classifier.heads,
        num_hidden_layers=0,
        num_pooler_layers=classifier.num_blocks - 1,
        layer_norm_eps=classifier.norm_eps,
        num_labels=classifier.linear.out_features,
        pred_hidden_size=12,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=0,
    )
    model = transformers.VJEPA2ForVideoClassification(config)
    state = probe_to_transformers(classifier.state_dict())
    missing, unknown = model.load_state_dict(state, strict=False)
    assert not unknown and {name.partition(".")[0] for name in missing} == {"vjepa2"}
    return torch.nn.Sequential(model.pooler, model.classifier)


@pytest.mark.parametrize(("width", "heads", "blocks", "clips", "tokens"), SHAPES, ids=str)
def test_logits_and_gradients_are_those_of_transformers(width, heads, blocks, clips, tokens):
    ours = make(width, heads, blocks)
    theirs = as_transformers(ours)
    x, weights = torch.randn(clips, tokens, width), torch.randn(clips, 5)
    logits, gradients = [], []
    for module in (ours, theirs, copy.deepcopy(theirs).double()):
        dtype = next(module.parameters()).dtype
        features = x.detach().to(dtype).requires_grad_()
        out = module(features)
        (out * weights.to(dtype)).sum().backward()
        logits.append(out.detach())
        own = module.linear if module is ours else module[1]
        gradients.append((features.grad, own.weight.grad))
        if module is ours:
            idle = [n for n, p in ours.named_parameters() if p.grad is None or not p.grad.any()]
            assert not idle
    assert (logits[0] - logits[1]).abs().max() < 1e-5
    assert_accurate(*logits)
    for found in zip(*gradients, strict=True):
        atol = 16 * ROUNDING * max(1.0, found[2].abs().max().item())
        assert_accurate(*found, factor=3.0, atol=atol)


def test_heads_and_eps_are_part_of_the_probe():
    """Why a probe with other ones than the encoder's cannot become one of `transformers`."""
    probe, x = make(48, 4, 4), 1e-3 * torch.randn(2, 6, 48)
    for heads, norm_eps in ((2, NORM_EPS), (4, 1e-5)):
        other = AttentiveClassifier(48, heads, 5, 4, norm_eps)
        other.load_state_dict(probe.state_dict())
        assert (other(x) - probe(x)).abs().max() > 1e-4


def test_a_clip_does_not_see_the_others():
    probe, x = make(24, 2, 4), torch.randn(3, 5, 24)
    exact = copy.deepcopy(probe).double()(x.double())
    assert_accurate(probe(x[1:2]), probe(x)[1:2], exact[1:2])


def test_output_projections_start_smaller_with_depth():
    torch.manual_seed(0)
    pooler = AttentiveClassifier(128, 4, 5, 4).pooler
    blocks = zip((*pooler.blocks, pooler.cross_attention_block), (1, 2, 3, 3), strict=True)
    for block, depth in blocks:
        assert block.mlp.fc2.weight.std().item() == pytest.approx(
            0.02 / (2 * depth) ** 0.5, rel=0.05
        )
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    one = AttentiveClassifier(128, 4, 5).pooler.cross_attention_block
    assert one.mlp.fc2.weight.std().item() == pytest.approx(0.02, rel=0.05)


def published(blocks):
    """Names and shapes of the public code's classifier for width 8, five classes."""
    block = {
        "norm1": (8,),
        "attn.qkv": (24, 8),
        "attn.proj": (8, 8),
        "norm2": (8,),
        "mlp.fc1": (32, 8),
        "mlp.fc2": (8, 32),
    }
    cross = {"norm1": (8,), "xattn.q": (8, 8), "xattn.kv": (16, 8), "norm2": (8,)}
    cross |= {"mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}
    layers = {f"pooler.cross_attention_block.{name}": shape for name, shape in cross.items()}
    for i in range(blocks - 1):
        layers |= {f"pooler.blocks.{i}.{name}": shape for name, shape in block.items()}
    layers["linear"] = (5, 8)
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    return {"pooler.query_tokens": (1, 1, 8)} | shapes


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("blocks", [1, 4])
def test_published_names_are_ours(blocks, prefix):
    probe = make(8, 2, blocks)
    own = {name: tuple(value.shape) for name, value in probe.state_dict().items()}
    assert own == published(blocks)
    state = {prefix + name: torch.randn(shape) for name, shape in published(blocks).items()}
    load_exactly(probe, probe_from_published(state), "probe")
    assert torch.equal(probe.linear.weight, state[prefix + "linear.weight"])


def test_a_probe_of_another_depth_is_rejected():
    state = {name: torch.randn(shape) for name, shape in published(4).items()}
    with pytest.raises(UserError, match=r"^probe: found 36 unknown names \['pooler.blocks.0.attn"):
        load_exactly(make(8, 2, 1), state, "probe")


@pytest.mark.parametrize(
    "name",
    ["linear", "head.weight", "pooler.blocks.0.norm3.weight", "pooler.blocks.xattn.q.weight"],
)
def test_names_of_no_classifier_are_not_converted(name):
    with pytest.raises(ValueError, match=rf"^probe: found {name}, expected the names"):
        probe_to_transformers({name: torch.zeros(6)})


@pytest.mark.parametrize("blocks", [0, -1])
def test_a_classifier_has_at_least_one_block(blocks):
    with pytest.raises(ValueError, match=rf"^blocks: found {blocks}, expected 1 or more"):
        AttentiveClassifier(8, 2, 5, blocks)
