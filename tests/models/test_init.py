"""The initial weights, and the paper's models built on the meta device."""

import math

import pytest
import torch
from torch import nn

from tests.helpers.paths import REPOSITORY
from vjepa_fast.config import load_config
from vjepa_fast.config.model import build_model
from vjepa_fast.models.cost import encoder_parameters, predictor_parameters
from vjepa_fast.models.jepa import build_vjepa

CONFIGS = REPOSITORY / "configs"


def make(seed=0, **options):
    return build_vjepa(
        encoder={"width": 96, "depth": 3, "heads": 2},
        predictor={"width": 48, "depth": 4, "heads": 2},
        grid=(2, 3, 3),
        patch_size=8,
        tubelet_size=2,
        num_mask_tokens=2,
        seed=seed,
        **options,
    )


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def matrices(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv3d)]


def test_initial_weights():
    model = make()
    seen = {"predictor.mask_tokens"}
    assert torch.equal(weights(model)["predictor.mask_tokens"], torch.zeros(2, 48))
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
        elif isinstance(module, nn.Linear | nn.Conv3d):
            assert bool((module.bias == 0).all())
            draws = module.weight.detach().flatten() / 0.02
            error = 5 / math.sqrt(draws.numel())  # five standard errors of mean and std
            assert abs(draws.mean()) < error and abs(draws.std() - 1) < error
        else:
            continue
        seen |= {f"{name}.weight", f"{name}.bias"}
    assert seen == set(weights(model))
    every = torch.cat([m.weight.detach().flatten() for m in matrices(model)])
    assert every.std().item() == pytest.approx(0.02, rel=0.01)
    # normal, not uniform: 4.6 % beyond two sigma, and none beyond the truncation
    assert (every.abs() > 0.04).float().mean().item() == pytest.approx(0.0455, rel=0.1)
    assert every.abs().max() < 2


def test_depth_scaled_init_divides_the_output_projections():
    plain, scaled = weights(make()), weights(make(depth_scaled_init=True))
    divided = 0
    for name, value in plain.items():
        parts = name.split(".")
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            block = int(parts[parts.index("blocks") + 1]) + 1
            torch.testing.assert_close(scaled[name], value / math.sqrt(2 * block))
            divided += 1
        else:
            assert torch.equal(scaled[name], value), name
    assert divided == 2 * (3 + 4)


def test_the_seed_alone_decides():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = weights(make(seed=5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(7)
    again, other = weights(make(seed=5)), weights(make(seed=6))
    for name, value in first.items():
        assert torch.equal(value, again[name])
        constant = name.endswith("bias") or "norm" in name or "mask_tokens" in name
        assert torch.equal(value, other[name]) == constant, name


def test_the_target_encoder_does_not_depend_on_the_predictor():
    """Specs and predictor may change without changing the encoder that a seed gives."""
    one, two = make(), make()
    narrow = build_vjepa(
        encoder={"width": 96, "depth": 3, "heads": 2},
        predictor={"width": 24, "depth": 1, "heads": 1},
        grid=(2, 3, 3),
        patch_size=8,
        tubelet_size=2,
        num_mask_tokens=5,
    )
    for a, b, c in zip(*(m.encoder.parameters() for m in (one, two, narrow)), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("name", ["vitl16", "vith16", "vith16_384"])
def test_the_papers_configs_build_without_memory(name):
    config = load_config(CONFIGS / f"{name}.json")
    with torch.device("meta"):
        model = build_model(config)
    assert all(p.is_meta for p in model.parameters())
    encoder, shape = model.encoder, config.model.encoder
    count = {
        part: sum(p.numel() for p in module.parameters())
        for part, module in (("encoder", encoder), ("predictor", model.predictor))
    }
    patch = {"patch_size": 16, "tubelet_size": 2}
    width, depth = (1024, 24) if name == "vitl16" else (1280, 32)
    assert (shape.width, shape.depth, shape.heads) == (width, depth, 16)
    assert count["encoder"] == encoder_parameters(width=width, depth=depth, **patch)
    assert count["predictor"] == predictor_parameters(
        encoder_width=width, width=384, depth=12, num_mask_tokens=2
    )
    assert encoder.num_tokens == 8 * (24 * 24 if name == "vith16_384" else 14 * 14)
    heads = {b.attn.heads for b in (*encoder.blocks, *model.predictor.blocks)}
    assert heads == {16} and len(model.predictor.blocks) == 12
