"""rotate_queries_keys on Triton against a matrix for each row, in float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rounding.accuracy import ROUNDING, assert_accurate
from tests.rounding.rotary import FORMS, GRIDS, HEAD_DIMS, matrices, plain, rotated
from vjepa_fast.kernels import rotate_queries_keys, rotate_queries_keys_
from vjepa_fast.kernels.rope import axis_width, rotate_queries_keys_op

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
forms = pytest.mark.parametrize("form", FORMS)


def make(device, rows, grid, head_dim, dtype=torch.float32, heads=2):
    generator = torch.Generator().manual_seed(0)
    size = grid[0] * grid[1] * grid[2]
    qkv = torch.randn(rows, 3, heads, head_dim, generator=generator).to(device, dtype)
    return qkv, torch.randint(0, size, (rows,), generator=generator).to(device)


def check(qkv, tokens, grid, form):
    x = qkv.detach().requires_grad_()
    out = rotate_queries_keys(x, tokens, grid, form)
    maps = matrices(tokens, grid, qkv.shape[-1], form)
    assert_accurate(out.detach(), plain(qkv, tokens, grid, form), rotated(qkv, maps))
    assert torch.equal(out[:, 2], qkv[:, 2])
    kept = 3 * axis_width(qkv.shape[-1])
    assert torch.equal(out[..., kept:], qkv[..., kept:])
    wide = rotate_queries_keys(qkv.float(), tokens, grid, form)
    assert torch.equal(out, wide.to(out.dtype)), "not rounded once"
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    (found,) = torch.autograd.grad(out, x, grad)
    exact = rotated(grad, maps.transpose(1, 2))
    assert_accurate(found, plain(grad, tokens, grid, form, transposed=True), exact, factor=3)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@forms
def test_every_head_width(device, head_dim, form):
    check(*make(device, 5, GRIDS[0], head_dim), GRIDS[0], form)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@forms
def test_every_grid(device, grid, form):
    check(*make(device, 63, grid, 12), grid, form)


@pytest.mark.parametrize(
    ("rows", "heads", "head_dim"),
    [(1, 16, 64), (3, 22, 64), (63, 3, 24), (1000, 1, 12), (0, 2, 24), (5, 0, 24)],
    ids=str,
)
@dtypes
@forms
def test_shapes_and_dtypes(device, rows, heads, head_dim, dtype, form):
    check(*make(device, rows, GRIDS[0], head_dim, dtype, heads), GRIDS[0], form)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@dtypes
@forms
def test_in_place_to_the_same_bits(device, head_dim, dtype, form):
    qkv, tokens = make(device, 63, GRIDS[0], head_dim, dtype)
    expected = rotate_queries_keys(qkv, tokens, GRIDS[0], form)
    assert rotate_queries_keys_(qkv, tokens, GRIDS[0], form) is qkv
    assert torch.equal(qkv, expected)


def test_in_place_leaves_the_memory_of_values_alone(device):
    """Not even NaN of a token outside the grid reaches them, nor rows around the tensor."""
    qkv, tokens = make(device, 15, GRIDS[0], 24)
    whole = qkv.clone()
    rotate_queries_keys_(whole[1:14], tokens[1:14] * 0 - 1, GRIDS[0])
    assert whole[1:14, :2].isnan().all()
    assert torch.equal(whole[1:14, 2], qkv[1:14, 2])
    assert torch.equal(whole[[0, 14]], qkv[[0, 14]])


def test_float64_stays_float64(device):
    qkv, tokens = make(device, 13, GRIDS[0], 24, torch.float64)
    out = rotate_queries_keys(qkv, tokens, GRIDS[0])
    exact = rotated(qkv, matrices(tokens, GRIDS[0], 24, "tiled"))
    torch.testing.assert_close(out, exact, rtol=0, atol=1e-13)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_strides_and_tokens(device, data):
    """Permuted, sliced and expanded views; tokens outside the grid give NaN, values stay."""
    rows, heads, head_dim = (data.draw(st.integers(1, most)) for most in (9, 5, 40))
    grid = tuple(data.draw(st.integers(1, 5)) for _ in range(3))
    size, form = grid[0] * grid[1] * grid[2], data.draw(st.sampled_from(FORMS))
    dtype, step = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 3))
    order = data.draw(st.permutations(range(4)))
    shape = [(rows, 3, heads, head_dim * step)[axis] for axis in order]
    qkv = torch.randn(shape).permute(*(order.index(axis) for axis in range(4)))
    qkv = qkv[..., ::step].to(device, dtype)
    qkv = qkv[:1].expand(rows, -1, -1, -1) if data.draw(st.booleans()) else qkv
    entries = st.integers(-2, size + 1) if data.draw(st.booleans()) else st.integers(0, size - 1)
    tokens = torch.tensor([[data.draw(entries), 0] for _ in range(rows)], device=device)[:, 0]
    tokens = tokens.to(data.draw(st.sampled_from([torch.int32, torch.int64])))
    transposed = data.draw(st.booleans())

    out = rotate_queries_keys_op(qkv, tokens, list(grid), form, transposed)
    turned = 3 * axis_width(head_dim)
    outside = ((tokens < 0) | (tokens >= size))[:, None, None, None]
    lost = torch.zeros_like(out, dtype=torch.bool)
    lost[:, :2, :, :turned] = outside
    assert torch.equal(out.isnan(), lost)
    maps = matrices(tokens.clamp(0, size - 1), grid, head_dim, form)
    maps = maps.transpose(1, 2) if transposed else maps
    exact = rotated(qkv, maps).masked_fill(lost, torch.nan)
    torchs = plain(qkv, tokens.clamp(0, size - 1), grid, form, transposed)
    # A result may be a small difference of products, thus the scale is that of what is rotated.
    assert_accurate(out, torchs, exact, atol=16 * ROUNDING * qkv.float().abs().max().item())


def test_the_switch_makes_a_token_outside_an_error(device, monkeypatch):
    qkv, tokens = make(device, 13, (1, 2, 3), 24)
    monkeypatch.setenv("VJEPA_FAST_CHECK_INDEX", "1")
    with pytest.raises(ValueError, match=r"^tokens: found entries 6 to 6, expected 0 to 5"):
        rotate_queries_keys(qkv, tokens * 0 + 6, (1, 2, 3))
