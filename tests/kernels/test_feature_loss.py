"""masked_feature_loss against sums written out in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rounding.accuracy import ROUNDING, assert_accurate
from vjepa_fast.kernels import masked_feature_loss

SHAPES = {  # width, rows of features, targets of each sequence, mask spec of each sequence
    "one": (1, 1, [1], [0]),
    "one clip": (7, 20, [13], [0]),
    "equal lengths": (63, 40, [5, 5, 5, 5], [0, 0, 1, 1]),
    "unequal lengths": (33, 50, [1, 9, 3, 17, 2, 2], [0, 0, 0, 1, 1, 1]),
    "unequal clips": (5, 9, [4, 1, 30, 2, 8], [0, 0, 0, 0, 1]),
    "specs out of order": (8, 12, [3, 1, 5, 2], [7, 2, 7, 40]),
    "wide": (1000, 6, [2, 3], [0, 1]),
}
shapes = pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
exponents = pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
normalizes = pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "as they are"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def make(shape, dtype=torch.float32, index_dtype=torch.int64):
    width, count, seqlens, spec_ids = shape
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(sum(seqlens), width, generator=generator).to(dtype)
    features = (3 * torch.randn(count, width, generator=generator) + 1).to(dtype)
    rows = torch.randint(0, count, (sum(seqlens),), generator=generator)
    index = (rows, torch.tensor(seqlens), torch.tensor(spec_ids))
    return prediction, features, *(t.to(index_dtype) for t in index)


def mean_of_means(prediction, features, rows, seqlens, spec_ids, exponent=1.0, normalize=True):
    """One sequence at a time, in the prediction's dtype: specs, of clips, of targets, features."""
    by_spec, start = {}, 0
    for length, spec in zip(seqlens.tolist(), spec_ids.tolist(), strict=True):
        target = torch.stack([features[row] for row in rows[start : start + length].tolist()])
        target = target.to(prediction.dtype)
        if normalize:
            centred = target - target.mean(1, keepdim=True)
            target = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        error = (prediction[start : start + length] - target).abs() ** exponent / exponent
        by_spec.setdefault(spec, []).append(error.sum() / (length * features.shape[1]))
        start += length
    specs = [sum(clips) / len(clips) for clips in by_spec.values()]
    return sum(specs) / len(specs)


def assert_loss(found, prediction, *others):
    """As accurate as `mean_of_means` in fp32."""
    plain, exact = (mean_of_means(p, *others).detach() for p in both(prediction))
    assert_accurate(found.detach(), plain, exact)


def both(prediction):
    """Leaves that hold the prediction in fp32 and in float64."""
    return [prediction.detach().to(t).requires_grad_() for t in (torch.float, torch.double)]


@shapes
@exponents
@normalizes
def test_values_and_gradients(shape, exponent, normalize):
    prediction, *others = make(shape)
    prediction.requires_grad_()
    loss = masked_feature_loss(prediction, *others, exponent, normalize)
    assert loss.shape == () and loss.dtype == torch.float32
    assert_loss(loss, prediction, *others, exponent, normalize)
    (3 * loss).backward()
    plain, exact = both(prediction)
    for leaf in (plain, exact):
        (3 * mean_of_means(leaf, *others, exponent, normalize)).backward()
    assert exact.grad.abs().max() > 0
    assert_accurate(prediction.grad, plain.grad, exact.grad, factor=3)


@dtypes
@exponents
def test_half_precision_only_in_the_arguments(dtype, exponent):
    """The arithmetic is fp32: the error is that of rounding the arguments, which is not counted."""
    prediction, *others = make(SHAPES["unequal lengths"], dtype)
    prediction.requires_grad_()
    loss = masked_feature_loss(prediction, *others, exponent)
    assert loss.dtype == torch.float32
    assert_loss(loss, prediction, *others, exponent)
    loss.backward()
    plain, exact = both(prediction)
    for leaf in (plain, exact):
        mean_of_means(leaf, *others, exponent).backward()
    assert prediction.grad.dtype == dtype
    assert_accurate(prediction.grad, plain.grad.to(dtype), exact.grad, factor=3)


@pytest.mark.parametrize("scale", [1000.0, 2.0**16, 2.0**20])
def test_gradient_in_float16_under_loss_scaling(scale):
    """Neither the weight of an element, 1e-6 here, nor a scale of 65536 fits in float16."""
    width, targets, clips = 1000, 50, 20
    prediction = torch.ones(1, 1, dtype=torch.float16).expand(targets * clips, width)
    prediction = prediction.detach().requires_grad_()
    features = torch.zeros(1, width, dtype=torch.float16)
    rows = torch.zeros(targets * clips, dtype=torch.int32)
    seqlens, specs = torch.full((clips,), targets), torch.zeros(clips, dtype=torch.int64)
    loss = masked_feature_loss(prediction, features, rows, seqlens, specs)
    # rows are whole numbers; a thousand of them, each of weight 1e-6, are added in any order
    assert abs(loss.item() - 1) <= (targets * clips + 4) * ROUNDING
    (gradient,) = torch.autograd.grad(scale * loss, prediction)
    expected = scale / (targets * clips * width)
    torch.testing.assert_close(
        gradient.float(),
        torch.full_like(gradient, expected).float(),
        rtol=2**-10,
        atol=0,  # 1 ulp
    )


@shapes
def test_a_weight_for_each_row(shape):
    """The loss is linear in the weights: a weight of 1 on one row and 0 elsewhere, row by row."""
    prediction, *others = make(shape)
    count = len(prediction)
    one_row = [masked_feature_loss(prediction, *others, weights=w) for w in torch.eye(count)]
    one_row = torch.stack(one_row)
    weights = torch.rand(count, generator=torch.Generator().manual_seed(1))
    loss = masked_feature_loss(prediction, *others, weights=weights)
    assert_accurate(loss, one_row @ weights, one_row.double() @ weights.double())
    assert_loss(one_row.double().sum().float(), prediction, *others)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_index_dtypes(index_dtype):
    arguments = make(SHAPES["unequal clips"], index_dtype=index_dtype)
    loss = masked_feature_loss(*arguments)
    assert_loss(loss, *arguments)


def test_strided_arguments():
    shape = SHAPES["unequal lengths"]
    prediction, features, *index = make(shape)
    strided = [torch.stack([t, t + 9], -1)[..., 0] for t in (prediction, features)]
    strided_index = [torch.stack([t, t], -1)[..., 0] for t in index]
    assert not any(t.is_contiguous() for t in (*strided, *strided_index))
    leaf = strided[0].detach().requires_grad_()
    loss = masked_feature_loss(leaf, strided[1], *strided_index)
    plain = prediction.requires_grad_()
    assert_loss(loss, plain, features, *index)
    contiguous = masked_feature_loss(plain, features, *index)
    gradients = [torch.autograd.grad(*pair)[0] for pair in ((loss, leaf), (contiguous, plain))]
    assert torch.equal(*gradients)


def test_only_the_prediction_receives_a_gradient():
    prediction, features, *index = make(SHAPES["one clip"])
    prediction.requires_grad_(), features.requires_grad_()
    masked_feature_loss(prediction, features, *index).backward()
    assert features.grad is None and prediction.grad is not None


def test_a_second_derivative_is_rejected():
    """The gradient is written in the forward: its own slope would silently be left out."""
    prediction, *others = make(SHAPES["one clip"])
    prediction.requires_grad_()
    squared = masked_feature_loss(prediction, *others, 2.0).square()
    (gradient,) = torch.autograd.grad(squared, prediction, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_no_difference_no_slope():
    """At zero the gradient is zero for every exponent, 1 included."""
    features = torch.tensor([[1.0, 2.0, 3.0]])
    for exponent in (1.0, 1.5, 2.0):
        prediction = torch.tensor([[1.0, 2.0, 5.0]], requires_grad=True)
        index = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
        loss = masked_feature_loss(prediction, features, *index, exponent, False)
        loss.backward()
        assert prediction.grad[0, :2].tolist() == [0.0, 0.0]
        assert loss.item() == pytest.approx(2**exponent / exponent / 3)
        assert prediction.grad[0, 2].item() == pytest.approx(2 ** (exponent - 1) / 3)


@exponents
@normalizes
@pytest.mark.parametrize("where", ["prediction", "features"])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_what_is_not_finite_is_kept(where, value, exponent, normalize):
    """In the loss, and in the gradient of that element (of that row, through the layer norm)."""
    prediction, features, _, seqlens, spec_ids = make(SHAPES["unequal clips"])
    rows = torch.arange(45) % 9
    clean = prediction.clone().requires_grad_()
    masked_feature_loss(clean, features, rows, seqlens, spec_ids, exponent, normalize).backward()
    touched = torch.zeros(45, 5, dtype=torch.bool)
    if where == "prediction":
        prediction[7, 2] = value
        touched[7, 2] = True
    else:
        features[7, 2] = value
        touched[7::9, slice(None) if normalize else 2] = True
    prediction.requires_grad_()
    loss = masked_feature_loss(prediction, features, rows, seqlens, spec_ids, exponent, normalize)
    loss.backward()
    assert not loss.isfinite()
    assert torch.equal(prediction.grad[~touched], clean.grad[~touched])
    if math.isnan(value) or (where == "features" and normalize):
        assert prediction.grad[touched].isnan().all()
    else:  # an infinite distance: of slope 1 at exponent 1, else infinite
        assert prediction.grad[touched].isinf().all() == (exponent > 1)
        assert not prediction.grad[touched].isnan().any()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=8),
    st.sampled_from([1.0, 1.25, 2.0, 3.0]),
)
def test_any_sequences(sequences, exponent):
    seqlens, spec_ids = zip(*sequences, strict=True)
    arguments = make((3, 4, list(seqlens), list(spec_ids)))
    loss = masked_feature_loss(*arguments, exponent)
    assert_loss(loss, *arguments, exponent)


def test_equal_lengths_give_the_plain_mean():
    """The published code's loss: a mean over everything."""
    prediction, features, rows, seqlens, spec_ids = make(SHAPES["equal lengths"])
    loss = masked_feature_loss(prediction, features, rows, seqlens, spec_ids, 1.0, False)
    plain, exact = ((p - features[rows]).abs().mean().detach() for p in both(prediction))
    assert_accurate(loss, plain, exact)


Z, Y = torch.zeros(5, 4), torch.zeros(9, 4)
ROWS, LENGTHS, SPECS = torch.zeros(5, dtype=torch.int64), torch.tensor([2, 3]), torch.tensor([0, 1])
NONE = torch.empty(0, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (Z, Y[:, :3], ROWS, LENGTHS, SPECS),
            r"prediction, features: found shapes \(5, 4\) and \(9, 3\), expected \[R, D\] and ",
        ),
        (
            (Z[None], Y[None], ROWS, LENGTHS, SPECS),
            r"prediction, features: found shapes \(1, 5, 4\) and \(1, 9, 4\), expected \[R, D\]",
        ),
        ((Z, Y, ROWS[:4], LENGTHS, SPECS), r"rows: found shape \(4,\), expected \[5\]"),
        ((Z, Y, ROWS[None], LENGTHS, SPECS), r"rows: found shape \(1, 5\), expected \[5\]"),
        (
            (Z, Y, ROWS, LENGTHS, SPECS[:1]),
            r"seqlens, spec_ids: found shapes \(2,\) and \(1,\), expected \[S\] each",
        ),
        (
            (Z, Y, ROWS, LENGTHS[None], SPECS[None]),
            r"seqlens, spec_ids: found shapes \(1, 2\) and \(1, 2\), expected \[S\] each",
        ),
        (
            (Z[:0], Y, NONE, NONE, NONE),
            r"seqlens, spec_ids: found shapes \(0,\) and \(0,\), expected \[S\] each, S at least 1",
        ),
        (
            (Z, Y, ROWS, LENGTHS + 0.5, SPECS),
            "seqlens: found dtype torch.float32, expected int32 or int64",
        ),
        (
            (Z, Y, ROWS, LENGTHS, SPECS + 0.5),
            "spec_ids: found dtype torch.float32, expected int32 or int64",
        ),
        ((Z, Y, ROWS + 9, LENGTHS, SPECS), "rows: found entries 9 to 9, expected 0 to 8"),
        ((Z, Y, ROWS - 1, LENGTHS, SPECS), "rows: found entries -1 to -1, expected 0 to 8"),
        ((Z, Y, ROWS.float(), LENGTHS, SPECS), "rows: found dtype torch.float32, expected int32"),
        (
            (Z, Y, ROWS, LENGTHS + 1, SPECS),
            "seqlens: found 7 targets in all, expected positive lengths that sum to 5",
        ),
        (
            (Z, Y, ROWS, torch.tensor([0, 5]), SPECS),
            "seqlens: found a length of 0, expected positive lengths that sum to 5",
        ),
        (
            (Z, Y, ROWS, torch.tensor([-1, 6]), SPECS),
            "seqlens: found a length of -1, expected positive lengths that sum to 5",
        ),
        ((Z.int(), Y, ROWS, LENGTHS, SPECS), "prediction: found dtype torch.int32, expected float"),
        ((Z, Y.int(), ROWS, LENGTHS, SPECS), "features: found dtype torch.int32, expected float"),
        (
            (Z, Y, ROWS, LENGTHS.to("meta"), SPECS),
            "seqlens: found device meta, expected cpu as for prediction",
        ),
        ((Z, Y, ROWS, LENGTHS, SPECS, 0.5), "exponent: found 0.5, expected 1 or more"),
        ((Z, Y, ROWS, LENGTHS, SPECS, math.nan), "exponent: found nan, expected 1 or more"),
    ],
)
def test_rejected_arguments(arguments, message):
    with pytest.raises(ValueError, match="^" + message):
        masked_feature_loss(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_opcheck(dtype, exponent):
    prediction, *others = make(SHAPES["unequal lengths"], dtype)
    prediction.requires_grad_()
    arguments = (prediction, *others, exponent, True, None)
    torch.library.opcheck(torch.ops.vjepa_fast.masked_feature_loss, arguments)
    scaled = (prediction.detach(), torch.tensor(3.0))
    torch.library.opcheck(torch.ops.vjepa_fast.masked_feature_loss_backward, scaled)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(backend):
    """In one graph, with its backward, for several numbers of rows."""

    def step(prediction, *others):
        return masked_feature_loss(2 * prediction, *others)

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    for shape in ("one clip", "equal lengths", "unequal lengths"):
        prediction, *others = make(SHAPES[shape])
        prediction.requires_grad_()
        expected, found = step(prediction, *others), compiled(prediction, *others)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(loss, prediction)[0] for loss in (found, expected)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype):
    prediction, *others = make(SHAPES["equal lengths"], dtype)
    prediction.requires_grad_()
    plain = masked_feature_loss(prediction, *others)
    with torch.autocast("cpu", torch.bfloat16):
        under = masked_feature_loss(prediction, *others)
    assert torch.equal(under, plain) and under.dtype == torch.float32
    gradients = [torch.autograd.grad(loss, prediction)[0] for loss in (under, plain)]
    assert torch.equal(*gradients)
