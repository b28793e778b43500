"""rotate_queries_keys against a matrix for each row, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rounding.accuracy import assert_accurate
from tests.rounding.rotary import FORMS, GRIDS, HEAD_DIMS, matrices, plain, rotated
from vjepa_fast.kernels import rotate_queries_keys, rotate_queries_keys_
from vjepa_fast.kernels.rope import axis_width, rotate_queries_keys_op

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
forms = pytest.mark.parametrize("form", FORMS)


def make(rows, grid, head_dim, dtype=torch.float32, heads=2):
    generator = torch.Generator().manual_seed(0)
    size = grid[0] * grid[1] * grid[2]
    qkv = torch.randn(rows, 3, heads, head_dim, generator=generator).to(dtype)
    return qkv, torch.randint(0, size, (rows,), generator=generator)


def check(qkv, tokens, grid, form):
    qkv.requires_grad_()
    out = rotate_queries_keys(qkv, tokens, grid, form)
    maps = matrices(tokens, grid, qkv.shape[-1], form)
    x = qkv.detach()
    assert_accurate(out.detach(), plain(x, tokens, grid, form), rotated(x, maps))
    assert torch.equal(out[:, 2], x[:, 2])
    kept = 3 * axis_width(qkv.shape[-1])
    assert torch.equal(out[..., kept:], x[..., kept:])
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    (found,) = torch.autograd.grad(out, qkv, grad)
    exact = rotated(grad, maps.transpose(1, 2))
    assert_accurate(found, plain(grad, tokens, grid, form, transposed=True), exact, factor=3)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@forms
def test_values_and_gradients(head_dim, grid, form):
    check(*make(63, grid, head_dim), grid, form)


@pytest.mark.parametrize("rows", [0, 1, 63, 1000])
@dtypes
@forms
def test_rows_and_dtypes(rows, dtype, form):
    check(*make(rows, GRIDS[1], 24, dtype, heads=3), GRIDS[1], form)


@dtypes
@forms
def test_rounded_once(dtype, form):
    """Arithmetic is fp32."""
    qkv, tokens = make(63, GRIDS[0], 64, dtype)
    wide = rotate_queries_keys(qkv.float(), tokens, GRIDS[0], form)
    assert torch.equal(rotate_queries_keys(qkv, tokens, GRIDS[0], form), wide.to(dtype))


@forms
def test_derivatives_of_float64(form):
    qkv, tokens = make(3, GRIDS[1], 7, torch.float64, heads=1)
    qkv.requires_grad_()
    assert torch.autograd.gradcheck(rotate_queries_keys, (qkv, tokens, GRIDS[1], form))
    assert torch.autograd.gradgradcheck(rotate_queries_keys, (qkv, tokens, GRIDS[1], form))


def test_channels_of_an_axis():
    widths = {64: 20, 80: 26, 32: 10, 24: 8, 88: 28, 104: 34, 12: 4, 11: 2, 6: 2, 5: 0, 1: 0}
    assert {d: axis_width(d) for d in widths} == widths


@forms
def test_heads_too_narrow_to_rotate_stay(form):
    qkv, tokens = make(63, GRIDS[0], 5)
    assert torch.equal(rotate_queries_keys(qkv, tokens, GRIDS[0], form), qkv)


@forms
def test_the_input_is_not_changed(form):
    qkv, tokens = make(63, GRIDS[0], 24)
    before = qkv.clone()
    rotate_queries_keys(qkv, tokens, GRIDS[0], form).zero_()
    assert torch.equal(qkv, before)


@forms
def test_memory_that_begins_at_an_odd_place(form):
    qkv, tokens = make(63, GRIDS[1], 24)
    odd = torch.cat([torch.zeros(1), qkv.flatten()])[1:].view_as(qkv)
    assert odd.storage_offset() == 1
    expected = rotate_queries_keys(qkv, tokens, GRIDS[1], form)
    assert torch.equal(rotate_queries_keys_(odd, tokens, GRIDS[1], form), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@dtypes
@forms
def test_in_place_to_the_same_bits(head_dim, dtype, form, mode):
    qkv, tokens = make(63, GRIDS[0], head_dim, dtype)
    expected = rotate_queries_keys(qkv, tokens, GRIDS[0], form)
    with mode():
        own = qkv.clone()
        out = rotate_queries_keys_(own, tokens, GRIDS[0], form)
    assert out is own and torch.equal(out, expected)


def test_in_place_is_refused_where_autograd_would_record():
    qkv, tokens = make(5, GRIDS[0], 24)
    qkv.requires_grad_()
    with pytest.raises(ValueError, match=r"^qkv: found requires_grad=True, expected False where"):
        rotate_queries_keys_(qkv * 1, tokens, GRIDS[0])
    with torch.no_grad():
        expected = rotate_queries_keys(qkv, tokens, GRIDS[0])
        assert torch.equal(rotate_queries_keys_(qkv, tokens, GRIDS[0]), expected)


def test_autograd_knows_of_the_change():
    """What an earlier function saved for its backward must not be overwritten unnoticed."""
    qkv, tokens = make(5, GRIDS[0], 24)
    weight = torch.ones(24, requires_grad=True)
    product = qkv * weight
    rotate_queries_keys_(qkv, tokens, GRIDS[0])
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        product.sum().backward()


def test_in_place_refuses_other_memory_and_changes_nothing_on_errors():
    qkv, tokens = make(5, GRIDS[0], 24)
    before = qkv.clone()
    with pytest.raises(ValueError, match=r"^qkv: found strides \(24, 240, 120, 1\), expected cont"):
        rotate_queries_keys_(torch.zeros(3, 2, 5, 24).permute(2, 0, 1, 3), tokens, GRIDS[0])
    with pytest.raises(ValueError, match=r"^tokens: found entries"):
        rotate_queries_keys_(qkv, tokens + 10**6, GRIDS[0])
    with pytest.raises(ValueError, match=r"^form: found 'rope'"):
        rotate_queries_keys_(qkv, tokens, GRIDS[0], "rope")
    assert torch.equal(qkv, before)


@forms
def test_the_length_only_bounds_the_tokens(form):
    qkv, tokens = make(63, (2, 5, 7), 24)
    short = rotate_queries_keys(qkv, tokens, (2, 5, 7), form)
    assert torch.equal(short, rotate_queries_keys(qkv, tokens, (32, 5, 7), form))


@dtypes
@forms
def test_any_strides(dtype, form):
    qkv, tokens = make(63, GRIDS[0], 24, dtype)
    expected = rotate_queries_keys(qkv, tokens, GRIDS[0], form)
    strided = qkv.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).requires_grad_()
    pairs = torch.stack([tokens, tokens], 1)[:, 0].int()
    out = rotate_queries_keys(strided, pairs, GRIDS[0], form)
    assert out.is_contiguous() and torch.equal(out, expected)
    grad = torch.randn(out.shape).to(dtype)
    for other in (grad.transpose(0, 3).contiguous().transpose(0, 3), grad[:1].expand_as(grad)):
        (found,) = torch.autograd.grad(out, strided, other, retain_graph=True)
        (exact,) = torch.autograd.grad(out, strided, other.contiguous(), retain_graph=True)
        assert torch.equal(found, exact)


def products(grid, first, second, form, q, k):
    """q · k with the query at token `first` and the key at token `second`, and both norms."""
    qkv = torch.stack([q, k, k]).double()[None, :, None].repeat(2, 1, 1, 1)
    out = rotate_queries_keys(qkv, torch.tensor([first, second]), grid, form)
    q, k = out[0, 0, 0], out[1, 1, 0]
    return q @ k, q.norm(), k.norm()


GRID = (6, 7, 9)
place = st.tuples(*(st.integers(0, size - 1) for size in GRID))


@settings(max_examples=50, deadline=None)
@given(place, place, place, st.sampled_from(HEAD_DIMS), st.integers(0, 2**30))
def test_a_rotation_keeps_lengths_and_sees_only_differences(first, second, shift, head_dim, seed):
    """The shifts that fit: both tokens moved by as much along each axis."""
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, head_dim, generator=generator, dtype=torch.float64)
    room = [
        min(move, size - 1 - max(a, b))
        for move, size, a, b in zip(shift, GRID, first, second, strict=True)
    ]

    def token(at):
        return (at[0] * GRID[1] + at[1]) * GRID[2] + at[2]

    def moved(at):
        return token([a + r for a, r in zip(at, room, strict=True)])

    here = products(GRID, token(first), token(second), "rotation", q, k)
    there = products(GRID, moved(first), moved(second), "rotation", q, k)
    largest = (q.norm() * k.norm()).item()
    assert abs(here[0] - there[0]) <= 1e-12 * largest
    for norm, original in zip(here[1:], (q, k), strict=True):
        assert abs(norm - original.norm()) <= 1e-12 * original.norm()


def test_tiled_angles_are_no_rotation():
    """The released weights need them; at a fixed difference of places q · k still varies."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 64, generator=generator, dtype=torch.float64)
    found = torch.tensor([products((1, 1, 32), x, x + 1, "tiled", q, k) for x in range(31)])
    assert found[:, 0].std() > 0.01 * q.norm() * k.norm()
    assert (found[:, 1] / q.norm() - 1).abs().max() > 0.05


@dtypes
def test_autocast_leaves_dtypes_alone(dtype):
    qkv, tokens = make(63, GRIDS[0], 24, dtype)
    qkv.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = rotate_queries_keys(qkv, tokens, GRIDS[0])
    assert torch.equal(out, rotate_queries_keys(qkv, tokens, GRIDS[0]))


def test_the_transpose_of_a_rotation_is_its_inverse():
    qkv, tokens = make(63, GRIDS[0], 24, torch.float64)
    there = rotate_queries_keys_op(qkv, tokens, list(GRIDS[0]), "rotation", False)
    back = rotate_queries_keys_op(there, tokens, list(GRIDS[0]), "rotation", True)
    torch.testing.assert_close(back, qkv, rtol=0, atol=1e-13)


X, S = torch.zeros(4, 3, 2, 12), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], S, (1, 2, 3)), r"qkv: found shape \(3, 2, 12\), expected \[rows, 3, heads, head_"),
        ((X[:, :2], S, (1, 2, 3)), r"qkv: found shape \(4, 2, 2, 12\), expected \[rows, 3, heads"),
        ((X, S[:3], (1, 2, 3)), r"tokens: found shape \(3,\), expected \[4\], one for each row"),
        ((X, S[None], (1, 2, 3)), r"tokens: found shape \(1, 4\), expected \[4\], one for each"),
        ((X.long(), S, (1, 2, 3)), "qkv: found dtype torch.int64, expected float64, float32"),
        ((X, S.float(), (1, 2, 3)), "tokens: found dtype torch.float32, expected int32 or int64"),
        ((X, [0, 0, 0, 0], (1, 2, 3)), "tokens: found list, expected a tensor; pass torch.as_t"),
        ((None, S, (1, 2, 3)), "qkv: found NoneType, expected a tensor; pass torch.as_tensor"),
        ((X, S, (2, 3)), r"grid: found \(2, 3\), expected \(T', H', W'\), each 1 or more; pass"),
        ((X, S, (1, 0, 3)), r"grid: found \(1, 0, 3\), expected \(T', H', W'\), each 1 or more"),
        ((X, S, (1, 2, 3), "rope"), 'form: found \'rope\', expected "tiled" or "rotation"; rel'),
        ((X, S + 6, (1, 2, 3)), "tokens: found entries 6 to 6, expected 0 to 5"),
        ((X, S - 1, (1, 2, 3)), "tokens: found entries -1 to -1, expected 0 to 5"),
    ],
)
def test_rejected_arguments(arguments, message):
    with pytest.raises(ValueError, match="^" + message):
        rotate_queries_keys(*arguments)
