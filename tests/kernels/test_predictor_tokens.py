"""predictor_tokens against loops."""

import pytest
import torch

from tests.rounding.accuracy import assert_accurate
from vjepa_fast.kernels import predictor_tokens

SHAPES = {  # Rc, N, M, P, R
    "one": (1, 1, 1, 1, 1),
    "odd": (13, 7, 3, 5, 63),
    "one spec": (40, 1000, 1, 2, 25),
    "no rows": (4, 3, 2, 5, 0),
    "no context": (0, 3, 2, 5, 9),
}
shapes = pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
index_dtypes = pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def make(shape, dtype=torch.float32, index_dtype=torch.int64):
    rows, n, specs, width, total = shape
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(rows, width, generator=generator).to(dtype)
    mask_tokens = torch.randn(specs, width, generator=generator).to(dtype)
    pos = torch.randn(n, width, generator=generator)
    source = torch.randint(0, rows + specs, (total,), generator=generator)
    position = torch.randint(0, n, (total,), generator=generator)
    return context, pos, mask_tokens, source.to(index_dtype), position.to(index_dtype)


def laid_out(context, pos, mask_tokens, source, position):
    """One row at a time, float64."""
    out = torch.full((len(source), context.shape[1]), float("nan"), dtype=torch.float64)
    for i, (s, p) in enumerate(zip(source.tolist(), position.tolist(), strict=True)):
        row = context[s] if s < len(context) else mask_tokens[s - len(context)]
        out[i] = row.double() + pos[p].double()
    return out


def gradients(grad, source, rows, specs, dtype=torch.float64):
    """Of `laid_out` in context and mask tokens, added up in this dtype."""
    pool = torch.zeros(rows + specs, grad.shape[1], dtype=dtype)
    for i, s in enumerate(source.tolist()):
        pool[s] += grad[i].to(dtype)
    return pool[:rows], pool[rows:]


def assert_gradients(found, grad, source, rows, specs):
    """As accurate as sums in fp32 that are rounded to the gradients' dtypes at the end."""
    plain, exact = (gradients(grad, source, rows, specs, t) for t in (torch.float, torch.double))
    for ours, low, high in zip(found, plain, exact, strict=True):
        assert_accurate(ours, low.to(ours.dtype), high)


@shapes
@dtypes
@index_dtypes
def test_values_and_gradients(shape, dtype, index_dtype):
    context, pos, mask_tokens, source, position = make(shape, dtype, index_dtype)
    context.requires_grad_(), mask_tokens.requires_grad_()
    out = predictor_tokens(context, pos, mask_tokens, source, position)
    assert out.dtype == dtype
    expected = laid_out(context.detach(), pos, mask_tokens.detach(), source, position)
    assert torch.equal(out, expected.float().to(dtype))
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    assert context.grad.dtype == mask_tokens.grad.dtype == dtype
    found = context.grad, mask_tokens.grad
    assert_gradients(found, grad, source, len(context), len(mask_tokens))


@dtypes
def test_the_sum_is_rounded_once(dtype):
    """Positions beside context: added in fp32, cast to the context's dtype at the end."""
    context, pos, mask_tokens, source, position = make((64, 64, 2, 33, 500), dtype)
    out = predictor_tokens(context, pos, mask_tokens, source, position)
    pool = torch.cat([context, mask_tokens]).float()
    assert torch.equal(out, (pool[source] + pos[position]).to(dtype))


def test_mask_tokens_of_another_dtype():
    context, pos, mask_tokens, source, position = make(SHAPES["odd"], torch.bfloat16)
    mask_tokens = (mask_tokens.float() * (1 + 2**-7 / 3)).requires_grad_()  # not bfloat16's numbers
    out = predictor_tokens(context, pos, mask_tokens, source, position)
    expected = laid_out(context, pos, mask_tokens.detach(), source, position)
    assert torch.equal(out, expected.float().bfloat16())
    grad = torch.randn(out.shape).bfloat16()
    out.backward(grad)
    assert mask_tokens.grad.dtype == torch.float32
    _, low = gradients(grad, source, 13, 3, torch.float)
    assert_accurate(mask_tokens.grad, low, gradients(grad, source, 13, 3)[1])


def test_a_mask_token_that_stands_in_thousands_of_rows():
    """Its gradient is summed in fp32: in bfloat16 it would stop at 256."""
    context, pos, mask_tokens, _, _ = make((1, 1, 2, 3, 0), torch.bfloat16)
    source = torch.tensor([1] * 3000 + [2] * 5)
    mask_tokens.requires_grad_()
    out = predictor_tokens(context, pos, mask_tokens, source, torch.zeros_like(source))
    out.backward(torch.ones_like(out))
    assert mask_tokens.grad.tolist() == [[float(torch.tensor(3000.0).bfloat16())] * 3, [5.0] * 3]


def test_backward_under_autocast():
    """Mask tokens' gradients are summed in fp32 there too."""
    context, pos, mask_tokens, source, position = make((13, 9, 3, 6, 400))
    mask_tokens.requires_grad_()
    out = predictor_tokens(context, pos, mask_tokens, source, position)
    grad = torch.randn(out.shape)
    with torch.autocast("cpu", torch.bfloat16):
        out.backward(grad)
    _, low = gradients(grad, source, 13, 3, torch.float)
    assert_accurate(mask_tokens.grad, low, gradients(grad, source, 13, 3)[1])


def test_strided_arguments():
    context, pos, mask_tokens, source, position = make((13, 9, 3, 6, 40))
    strided = [torch.stack([t, t + 1], -1)[..., 0] for t in (context, pos, mask_tokens)]
    pairs = [torch.stack([t, t], 1)[:, 0] for t in (source, position)]
    assert not any(t.is_contiguous() for t in (*strided, *pairs))
    leaves = [strided[0].detach().requires_grad_(), strided[2].detach().requires_grad_()]
    out = predictor_tokens(leaves[0], strided[1], leaves[1], *pairs)
    assert torch.equal(out, laid_out(context, pos, mask_tokens, source, position).float())
    grad = torch.randn(6, 40).t()
    assert_gradients(torch.autograd.grad(out, leaves, grad), grad, source, 13, 3)


def test_backward_is_the_same_every_time():
    context, pos, mask_tokens, source, position = make((20, 9, 2, 33, 2000))
    context.requires_grad_(), mask_tokens.requires_grad_()
    out = predictor_tokens(context, pos, mask_tokens, source, position)
    grad = torch.randn(out.shape)
    first, *others = (
        torch.autograd.grad(out, (context, mask_tokens), grad, retain_graph=True) for _ in range(5)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_positions_receive_no_gradient():
    context, pos, mask_tokens, source, position = make(SHAPES["odd"])
    context.requires_grad_(), pos.requires_grad_()
    predictor_tokens(context, pos, mask_tokens, source, position).sum().backward()
    assert pos.grad is None and context.grad is not None


C, P, M = torch.zeros(4, 6), torch.zeros(5, 6), torch.zeros(2, 6)
S = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (C[0], P, M, S, S),
            r"context, pos, mask_tokens: found shapes \(6,\), \(5, 6\) and \(2, 6\), expected ",
        ),
        (
            (C, P, M[None], S, S),
            r"context, pos, mask_tokens: found shapes \(4, 6\), \(5, 6\) and \(1, 2, 6\), expected",
        ),
        (
            (C, P[:, :4], M, S, S),
            r"context, pos, mask_tokens: found widths \(6, 4, 6\), expected one width",
        ),
        (
            (C, P, M, S, S[:2]),
            r"source, position: found shapes \(3,\) and \(2,\), expected \[R\] each",
        ),
        (
            (C, P, M, S[None], S[None]),
            r"source, position: found shapes \(1, 3\) and \(1, 3\), expected \[R\] each",
        ),
        ((C, P, M, [0, 1, 2], S), "source: found list, expected a tensor; pass torch.as_tensor"),
        ((C, P, None, S, S), "mask_tokens: found NoneType, expected a tensor; pass torch"),
        ((C, P, M, S + 6, S), "source: found entries 6 to 6, expected 0 to 5"),
        ((C, P, M, S - 1, S), "source: found entries -1 to -1, expected 0 to 5"),
        ((C, P, M, S, S + 5), "position: found entries 5 to 5, expected 0 to 4"),
        ((C, P, M, S.float(), S), "source: found dtype torch.float32, expected int32 or int64"),
        ((C, P, M, S, S.float()), "position: found dtype torch.float32, expected int32 or int64"),
    ],
)
def test_rejected_arguments(arguments, message):
    with pytest.raises(ValueError, match="^" + message):
        predictor_tokens(*arguments)
