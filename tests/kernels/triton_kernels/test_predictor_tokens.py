"""predictor_tokens on Triton against its reference."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rounding.accuracy import assert_accurate
from vjepa_fast.kernels import predictor_tokens
from vjepa_fast.kernels.predictor_tokens import (
    predictor_tokens_backward_op,
    predictor_tokens_backward_reference,
    predictor_tokens_op,
    predictor_tokens_reference,
)

SHAPES = {  # Rc, N, M, P, R
    "one row": (1, 1, 1, 24, 1),
    "63 rows": (40, 63, 2, 80, 63),
    "64 rows": (30, 64, 3, 384, 64),
    "wide": (20, 64, 2, 1024, 30),
    "1000 rows": (400, 64, 2, 48, 1000),
    "no context": (0, 3, 2, 33, 9),
    "no mask tokens": (9, 3, 0, 33, 9),
}
EMPTY = {"no rows": (4, 3, 2, 5, 0), "no width": (4, 3, 2, 0, 5)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def make(shape, device, dtype=torch.float32, index_dtype=torch.int64, repeat=False):
    """Every context row stands once (as far as there is room), the rest are mask tokens; with
    repeat anything stands anywhere."""
    rows, n, specs, width, total = shape
    generator = torch.Generator().manual_seed(0)

    def randn(*size):
        return torch.randn(*size, generator=generator).to(device)

    def draw(low, high, count):
        return torch.randint(low, high, (count,), generator=generator)

    if repeat:
        source = draw(0, rows + specs, total)
    else:
        others = draw(rows, rows + max(specs, 1), max(0, total - rows))
        source = torch.cat([torch.arange(min(rows, total)), others])
        source = source[torch.randperm(total, generator=generator)]
    position = draw(0, n, total)
    tables = randn(rows, width).to(dtype), randn(n, width), randn(specs, width).to(dtype)
    return *tables, source.to(device, index_dtype), position.to(device, index_dtype)


def exact_gradients(grad, source, rows, specs):
    pool = torch.zeros(rows + specs, grad.shape[1], dtype=torch.float64)
    pool.index_add_(0, source.long().cpu(), grad.double().cpu())
    return pool.to(grad.device).split([rows, specs])


def torchs_gradients(grad, source, rows, specs):
    """What PyTorch gives on a CPU, where it adds in order."""
    found = predictor_tokens_backward_reference(grad.cpu(), source.cpu(), rows, specs)
    return [gradient.to(grad.device) for gradient in found]


def check(arguments, grad):
    context, pos, mask_tokens, source, position = arguments
    leaves = [context.detach().requires_grad_(), mask_tokens.detach().requires_grad_()]
    out = predictor_tokens(leaves[0], pos, leaves[1], source, position)
    assert torch.equal(out, predictor_tokens_reference(*arguments)), "not rounded once"
    first, second = (torch.autograd.grad(out, leaves, grad, retain_graph=True) for _ in range(2))
    sizes = len(context), len(mask_tokens)
    torchs = torchs_gradients(grad, source, *sizes)
    exact = exact_gradients(grad, source, *sizes)
    for ours, again, low, high in zip(first, second, torchs, exact, strict=True):
        assert torch.equal(ours, again)
        assert_accurate(ours, low.to(ours.dtype), high, factor=3)


@pytest.mark.parametrize("shape", list((SHAPES | EMPTY).values()), ids=list(SHAPES | EMPTY))
@dtypes
def test_values_and_gradients(device, shape, dtype):
    check(make(shape, device, dtype), torch.randn(shape[4], shape[3]).to(device, dtype))


@pytest.mark.parametrize("shape", [(3, 64, 2, 48, 90), (0, 3, 2, 33, 9), (9, 3, 0, 33, 9)], ids=str)
@dtypes
def test_context_rows_that_stand_several_times(device, shape, dtype):
    arguments = make(shape, device, dtype, repeat=True)
    check(arguments, torch.randn(shape[4], shape[3]).to(device, dtype))


def test_int32_indices_and_mask_tokens_of_another_dtype(device):
    shape = SHAPES["63 rows"]
    context, pos, mask_tokens, *indices = make(shape, device, torch.bfloat16, torch.int32)
    mask_tokens = mask_tokens.float() * (1 + 2**-10)
    check((context, pos, mask_tokens, *indices), torch.randn(63, 80).to(device).bfloat16())


def test_a_mask_token_that_stands_in_thousands_of_rows(device):
    """Its gradient is summed in fp32: in bfloat16 it would stop at 256."""
    context, pos, mask_tokens, _, _ = make((1, 1, 2, 3, 0), device, torch.bfloat16)
    source = torch.tensor([1] * 3000 + [2] * 5, device=device)
    mask_tokens.requires_grad_()
    out = predictor_tokens(context, pos, mask_tokens, source, torch.zeros_like(source))
    out.backward(torch.ones_like(out))
    assert mask_tokens.grad.tolist() == [[float(torch.tensor(3000.0).bfloat16())] * 3, [5.0] * 3]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_strides_and_indices(device, data):
    """Transposed, sliced and expanded views; indices outside their range give NaN and nothing."""
    rows, n, specs, total = (data.draw(st.integers(1, 9)) for _ in range(4))
    width = data.draw(st.integers(1, 40))
    dtype = data.draw(st.sampled_from(DTYPES))

    def table(height):
        step, flip = data.draw(st.integers(1, 3)), data.draw(st.booleans())
        whole = torch.randn(*((width, height) if flip else (height, width * step)))
        view = (whole.t() if flip else whole[:, ::step]).to(device, dtype)
        return view[:1].expand(height, -1) if data.draw(st.booleans()) else view

    def indices(size):
        entries = (
            st.integers(-2, size + 1) if data.draw(st.booleans()) else st.integers(0, size - 1)
        )
        drawn = torch.tensor([[data.draw(entries), 0] for _ in range(total)], device=device)
        return drawn.to(data.draw(st.sampled_from([torch.int32, torch.int64])))[:, 0]

    context, pos, mask_tokens, grad = table(rows), table(n), table(specs), table(total)
    source, position = indices(rows + specs), indices(n)
    out = predictor_tokens_op(context, pos, mask_tokens, source, position)
    inside = (source >= 0) & (source < rows + specs) & (position >= 0) & (position < n)
    clamped = source.clamp(0, rows + specs - 1), position.clamp(0, n - 1)
    expected = predictor_tokens_reference(context, pos, mask_tokens, *clamped)
    assert torch.equal(out.isnan(), ~inside[:, None].expand_as(out))
    assert torch.equal(out[inside], expected[inside])

    known = (source >= 0) & (source < rows + specs)
    counted = torch.where(known[:, None], grad, 0)
    found = predictor_tokens_backward_op(grad, source, rows, specs)
    torchs = torchs_gradients(counted, clamped[0], rows, specs)
    exact = exact_gradients(counted, clamped[0], rows, specs)
    for ours, low, high in zip(found, torchs, exact, strict=True):
        assert_accurate(ours, low, high, factor=3)


def test_the_switch_makes_an_index_outside_an_error(device, monkeypatch):
    context, pos, mask_tokens, source, position = make(SHAPES["63 rows"], device)
    monkeypatch.setenv("VJEPA_FAST_CHECK_INDEX", "1")
    with pytest.raises(ValueError, match=r"^source: found entries 0 to 42, expected 0 to 41"):
        predictor_tokens(context, pos, mask_tokens, torch.where(source == 1, 42, source), position)
    with pytest.raises(ValueError, match=r"^position: found entries -1 to -1, expected 0 to 62"):
        predictor_tokens(context, pos, mask_tokens, source, position * 0 - 1)


def test_columns_more_than_2_31_elements_apart(device):
    """Memory that is mostly never touched: only these few elements are."""
    far = 2**30 + 8
    storage = torch.UntypedStorage(2 * (2 * far + 4), device=device)

    def spread(values):
        x = torch.zeros(0, dtype=torch.bfloat16, device=device)
        return x.set_(storage, 0, values.shape, (1, far)).copy_(values)

    plain = [torch.randn(rows, 3).to(device).bfloat16() for rows in (4, 4, 2)]
    source, position = torch.tensor([[4, 1, 0, 5], [2, 0, 1, 1]], device=device)
    for i in range(3):
        arguments = [spread(t) if i == j else t for j, t in enumerate(plain)]
        found = predictor_tokens_op(*arguments, source, position)
        assert torch.equal(found, predictor_tokens_reference(*plain, source, position))
    grad = spread(plain[0])
    for ours, exact in zip(
        predictor_tokens_backward_op(grad, source, 4, 2),
        exact_gradients(plain[0], source, 4, 2),
        strict=True,
    ):
        assert torch.equal(ours.double(), exact)
