"""Ops that move or turn rows, as torch.library custom ops: opcheck, torch.compile, autocast."""

import pytest
import torch
from torch.library import opcheck

from vjepa_fast.kernels import (
    apply_masks,
    gather_tokens,
    predictor_tokens,
    rotate_queries_keys,
    rotate_queries_keys_,
)
from vjepa_fast.kernels.gather import gather_tokens_op
from vjepa_fast.kernels.gather_backward import scatter_tokens_op
from vjepa_fast.kernels.predictor_tokens import predictor_tokens_backward_op, predictor_tokens_op
from vjepa_fast.kernels.rope import rotate_queries_keys_in_place_op, rotate_queries_keys_op

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape, dtype=torch.float32, grad=True):
    return torch.randn(*shape, generator=GENERATOR).to(dtype).requires_grad_(grad)


def indices(size, *shape, dtype=torch.int64):
    return torch.randint(0, size, shape, generator=GENERATOR).to(dtype)


MASKS = [indices(7, 2, 5), indices(7, 2, 3, dtype=torch.int32), indices(7, 2, 0)]
SOURCE, POSITION = indices(6, 9), indices(5, 9)
GRID = (2, 3, 4)
TOKENS = indices(24, 9)
OPS = {
    "gather": (gather_tokens_op, (randn(2, 7, 6), MASKS[:1])),
    "gather by several masks": (gather_tokens_op, (randn(2, 7, 6), MASKS)),
    "gather bfloat16, strided": (
        gather_tokens_op,
        (randn(7, 2, 6).bfloat16().transpose(0, 1), MASKS),
    ),
    "scatter": (scatter_tokens_op, (randn(16, 6), MASKS, 2, 7)),
    "predictor_tokens": (
        predictor_tokens_op,
        (randn(4, 6), randn(5, 6, grad=False), randn(2, 6), SOURCE, POSITION),
    ),
    "predictor_tokens, backward": (
        predictor_tokens_backward_op,
        (randn(9, 6, grad=False), SOURCE, 4, 2),
    ),
    "rotate": (rotate_queries_keys_op, (randn(9, 3, 2, 7), TOKENS, GRID, "tiled", False)),
    "rotate bfloat16, strided, backward": (
        rotate_queries_keys_op,
        (randn(3, 9, 2, 7).bfloat16().transpose(0, 1), TOKENS, GRID, "rotation", True),
    ),
    "rotate in place": (
        rotate_queries_keys_in_place_op,
        (randn(9, 3, 2, 7, grad=False), TOKENS, GRID, "tiled"),
    ),
}


@pytest.mark.parametrize(("op", "arguments"), list(OPS.values()), ids=list(OPS))
def test_opcheck(op, arguments):
    opcheck(op, arguments)


def embed(x, mask):
    return gather_tokens(x * 2, mask).sin()


def keep(x, first, second):
    return torch.cat(apply_masks(x * 2, [first, second], concat=False), 1).sin()


def lay_out(context, pos, mask_tokens, source, position):
    return predictor_tokens(context * 2, pos, mask_tokens, source, position).sin()


def project_and_rotate(x, weight, tokens):
    """With what a block does before."""
    return rotate_queries_keys((x @ weight).view(len(x), 3, 2, 8), tokens, GRID).sin()


@torch.no_grad()
def project_and_rotate_(x, weight, tokens):
    return rotate_queries_keys_((x @ weight).view(len(x), 3, 2, 8), tokens, GRID).sin()


FUNCTIONS = {
    "gather_tokens": (embed, (randn(2, 7, 6), MASKS[0])),
    "apply_masks": (keep, (randn(2, 7, 6), MASKS[0], MASKS[1])),
    "predictor_tokens": (lay_out, OPS["predictor_tokens"][1]),
    "rotate_queries_keys": (project_and_rotate, (randn(9, 6), randn(6, 48), TOKENS)),
    "rotate_queries_keys_": (project_and_rotate_, (randn(9, 6), randn(6, 48), TOKENS)),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("function", "arguments"), list(FUNCTIONS.values()), ids=list(FUNCTIONS))
def test_compiles_without_a_graph_break(function, arguments, dynamic):
    check_compiled(function, arguments, backend="aot_eager", dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "arguments"), list(FUNCTIONS.values()), ids=list(FUNCTIONS))
def test_compiles_by_inductor(function, arguments):
    check_compiled(function, arguments, backend="inductor")


def check_compiled(function, arguments, **options):
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, **options)
    leaves = [a for a in arguments if a.requires_grad]
    plain, other = function(*arguments), compiled(*arguments)
    torch.testing.assert_close(other, plain)
    if not plain.requires_grad:
        return
    grad = torch.randn(plain.shape)
    for ours, exact in zip(
        torch.autograd.grad(other, leaves, grad),
        torch.autograd.grad(plain, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact)


def test_an_index_outside_is_an_error_in_compiled_code_too():
    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"index: found entries 7 to 7, expected 0 to 6"):
        compiled(randn(2, 7, 6), torch.full((2, 5), 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_leaves_dtypes_alone(dtype):
    """They move what they are given: a bfloat16 activation beside fp32 mask tokens stays one."""
    with torch.autocast("cpu", torch.bfloat16):
        x = randn(2, 7, 6, dtype=dtype)
        out = gather_tokens(x, MASKS[0])
        context, pos, mask_tokens = randn(4, 6, dtype=dtype), randn(5, 6), randn(2, 6)
        tokens = predictor_tokens(context, pos, mask_tokens, SOURCE, POSITION)
    assert out.dtype == dtype and tokens.dtype == dtype
    (out.sum() + tokens.sum()).backward()
    assert x.grad.dtype == context.grad.dtype == dtype and mask_tokens.grad.dtype == torch.float32
