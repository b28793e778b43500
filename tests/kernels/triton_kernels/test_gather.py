"""gather_tokens and apply_masks on Triton against their reference."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rounding.accuracy import assert_accurate
from vjepa_fast.kernels import apply_masks, gather_tokens
from vjepa_fast.kernels.gather import gather_tokens_op, gather_tokens_reference
from vjepa_fast.kernels.gather_backward import add_rows, scatter_tokens_op

SHAPES = {  # B, N, K, D
    "one token": (2, 1, 1, 24),
    "63 tokens": (2, 63, 40, 80),
    "64 tokens": (2, 64, 63, 384),
    "ViT-L": (1, 64, 20, 1024),
    "ViT-H": (1, 63, 20, 1280),
    "ViT-g": (1, 63, 20, 1408),
    "odd width": (3, 7, 5, 33),
    "1000 rows": (1, 1000, 600, 64),
}
EMPTY = {"no rows": (2, 5, 0, 3), "no clips": (0, 5, 4, 3), "no width": (2, 5, 4, 0)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def shapes(table):
    return pytest.mark.parametrize("shape", list(table.values()), ids=list(table))


def make(shape, device, dtype=torch.float32, index_dtype=torch.int64, unique=True, seed=0):
    b, n, k, d = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, n, d, generator=generator).to(device, dtype)
    if unique:
        rows = [torch.randperm(n, generator=generator)[:k] for _ in range(b)]
        index = torch.stack(rows) if rows else torch.zeros(b, k)
    else:
        index = torch.randint(0, n, (b, k), generator=generator)
    return x, index.to(device, index_dtype)


def scattered(grad, index, n):
    """What PyTorch gives for the gradient of one mask's gather, in the dtype of grad; on a CPU,
    where it adds in order."""
    b = len(index)
    rows = (n * torch.arange(b)[:, None] + index.cpu()).flatten()
    sums = add_rows(grad.flatten(0, 1).cpu(), rows, b * n)
    return sums.view(b, n, grad.shape[2]).to(grad.device)


@shapes(SHAPES | EMPTY)
@dtypes
def test_unique_tokens(device, shape, dtype):
    """A copy, forward and backward: exact."""
    x, index = make(shape, device, dtype)
    out = gather_tokens(x.requires_grad_(), index)
    assert torch.equal(out, gather_tokens_reference(x.detach(), index))
    grad = torch.randn(out.shape, device=device).to(dtype)
    out.backward(grad)
    assert torch.equal(x.grad, scattered(grad, index, shape[1]))


@shapes({"few": (2, 5, 33, 24), "many": (1, 3, 150, 80), "wide": (1, 8, 12, 1408)})
@dtypes
def test_duplicates_add_up(device, shape, dtype):
    x, index = make(shape, device, dtype, unique=False)
    out = gather_tokens(x.requires_grad_(), index)
    grad = torch.randn(out.shape, device=device).to(dtype)
    first, second = (torch.autograd.grad(out, x, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    exact = scattered(grad.double(), index, shape[1])
    assert_accurate(first, scattered(grad, index, shape[1]), exact, factor=3)
    assert torch.equal(first, scattered(grad.float(), index, shape[1]).to(dtype)), "not in order"


@dtypes
def test_int32_indices(device, dtype):
    x, index = make((2, 63, 40, 80), device, dtype, torch.int32, unique=False)
    out = gather_tokens(x.requires_grad_(), index)
    assert torch.equal(out, gather_tokens_reference(x.detach(), index))
    out.backward(torch.ones_like(out))
    assert torch.equal(x.grad, scattered(torch.ones_like(out), index, 63))


@pytest.mark.parametrize("repeat", [False, True], ids=["unique", "duplicates"])
def test_several_masks_of_unequal_lengths(device, repeat):
    x, first = make((3, 20, 7, 80), device, torch.bfloat16, unique=not repeat)
    second = make((3, 20, 18, 1), device, index_dtype=torch.int32, unique=not repeat, seed=1)[1]
    masks = [first, first[:, :0], second, second[:, 3:5]]
    out = apply_masks(x.requires_grad_(), masks, concat=False)
    for part, mask in zip(out, masks, strict=True):
        assert torch.equal(part, gather_tokens_reference(x.detach(), mask))
    grads = [torch.randn(part.shape, device=device).bfloat16() for part in out]
    (gradient,) = torch.autograd.grad(out, x, grads)
    tokens, rows = torch.cat(masks, 1), torch.cat(grads, 1)
    assert torch.equal(gradient, scattered(rows.float(), tokens, 20).bfloat16())


def test_masks_of_one_length_are_concatenated(device):
    x, first = make((2, 9, 4, 24), device)
    second = make((2, 9, 4, 24), device, seed=1)[1]
    expected = torch.cat([gather_tokens_reference(x, mask) for mask in (first, second)])
    assert torch.equal(apply_masks(x, [first, second]), expected)


@pytest.mark.parametrize("concat", [True, False])
def test_results_can_be_changed_in_place(device, concat):
    x, first = make((2, 9, 4, 24), device)
    masks = [first, make((2, 9, 4, 24), device, seed=1)[1]]
    parts = apply_masks(x.requires_grad_(), masks, concat)
    loss = 0.0
    for part in [parts] if concat else parts:
        part += 1
        loss = loss + part.square().sum()
    (gradient,) = torch.autograd.grad(loss, x)
    tokens = torch.cat(masks, 1)
    rows = 2 * (gather_tokens_reference(x.detach(), tokens) + 1)
    torch.testing.assert_close(gradient, scattered(rows, tokens, 9))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_strides_and_indices(device, data):
    """Transposed, sliced and expanded views; duplicates; tokens outside the clip."""
    b, n, k, d = (data.draw(st.integers(1, size)) for size in (3, 9, 9, 40))
    dtype = data.draw(st.sampled_from([*DTYPES, torch.float64]))
    index_dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    steps = [data.draw(st.integers(1, 3)) for _ in range(3)]
    order = data.draw(st.permutations(range(3)))
    whole = torch.randn([(b, n, d)[axis] * steps[axis] for axis in order]).to(device, dtype)
    x = whole.permute([order.index(axis) for axis in range(3)])
    x = x[:: steps[0], :: steps[1], :: steps[2]]
    if data.draw(st.booleans()):
        x = x[:1].expand(b, n, d)
    entries = st.integers(-2, n + 1) if data.draw(st.booleans()) else st.integers(0, n - 1)
    index = torch.tensor([[data.draw(entries) for _ in range(b)] for _ in range(k)])
    index = index.to(device, index_dtype).t()
    out = gather_tokens_op(x, [index]).view(b, k, d)
    inside = (index >= 0) & (index < n)
    expected = gather_tokens_reference(x, index.clamp(0, n - 1))
    expected[~inside] = float("nan")
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(), expected.nan_to_num())

    grad = torch.randn(d, b * k).to(device, dtype).t()
    if data.draw(st.booleans()):
        grad = grad[:1, :1].expand(b * k, d)
    counted = torch.where(inside.flatten()[:, None], grad, 0).view(b, k, d)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    exact = scattered(counted.to(sums), index.clamp(0, n - 1), n).to(dtype)
    assert torch.equal(scatter_tokens_op(grad, [index], b, n), exact)


@dtypes
def test_a_token_outside_the_clip_is_nan_and_gets_no_gradient(device, dtype):
    x, index = make((2, 6, 4, 24), device, dtype)
    index[0, 1], index[1, 2] = 6, -1  # of another clip, and before the first
    index[1, 3] = 2**40
    out = gather_tokens(x.requires_grad_(), index)
    outside = torch.tensor([[False, True, False, False], [False, False, True, True]])
    assert torch.equal(out.isnan(), outside[..., None].expand(2, 4, 24).to(device))
    out.backward(torch.ones_like(out))
    assert x.grad.float().sum().item() == 5 * 24


def test_the_switch_makes_it_an_error(device, monkeypatch):
    x, index = make((2, 6, 4, 24), device)
    monkeypatch.setenv("VJEPA_FAST_CHECK_INDEX", "1")
    with pytest.raises(ValueError, match=r"^index: found entries 6 to 6, expected 0 to 5"):
        gather_tokens(x, index * 0 + 6)
    with pytest.raises(ValueError, match=r"^masks\[1\]: found entries -1 to -1, expected 0 to 5"):
        apply_masks(x, [index, index * 0 - 1])


@pytest.mark.parametrize("order", [1, 2], ids=["first derivative", "second derivative"])
def test_derivatives(device, order):
    x, index = make((1, 3, 4, 2), device, torch.float64, unique=False)
    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    assert check(lambda x: gather_tokens(x, index), x.requires_grad_())


FAR = 2**30 + 8  # between neighbours, so that the third is more than 2^31 elements away


def spread(device, shape, strides):
    """A float16 tensor over memory that is mostly never touched, whatever its elements hold."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    x = torch.zeros(0, dtype=torch.float16, device=device)
    return x.set_(torch.UntypedStorage(2 * elements, device=device), 0, shape, strides)


def test_rows_more_than_2_31_elements_apart(device):
    x = spread(device, (1, 3, 8), (0, FAR, 1))
    for token in range(3):
        x[0, token] = token + 1
    index = torch.tensor([[2, 0, 1, 2]], device=device)
    assert gather_tokens(x, index)[0, :, 0].tolist() == [3, 1, 2, 3]


def test_columns_more_than_2_31_elements_apart(device):
    x = spread(device, (1, 5, 3), (0, 1, FAR))
    x.copy_(torch.arange(15).view(1, 5, 3))
    index = torch.tensor([[4, 0, 1, 4]], device=device)
    expected = torch.tensor([[12, 13, 14], [0, 1, 2], [3, 4, 5], [12, 13, 14]], device=device)
    assert torch.equal(gather_tokens(x, index)[0], expected.half())
    grad = spread(device, (4, 3), (1, FAR))
    grad.copy_(torch.arange(12).view(4, 3))
    sums = torch.tensor([[3, 4, 5], [6, 7, 8], [0, 0, 0], [0, 0, 0], [9, 11, 13]], device=device)
    assert torch.equal(scatter_tokens_op(grad, [index], 1, 5)[0], sums.half()), "one twice"
    once = scatter_tokens_op(grad[1:], [index[:, 1:]], 1, 5)[0]
    assert torch.equal(once[:4], sums[:4].half())
