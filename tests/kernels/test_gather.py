"""gather_tokens and apply_masks against loops."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa_fast.kernels import apply_masks, gather_tokens
from vjepa_fast.kernels.gather import gather_tokens_reference
from vjepa_fast.kernels.gather_backward import scatter_tokens_op

SHAPES = {
    "one": (1, 1, 1, 1),
    "odd": (3, 63, 5, 7),
    "more rows than tokens": (2, 5, 33, 3),
    "long": (1, 1000, 63, 2),
    "no rows": (2, 5, 0, 3),
    "no clips": (0, 5, 4, 3),
}
shapes = pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
index_dtypes = pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def make(shape, dtype=torch.float32, index_dtype=torch.int64, seed=0):
    b, n, k, d = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, n, d, generator=generator).to(dtype)
    return x, torch.randint(0, n, (b, k), generator=generator).to(index_dtype)


def gathered(x, index):
    """One row at a time."""
    out = torch.full((*index.shape, x.shape[2]), float("nan"), dtype=x.dtype)
    for b, row in enumerate(index.tolist()):
        for k, token in enumerate(row):
            out[b, k] = x[b, token]
    return out


def scattered(grad, index, n):
    """Gradient of `gathered`: every row added where it came from, first to last."""
    out = torch.zeros(grad.shape[0], n, grad.shape[2], dtype=grad.dtype)
    for b, row in enumerate(index.tolist()):
        for k, token in enumerate(row):
            out[b, token] += grad[b, k]
    return out


@shapes
@dtypes
@index_dtypes
def test_gather(shape, dtype, index_dtype):
    x, index = make(shape, dtype, index_dtype)
    out = gather_tokens(x.requires_grad_(), index)
    assert out.dtype == dtype
    assert torch.equal(out, gathered(x.detach(), index))
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, scattered(grad.float(), index, shape[1]).to(dtype))


@pytest.mark.parametrize("order", [1, 2], ids=["first derivative", "second derivative"])
def test_derivatives(order):
    x, index = make((2, 4, 6, 3))
    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    assert check(lambda x: gather_tokens(x, index), x.double().requires_grad_())


def test_strided_arguments():
    x, index = make((2, 8, 10, 6))
    grad = torch.randn(2, 6, 5).transpose(1, 2)[..., ::2]
    strided = torch.empty(2, 12, 8).transpose(1, 2)[..., ::2].copy_(x).requires_grad_()
    strided_index = index[:, ::2]
    assert not strided.is_contiguous() and not strided_index.is_contiguous()
    out = gather_tokens(strided, strided_index)
    assert torch.equal(out, gathered(x, strided_index))
    (gradient,) = torch.autograd.grad(out[..., ::2], strided, grad)
    expected = torch.zeros(2, 8, 6)
    expected[..., ::2] = scattered(grad, strided_index, 8)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (2, 1, 0)], ids=str)
def test_results_are_contiguous(order):
    x, index = make((3, 7, 9, 4))
    view = x.permute(order).contiguous().permute(order)  # each order is its own inverse
    assert not view.is_contiguous()
    out = gather_tokens(view, index)
    assert out.is_contiguous() and torch.equal(out, gathered(x, index))


def test_expanded_arguments():
    """One clip seen by several masks, and the gradient of a plain sum."""
    x, index = make((3, 7, 9, 4))
    one = x[:1].clone().requires_grad_()
    gather_tokens(one.expand(3, -1, -1), index).sum().backward()
    counts = torch.bincount(index.ravel(), minlength=7).float()
    assert torch.equal(one.grad, counts[None, :, None].expand(1, 7, 4))


@dtypes
def test_duplicates_add_up_in_order_every_time(dtype):
    x, index = make((4, 20, 900, 33), dtype)
    grad = torch.randn(4, 900, 33).to(dtype)
    out = gather_tokens(x.requires_grad_(), index)
    first, *others = (torch.autograd.grad(out, x, grad, retain_graph=True)[0] for _ in range(5))
    assert all(torch.equal(first, other) for other in others)
    assert torch.equal(first, scattered(grad.float(), index, 20).to(dtype))


def test_many_duplicates_in_half_precision():
    """A sum kept in bfloat16 would stop at 256."""
    x = torch.zeros(1, 2, 3, dtype=torch.bfloat16, requires_grad=True)
    gather_tokens(x, torch.zeros(1, 600, dtype=torch.int64)).sum().backward()
    assert x.grad[0].tolist() == [[600.0] * 3, [0.0] * 3]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_index(data):
    b, n, d = (data.draw(st.integers(1, 5)) for _ in range(3))
    k = data.draw(st.integers(0, 8))
    rows = st.lists(st.integers(0, n - 1), min_size=k, max_size=k)
    index = torch.tensor([data.draw(rows) for _ in range(b)], dtype=torch.int64).view(b, k)
    x = torch.arange(float(b * n * d)).view(b, n, d).requires_grad_()
    out = gather_tokens(x, index)
    assert torch.equal(out, gathered(x.detach(), index))
    grad = torch.arange(1.0, out.numel() + 1).view(out.shape)
    out.backward(grad)
    assert torch.equal(x.grad, scattered(grad, index, n))  # whole numbers: exact in any order


def test_apply_masks_concatenates_by_mask():
    x, first = make((2, 9, 4, 3))
    second = make((2, 9, 4, 3), seed=1)[1]
    out = apply_masks(x, [first, second])
    assert torch.equal(out, torch.cat([gathered(x, first), gathered(x, second)]))


def test_apply_masks_of_unequal_lengths():
    x, first = make((2, 9, 4, 3))
    second = make((2, 9, 1, 3), seed=1)[1]
    x.requires_grad_()
    out = apply_masks(x, [first, second], concat=False)
    assert [tuple(part.shape) for part in out] == [(2, 4, 3), (2, 1, 3)]
    assert torch.equal(out[1], gathered(x.detach(), second))
    sum(part.sum() for part in out).backward()
    ones = torch.ones(2, 5, 3)
    assert torch.equal(x.grad, scattered(ones, torch.cat([first, second], 1), 9))


MASKS = [make((2, 9, k, 3), seed=k)[1] for k in (4, 4, 1)]
GATHERS = {  # a call, and the masks of each of its results
    "gather_tokens": (lambda x: [gather_tokens(x, MASKS[0])], [MASKS[:1]]),
    "one mask": (lambda x: [apply_masks(x, MASKS[:1])], [MASKS[:1]]),
    "several masks": (lambda x: [apply_masks(x, MASKS[:2])], [MASKS[:2]]),
    "one mask, a list": (lambda x: apply_masks(x, MASKS[:1], concat=False), [MASKS[:1]]),
    "masks, a list": (lambda x: apply_masks(x, MASKS, concat=False), [[m] for m in MASKS]),
}


@pytest.mark.parametrize(("gather", "masks"), list(GATHERS.values()), ids=list(GATHERS))
def test_results_can_be_changed_in_place(gather, masks):
    """`y += positions`, as public code writes it, and what autograd keeps of one result is left
    alone by the next."""
    x = make((2, 9, 4, 3))[0].mul(8).round().requires_grad_()  # exact in any order
    plain = x.detach().clone().requires_grad_()
    loss, exact = 0.0, 0.0
    for part, group in zip(gather(x * 2), masks, strict=True):
        expected = torch.cat([gathered(plain.detach() * 2, mask) for mask in group])
        assert part.is_contiguous() and torch.equal(part, expected)
        part += 1
        loss = loss + part.square().sum()
        clips = torch.arange(2)[:, None]
        exact = exact + sum((plain[clips, mask] * 2 + 1).square().sum() for mask in group)
    assert loss == exact
    loss.backward(), exact.backward()
    assert torch.equal(x.grad, plain.grad)


def test_masks_may_be_an_iterator():
    x = make((2, 9, 4, 3))[0]
    assert torch.equal(apply_masks(x, iter(MASKS[:2])), apply_masks(x, MASKS[:2]))


@pytest.mark.parametrize(
    ("mask", "taken"),
    [
        (torch.tensor([6, 7, 8]), "clip 0"),
        (torch.tensor([[6, 7, 8]]), "clip 0"),
        (torch.tensor([[6, 7, 8], [1, 2, 3]]), "clips 0 to 1"),
    ],
    ids=["[K]", "[1, K]", "[2, K]"],
)
def test_a_mask_that_names_too_few_clips_is_refused(mask, taken):
    """facebookresearch/vjepa2's own tests pass [K]; the error says what that would have meant."""
    x = torch.arange(4 * 9 * 3.0).view(4, 9, 3)
    silent = torch.gather(x, 1, mask.unsqueeze(-1).repeat(1, 1, 3))  # as the public code
    assert torch.equal(silent, gathered(x[: len(silent)], mask.view(-1, 3)))  # no other clip's
    message = (
        rf"masks\[1\]: found shape {re.escape(str(tuple(mask.shape)))}, expected \[4, K\].*"
        rf" the tokens of {taken} alone\); pass mask\.expand\(4, -1\) .*torch\.stack"
    )
    for concat in (True, False):
        with pytest.raises(ValueError, match="^" + message):
            apply_masks(x, [torch.zeros(4, 3, dtype=torch.int64), mask], concat)


def test_what_the_error_of_too_few_clips_advises():
    x, index = make((4, 9, 3, 3))
    same, one_each = [index[0].expand(4, -1)], [torch.stack(list(index))]
    assert torch.equal(apply_masks(x, same), gathered(x, index[:1].repeat(4, 1)))
    assert torch.equal(apply_masks(x, one_each), gathered(x, index))


def test_a_token_outside_never_reaches_another_clip():
    """Not even where indices are not checked: the scatter, and the reference on CUDA."""
    for outside in (torch.tensor([[0], [-1]]), torch.tensor([[5], [0]])):
        with pytest.raises(IndexError):
            scatter_tokens_op(torch.ones(2, 3), [outside], 2, 5)
        for x in (torch.ones(2, 5, 3), torch.ones(5, 2, 3).transpose(0, 1)):
            with pytest.raises(IndexError):
                gather_tokens_reference(x, outside)


X = torch.zeros(2, 5, 3)
TOKENS = torch.zeros(2, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gather_tokens(X[0], TOKENS), r"x: found shape \(5, 3\), expected \[B, N, D\]"),
        (lambda: gather_tokens(X, TOKENS[0]), r"index: found shape \(4,\), expected \[2, K\]"),
        (lambda: gather_tokens(X, TOKENS[:1]), r"index: found shape \(1, 4\), expected \[2, K\]"),
        (
            lambda: gather_tokens(X, TOKENS.float()),
            r"index: found dtype torch.float32, expected int32 or int64",
        ),
        (
            lambda: gather_tokens(X, TOKENS.bool()),
            r"index: found dtype torch.bool, expected int32 or int64",
        ),
        (lambda: gather_tokens(X, [[0]]), r"index: found list, expected a tensor; pass torch"),
        (lambda: apply_masks(X, [TOKENS, 0]), r"masks\[1\]: found int, expected a tensor; pass"),
        (lambda: gather_tokens([[[0.0]]], TOKENS), r"x: found list, expected a tensor; pass torch"),
        (lambda: gather_tokens(X, TOKENS + 5), r"index: found entries 5 to 5, expected 0 to 4"),
        (lambda: gather_tokens(X, TOKENS - 1), r"index: found entries -1 to -1, expected 0 to 4"),
        (lambda: apply_masks(X, []), r"masks: found an empty list, expected at least one \[B, K\]"),
        (
            lambda: apply_masks(X, [TOKENS, TOKENS[:, :2]]),
            r"masks: found \[2, 4\] tokens a clip, expected one length; pass concat=False",
        ),
    ],
)
def test_rejected_arguments(call, message):
    with pytest.raises(ValueError, match="^" + message):
        call()
