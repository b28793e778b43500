"""The ops on Triton as torch.library custom ops: opcheck, torch.compile, autocast."""

import pytest
import torch
from torch.library import opcheck

from vjepa_fast.kernels import (
    apply_masks,
    ema_update_,
    gather_tokens,
    masked_feature_loss,
    patchify,
    predictor_tokens,
    rotate_queries_keys,
    rotate_queries_keys_,
)

OPS = torch.ops.vjepa_fast
DTYPES = [torch.float32, torch.bfloat16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Inputs:
    """Tensors for one test, the same every time but for `more` rows."""

    def __init__(self, device, dtype=torch.float32, more=0):
        self.device, self.dtype, self.more = device, dtype, more
        self.generator = torch.Generator().manual_seed(0)

    def randn(self, *shape, dtype=None, grad=False):
        x = torch.randn(*shape, generator=self.generator)
        return x.to(self.device, dtype or self.dtype).requires_grad_(grad)

    def integers(self, size, *shape, dtype=torch.int64):
        x = torch.randint(0, size, shape, generator=self.generator)
        return x.to(self.device, dtype)

    def masks(self):
        lengths = {5: torch.int64, 3: torch.int32, 0: torch.int64}
        return [self.integers(7, 2, k + self.more, dtype=dtype) for k, dtype in lengths.items()]

    def sequences(self):
        """Arguments of masked_feature_loss: 3 sequences under 2 mask specs."""
        seqlens, spec_ids = torch.tensor([3, 1, 2 + self.more]), torch.tensor([0, 1, 0])
        predictions, features = self.randn(6 + self.more, 24, grad=True), self.randn(9, 24)
        rows = self.integers(9, 6 + self.more)
        return predictions, features, rows, seqlens.to(self.device), spec_ids.to(self.device)

    def pool(self, grad=False):
        """Arguments of predictor_tokens; mask tokens stay fp32, as parameters do."""
        tables = self.randn(4, 6, grad=grad), self.randn(5, 6, dtype=torch.float32)
        mask_tokens = self.randn(2, 6, dtype=torch.float32, grad=grad)
        total = 9 + self.more
        return *tables, mask_tokens, self.integers(6, total), self.integers(5, total)

    def turned(self, grad=False):
        """Arguments of rotate_queries_keys."""
        total = 9 + self.more
        return self.randn(total, 3, 2, 7, grad=grad), self.integers(24, total), (2, 3, 4)

    def video(self):
        return self.integers(256, 1, 2, 16, 32, 3, dtype=torch.uint8)

    def averages(self):
        """Two teachers, two students, two copies."""
        shapes = (3, 5), (2000,)
        teacher = [self.randn(*shape, dtype=torch.float32) for shape in shapes]
        return [*teacher, *(self.randn(*s) for s in shapes), *(t.bfloat16() for t in teacher)]


PATCHES = (16, 2, [0.5] * 3, [0.2, 0.3, 0.4], torch.bfloat16)
CHECKED = {
    "gather": lambda i: (OPS.gather_tokens, i.randn(2, 7, 6, grad=True), i.masks()),
    "gather, strided": lambda i: (
        OPS.gather_tokens,
        i.randn(7, 2, 6).transpose(0, 1).requires_grad_(),
        i.masks()[:1],
    ),
    "scatter": lambda i: (OPS.scatter_tokens, i.randn(16, 6, grad=True), i.masks(), 2, 7),
    "predictor_tokens": lambda i: (OPS.predictor_tokens, *i.pool(grad=True)),
    "predictor_tokens, backward": lambda i: (
        OPS.predictor_tokens_backward,
        i.randn(9, 6),
        i.integers(6, 9),
        4,
        2,
    ),
    "rotate": lambda i: (OPS.rotate_queries_keys, *i.turned(grad=True), "tiled", False),
    "rotate, backward": lambda i: (OPS.rotate_queries_keys, *i.turned(), "rotation", True),
    "rotate, in place": lambda i: (OPS.rotate_queries_keys_in_place, *i.turned(), "tiled"),
    "loss": lambda i: (OPS.masked_feature_loss, *i.sequences(), 1.0, True, None),
    "loss, backward": lambda i: (
        OPS.masked_feature_loss_backward,
        i.randn(6, 24),
        torch.tensor(3.0, device=i.device),
    ),
    "patchify": lambda i: (OPS.patchify, i.video(), None, *PATCHES),
    "patchify, kept": lambda i: (OPS.patchify, i.video(), i.integers(2, 3), *PATCHES),
    "ema": lambda i: (
        OPS.ema_update,
        *(lambda t: (t[:2], t[2:4], 0.75, t[4:]))(i.averages()),
    ),
}


@dtypes
@pytest.mark.parametrize("case", list(CHECKED.values()), ids=list(CHECKED))
def test_opcheck(device, case, dtype):
    op, *arguments = case(Inputs(device, dtype))
    opcheck(op, tuple(arguments))


def keep(x, *masks):
    """With what public code does next: positions added in place."""
    parts = apply_masks(x * 2, masks, concat=False)
    for part in parts:
        part += 1
    return torch.cat(parts, 1).sin()


def average(*tensors):
    teacher, student, copies = ([t.clone() for t in tensors[i : i + 2]] for i in (0, 2, 4))
    ema_update_(teacher, student, 0.75, copies)
    return torch.cat([t.flatten() for t in (*teacher, *copies)])


FUNCTIONS = {
    "gather_tokens": (
        lambda x, index: gather_tokens(x * 2, index).sin(),
        lambda i: (i.randn(2, 7, 6, grad=True), i.integers(7, 2, 5 + i.more)),
    ),
    "apply_masks": (keep, lambda i: (i.randn(2, 7, 6, grad=True), *i.masks())),
    "predictor_tokens": (
        lambda context, *others: predictor_tokens(context * 2, *others).sin(),
        lambda i: i.pool(grad=True),
    ),
    "rotate_queries_keys": (
        lambda qkv, tokens: rotate_queries_keys(qkv * 2, tokens, (2, 3, 4)).sin(),
        lambda i: i.turned(grad=True)[:2],
    ),
    "rotate_queries_keys_": (
        lambda qkv, tokens: rotate_queries_keys_(qkv * 2, tokens, (2, 3, 4)).sin(),
        lambda i: i.turned()[:2],
    ),
    "masked_feature_loss": (
        lambda prediction, *others: masked_feature_loss(prediction * 2, *others),
        lambda i: i.sequences(),
    ),
    "patchify": (
        lambda video, rows: patchify(video, rows, dtype=torch.bfloat16) * 2,
        lambda i: (i.video(), i.integers(2, 3 + i.more)),
    ),
    "ema_update_": (average, lambda i: i.averages()),
}
functions = pytest.mark.parametrize(
    ("function", "inputs"), list(FUNCTIONS.values()), ids=list(FUNCTIONS)
)


def values_and_gradients(function, arguments):
    """The result, then the gradient of every argument that asks for one."""
    leaves = [a for a in arguments if a.requires_grad]
    out = function(*arguments)
    if not leaves:
        return [out]
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def check_compiled(device, function, inputs, backend, dynamic=None):
    """Once as it is, and for other numbers of rows, when PyTorch compiles for any."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    for more in (0, 4, 9):
        arguments = inputs(Inputs(device, more=more))
        found = values_and_gradients(compiled, arguments)
        for ours, exact in zip(found, values_and_gradients(function, arguments), strict=True):
            torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("dynamic", [None, True], ids=["static first", "dynamic"])
@functions
def test_compiles_without_a_graph_break(device, function, inputs, dynamic):
    check_compiled(device, function, inputs, "aot_eager", dynamic)


@pytest.mark.slow
@functions
def test_compiles_by_inductor(device, function, inputs):
    check_compiled(device, function, inputs, "inductor")


@dtypes
@functions
def test_autocast_changes_nothing(device, function, inputs, dtype):
    """Neither values nor dtypes, with the backward inside too."""
    arguments = inputs(Inputs(device, dtype))
    plain = values_and_gradients(function, arguments)
    with torch.autocast(device.type, torch.bfloat16):
        under = values_and_gradients(function, arguments)
    for ours, exact in zip(under, plain, strict=True):
        assert ours.dtype == exact.dtype and torch.equal(ours, exact)
