"""masked_feature_loss's kernels against plain PyTorch, values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rounding.accuracy import ROUNDING, assert_accurate
from vjepa_fast.kernels import masked_feature_loss
from vjepa_fast.kernels.feature_loss import launch_loss, row_weights, weights_kernel

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
exponents = pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
normalizes = pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "as they are"])
SHAPES = {  # width, rows of features, targets of each sequence, mask spec of each sequence
    "1 x 24": (24, 1, [1], [0]),
    "63 x 80": (80, 40, [20, 20, 20, 3], [0, 0, 1, 1]),
    "64 x 384": (384, 10, [1, 9, 3, 17, 2, 32], [5, 5, 5, -1, -1, -1]),
    "63 x 1024": (1024, 70, [3, 40, 5, 15], [7, 2, 7, 40]),
    "64 x 1280": (1280, 64, [60, 4], [0, 1]),
    "1 x 1408": (1408, 3, [1], [3]),
}
shapes = pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))


def make(device, shape, dtype=torch.float32, index_dtype=torch.int64):
    width, count, seqlens, spec_ids = shape
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(sum(seqlens), width, generator=generator)
    features = 3 * torch.randn(count, width, generator=generator) + 1
    rows = torch.randint(0, count, (sum(seqlens),), generator=generator)
    index = (t.to(device, index_dtype) for t in (rows, *map(torch.tensor, (seqlens, spec_ids))))
    return prediction.to(device, dtype), features.to(device, dtype), *index


def plain(
    prediction, features, rows, seqlens, spec_ids, exponent=1.0, normalize=True, weights=None
):
    """As one writes it, in the dtype of its arguments."""
    target = features[rows.long()]
    if normalize:
        target = F.layer_norm(target, target.shape[-1:], eps=1e-5)
    return distance(prediction, target, seqlens, spec_ids, exponent, weights)


def distance(prediction, target, seqlens, spec_ids, exponent, weights):
    error = ((prediction - target).abs() ** exponent / exponent).mean(1)
    error = error if weights is None else error * weights
    clips = [piece.mean() for piece in error.split(seqlens.tolist())]
    by_spec = {}
    for clip, spec in zip(clips, spec_ids.tolist(), strict=True):
        by_spec.setdefault(spec, []).append(clip)
    return torch.stack([torch.stack(spec).mean() for spec in by_spec.values()]).mean()


def magnitude(
    prediction, features, rows, seqlens, spec_ids, exponent=1.0, normalize=True, weights=None
):
    """The loss if nothing canceled out: of what its differences are roundings. float64."""
    target = features[rows.long()].double().abs()
    if normalize:
        variance = features[rows.long()].double().var(1, correction=0, keepdim=True)
        target = (target + target.mean(1, keepdim=True)) / (variance + 1e-5).sqrt()
    prediction = -prediction.detach().double().abs()
    return distance(prediction, target, seqlens, spec_ids, exponent, weights).item()


def gradient(loss, prediction, factor=1.0):
    return torch.autograd.grad(factor * loss, prediction)[0]


def check(prediction, features, *rest):
    """Loss and gradient, PyTorch's own error in the same dtype being the measure.

    The gradient is rounded twice, when it is kept and when it is scaled: that is allowed on top,
    since PyTorch's own may happen to be exact (a weight that is a power of two).
    """
    leaf = prediction.detach().requires_grad_()
    ours = masked_feature_loss(leaf, features, *rest)
    assert ours.dtype == torch.float32 and ours.shape == ()
    torchs = plain(leaf, features, *rest)
    wide = leaf.detach().double().requires_grad_()
    exact = plain(wide, features.double(), *rest)
    atol = 16 * ROUNDING * magnitude(prediction, features, *rest)
    assert_accurate(ours, torchs.float(), exact, atol=atol)
    exact_gradient = gradient(exact, wide, 3.0)
    assert_accurate(
        gradient(ours, leaf, 3.0),
        gradient(torchs, leaf, 3.0),
        exact_gradient,
        factor=3.0,
        atol=2 * torch.finfo(leaf.dtype).eps * exact_gradient.abs().max().item(),
    )


@shapes
@dtypes
def test_values_and_gradients(device, shape, dtype):
    check(*make(device, shape, dtype))


@exponents
@normalizes
@dtypes
def test_exponents(device, dtype, exponent, normalize):
    check(*make(device, SHAPES["63 x 80"], dtype), exponent, normalize)


@dtypes
def test_a_weight_for_each_row(device, dtype):
    prediction, *others = make(device, SHAPES["64 x 384"], dtype)
    weights = torch.linspace(0, 2, len(prediction), device=device)  # the first row counts nothing
    check(prediction, *others, 1.0, True, weights)
    leaf = prediction.detach().requires_grad_()
    loss = masked_feature_loss(leaf, *others, weights=weights)
    assert (gradient(loss, leaf)[0] == 0).all()
    same = masked_feature_loss(leaf, *others, weights=torch.ones_like(weights))
    assert torch.equal(same, masked_feature_loss(leaf, *others))


def test_weights_of_many_sequences(device):
    """More sequences than a tile holds, and some longer than a block of rows."""
    seqlens = torch.tensor([1 + i % 37 for i in range(40)], device=device)
    spec_ids = torch.tensor([i * i % 5 for i in range(40)], device=device)
    rows = int(seqlens.sum())
    weights = torch.empty(rows, device=device)
    weights_kernel[(40,)](seqlens, spec_ids, weights, 40, rows, 24.0, 1, 1, BLOCK=16, ROWS=16)
    torch.testing.assert_close(weights, row_weights(seqlens, spec_ids, rows, 24))


def test_a_thousand_rows(device):
    check(*make(device, (80, 1500, [1000], [0])))


def test_features_in_another_dtype_and_index_in_int32(device):
    prediction, features, *index = make(device, SHAPES["63 x 80"], index_dtype=torch.int32)
    check(prediction, features.bfloat16().float(), *index)
    rounded = features.bfloat16()
    ours = masked_feature_loss(prediction, rounded, *index)
    torch.testing.assert_close(ours, masked_feature_loss(prediction, rounded.float(), *index))


@pytest.mark.parametrize("layout", ["transposed", "every other", "expanded", "offset"])
def test_strides(device, layout):
    prediction, features, *index = make(device, SHAPES["63 x 80"])
    strided = {
        "transposed": lambda t: t.t().contiguous().t(),
        "every other": lambda t: torch.stack([t, t + 9], -1)[..., 0],
        "expanded": lambda t: t[:1].expand_as(t),
        "offset": lambda t: torch.cat([t[:, :1], t], 1)[:, 1:],
    }[layout]
    columns = [torch.stack([t, t + 1], 1)[:, 0] for t in index]
    check(strided(prediction), strided(features), *columns)


@exponents
@normalizes
@pytest.mark.parametrize("where", ["prediction", "features"])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_what_is_not_finite_is_kept(device, where, value, exponent, normalize):
    prediction, features, _, *sequences = make(device, (5, 9, [4, 1, 6], [0, 0, 1]))
    rows = torch.arange(11, device=device) % 9
    (prediction if where == "prediction" else features)[7, 2] = value
    prediction.requires_grad_()
    loss = masked_feature_loss(prediction, features, rows, *sequences, exponent, normalize)
    assert not loss.isfinite()
    found = gradient(loss, prediction)
    if where == "features" and normalize:
        assert found[7].isnan().all()
    elif math.isnan(value):
        assert found[7, 2].isnan()
    else:
        assert found[7, 2].isinf() == (exponent > 1) and not found[7, 2].isnan()
    touched = found.isfinite().logical_not()
    touched[7, 2] = True
    assert touched.any(1).sum() == 1 and touched[7].any()


def test_a_row_outside_the_features_is_not_read(device):
    """NaN in rows of an unchecked invalid index; the other rows are right."""
    prediction, features, rows, *sequences = make(device, (24, 40, [6, 3], [0, 1]))
    prediction.requires_grad_()
    clean = gradient(masked_feature_loss(prediction, features, rows, *sequences), prediction)
    for outside in (-1, 40, 2**40, -(2**40)):
        wrong = rows.clone()
        wrong[5] = outside
        loss = masked_feature_loss(prediction, features, wrong, *sequences)
        found = gradient(loss, prediction)
        assert loss.isnan() and found[5].isnan().all()
        found[5] = clean[5]
        assert torch.equal(found, clean)


LENGTHS = [[60, 2], [60, 5], [70, -7], [-4, 67], [200, -90], [63, 0], [0, 63], [2**40, 1]]


@pytest.mark.parametrize("seqlens", LENGTHS, ids=str)
def test_wrong_lengths_give_nan(device, monkeypatch, seqlens):
    """Lengths are unchecked here; nothing outside the result is written."""
    prediction, features, rows, *_ = make(device, SHAPES["63 x 80"])
    around = torch.full((63 + 200,), 7.0, device=device)
    allocate = torch.empty

    def within(*size, **options):
        return around[100:163] if size == (63,) else allocate(*size, **options)

    monkeypatch.setattr(torch, "empty", within)
    sequences = torch.tensor(seqlens, device=device), torch.tensor([0, 1], device=device)
    loss, found = launch_loss(prediction, features, rows, *sequences, 1.0, True, None, 1.0)
    assert (around[:100] == 7).all() and (around[163:] == 7).all()
    assert around[100:163].isnan().all() and loss.isnan() and found.isnan().all()


def test_many_wrong_lengths_give_nan(device):
    """Those of other tiles than a sequence's own count too."""
    for length in (0, 3):
        prediction, features, rows, *_ = make(device, (24, 10, [1] * 150, [0]))
        seqlens = torch.ones(150, dtype=torch.int32, device=device)
        seqlens[[2, 149]] = torch.tensor([length, 2 - length], dtype=torch.int32, device=device)
        loss = masked_feature_loss(prediction, features, rows, seqlens, seqlens * 0)
        assert loss.isnan()


def test_no_rows_give_nan(device):
    """A sequence has a target at least, so its length is wrong."""
    sequence = torch.ones(1, dtype=torch.int64, device=device)
    none = torch.empty(0, dtype=torch.int64, device=device)
    prediction = torch.empty(0, 24, device=device).requires_grad_()
    loss = masked_feature_loss(prediction, prediction.detach(), none, sequence, sequence)
    assert loss.isnan() and gradient(loss, prediction).shape == (0, 24)


def test_the_switch_makes_them_errors(device, monkeypatch):
    monkeypatch.setenv("VJEPA_FAST_CHECK_INDEX", "1")
    prediction, features, rows, seqlens, specs = make(device, (24, 40, [6, 3], [0, 1]))
    with pytest.raises(ValueError, match=r"^rows: found entries 40 to 40, expected 0 to 39"):
        masked_feature_loss(prediction, features, rows * 0 + 40, seqlens, specs)
    with pytest.raises(ValueError, match=r"^seqlens: found 11 targets in all, expected positive"):
        masked_feature_loss(prediction, features, rows, seqlens + 1, specs)


def test_gradient_in_float16_under_loss_scaling(device):
    """Neither an element's weight, 4e-8, nor a scale of 2²⁰ fits in float16."""
    prediction = torch.ones(1, 1, dtype=torch.float16, device=device).expand(60, 4096)
    prediction = prediction.detach().requires_grad_()
    features = torch.zeros(1, 4096, dtype=torch.float16, device=device)
    rows = torch.zeros(60, dtype=torch.int32, device=device)
    sequences = torch.tensor([50, 10], device=device), torch.tensor([0, 0], device=device)
    loss = masked_feature_loss(prediction, features, rows, *sequences)
    assert abs(loss.item() - 1) <= (60 + 4) * ROUNDING  # sixty rows of whole numbers, weighted
    found = gradient(loss, prediction, 2.0**20).float()
    for rows_of, length in ((slice(0, 50), 50), (slice(50, 60), 10)):
        expected = 2.0**20 / (2 * length * 4096)
        assert (found[rows_of] / expected - 1).abs().max() <= 2**-10


def test_the_same_bits_twice(device):
    prediction, *rest = make(device, SHAPES["64 x 384"], torch.bfloat16)
    prediction.requires_grad_()
    first, second = (masked_feature_loss(prediction, *rest) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(gradient(first, prediction), gradient(second, prediction))


def test_a_retained_graph_gives_the_gradient_again(device):
    prediction, *rest = make(device, SHAPES["63 x 80"], torch.float16)
    prediction.requires_grad_()
    loss = masked_feature_loss(prediction, *rest)
    grads = [torch.autograd.grad(loss, prediction, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(-1, 3)), min_size=1, max_size=6),
    st.integers(1, 40),
    st.sampled_from([1.0, 1.25, 2.0, 3.0]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_any_sequences(device, sequences, width, exponent, dtype, normalize):
    seqlens, spec_ids = zip(*sequences, strict=True)
    arguments = make(device, (width, 4, list(seqlens), list(spec_ids)), dtype)
    torchs, exact = (
        plain(*(t.to(to) if t.is_floating_point() else t for t in arguments), exponent, normalize)
        for to in (torch.float32, torch.float64)
    )
    ours = masked_feature_loss(*arguments, exponent, normalize)
    atol = 16 * ROUNDING * magnitude(*arguments, exponent, normalize)
    assert_accurate(ours, torchs, exact, atol=atol)
