"""SeqLayout, attention over it, and the packing of masks, against one sequence at a time."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rounding.accuracy import assert_accurate
from vjepa_fast.models import attention as attention_module
from vjepa_fast.models.attention import attention, choose_backend, sdpa
from vjepa_fast.models.sequences import SeqLayout, pack_masks

LENGTHS = {
    "one row": [1],
    "one sequence": [13],
    "equal": [4, 4, 4],
    "ragged": [3, 3, 7, 1, 1, 2, 3],
    "all different": [1, 9, 63, 2],
}
lengths = pytest.mark.parametrize("lengths", list(LENGTHS.values()), ids=list(LENGTHS))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_layout(lengths):
    layout = SeqLayout.of(lengths)
    assert layout.lengths == tuple(lengths)
    assert (layout.rows, layout.longest) == (sum(lengths), max(lengths))
    offsets = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert layout.cu_seqlens.tolist() == offsets and layout.cu_seqlens.dtype == torch.int32
    assert [n for sequences, n in layout.runs for _ in range(sequences)] == lengths
    assert all(a[1] != b[1] for a, b in zip(layout.runs, layout.runs[1:], strict=False))


def test_layout_takes_a_tensor_of_lengths():
    assert SeqLayout.of(torch.tensor([2, 2, 5])) == SeqLayout.of([2, 2, 5])


@pytest.mark.parametrize("lengths", [[], [0], [3, -1]], ids=str)
def test_layout_rejects(lengths):
    with pytest.raises(ValueError, match=r"^lengths: found \(.*\), expected positive lengths; "):
        SeqLayout.of(lengths)


def softmax_attention(qkv, lengths):
    """One sequence and one head at a time."""
    out, start = [], 0
    for n in lengths:
        heads = []
        for head in range(qkv.shape[2]):
            q, k, v = (qkv[start : start + n, i, head] for i in range(3))
            weight = (q @ k.t() / qkv.shape[3] ** 0.5).exp()
            heads.append(weight / weight.sum(1, keepdim=True) @ v)
        out.append(torch.stack(heads, 1))
        start += n
    return torch.cat(out)


@lengths
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (3, 5), (2, 16)])
def test_attention(lengths, heads, head_dim):
    qkv = torch.randn(sum(lengths), 3, heads, head_dim, requires_grad=True)
    out = attention(qkv, SeqLayout.of(lengths))
    plain, exact = (qkv.detach().to(t).requires_grad_() for t in (torch.float, torch.double))
    expected = [softmax_attention(leaf, lengths) for leaf in (plain, exact)]
    assert_accurate(out.detach(), *(e.detach() for e in expected))
    grad = torch.randn_like(out)
    for result in (out, *expected):
        result.backward(grad.to(result.dtype))
    assert_accurate(qkv.grad, plain.grad, exact.grad, factor=3)


@lengths
def test_attention_in_bfloat16(lengths):
    """At most twice the error of the same formula in PyTorch's own bfloat16."""
    qkv = torch.randn(sum(lengths), 3, 2, 8).bfloat16()
    out = attention(qkv, SeqLayout.of(lengths))
    expected = softmax_attention(qkv.double(), lengths)
    assert_accurate(out, softmax_attention(qkv, lengths), expected)


def test_attention_of_strided_rows():
    lengths = LENGTHS["ragged"]
    qkv = torch.randn(sum(lengths), 3, 2, 8, 2)[..., 0]
    out = attention(qkv, SeqLayout.of(lengths))
    plain, exact = (softmax_attention(t, lengths) for t in (qkv, qkv.double()))
    assert_accurate(out, plain, exact)


def test_attention_derivatives():
    lengths = [2, 2, 3, 1]
    qkv = torch.randn(8, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, SeqLayout.of(lengths)), qkv)


def test_no_sequence_sees_another():
    qkv = torch.randn(10, 3, 2, 4)
    changed = qkv.clone()
    changed[3:7] += 1
    layout = SeqLayout.of([3, 4, 3])
    same = (attention(qkv, layout) == attention(changed, layout)).flatten(1).all(1)
    assert same[:3].all() and same[7:].all() and not same[3:7].any()


def test_attention_rejects_rows_that_are_not_the_layouts():
    with pytest.raises(ValueError, match=r"^qkv: found 4 rows, expected the layout's 5; pass"):
        attention(torch.zeros(4, 3, 1, 2), SeqLayout.of([2, 3]))


def test_the_backend_is_named_once(caplog):
    choose_backend.cache_clear()
    attention_module._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="vjepa_fast"):
        attention_module.log.addHandler(caplog.handler)  # train.py stops it from propagating
        try:
            for head_dim in (8, 8, 16):
                backend = choose_backend(torch.float32, torch.device("cpu"), head_dim)
                assert backend is sdpa
        finally:
            attention_module.log.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"attention: sdpa on cpu (torch.float32)"}


def packed(context, target, num_tokens):
    """`pack_masks` of nested lists [spec][clip][token]."""

    def flat(masks):
        tokens = [token for spec in masks for clip in spec for token in clip]
        return torch.tensor(tokens), torch.tensor([[len(clip) for clip in spec] for spec in masks])

    return pack_masks(*flat(context), *flat(target), num_tokens)


@st.composite
def masks(draw):
    specs, clips, n = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 9))
    context, target = [], []
    for _ in range(specs):
        orders = [draw(st.permutations(range(n))) for _ in range(clips)]
        cuts = [draw(st.integers(1, n - 1)) for _ in range(clips)]
        kept = [draw(st.integers(cut + 1, n)) for cut in cuts]  # some tokens are neither
        context.append([sorted(o[:cut]) for o, cut in zip(orders, cuts, strict=True)])
        target.append([sorted(o[cut:k]) for o, cut, k in zip(orders, cuts, kept, strict=True)])
    return context, target, n


@settings(max_examples=50, deadline=None)
@given(masks())
def test_packing_is_one_sequence_after_another(case):
    context, target, n = case
    found = packed(context, target, n)
    rows_of_context = sum(len(clip) for spec in context for clip in spec)
    expected = {name: [] for name in vars(found)}
    row = 0  # of the predictor's input
    for m, spec in enumerate(context):
        for b, tokens in enumerate(spec):
            for token in tokens:
                expected["predictor_source"].append(len(expected["context_tokens"]))
                expected["context_tokens"].append(token)
                expected["context_rows"].append(b * n + token)
            for i, token in enumerate(target[m][b]):
                expected["predictor_source"].append(rows_of_context + m)
                expected["target_rows"].append(b * n + token)
                expected["prediction_rows"].append(row + len(tokens) + i)
            expected["predictor_tokens"] += [*tokens, *target[m][b]]
            row += len(tokens) + len(target[m][b])
            expected["target_seqlens"].append(len(target[m][b]))
            expected["spec_ids"].append(m)
    for name, value in vars(found).items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == torch.int64 and value.is_contiguous()
            assert value.tolist() == expected[name], name
    clips = [
        (c, t) for cs, ts in zip(context, target, strict=True) for c, t in zip(cs, ts, strict=True)
    ]
    assert found.context_layout.lengths == tuple(len(c) for c, _ in clips)
    assert found.predictor_layout.lengths == tuple(len(c) + len(t) for c, t in clips)
    assert found.clips == len(context[0])


LONG, TWO = torch.arange(4), torch.tensor([[2, 2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (LONG, torch.tensor([[4, 0]]), LONG, TWO),
            "context: found 4 tokens and lengths 0 to 4, expected positive lengths that sum to ",
        ),
        (
            (LONG, TWO, LONG, torch.tensor([[0, 4]])),
            "target: found 4 tokens and lengths 0 to 4, expected positive lengths that sum to ",
        ),
        (
            (LONG, TWO, LONG, torch.tensor([[2, 3]])),
            "target: found 4 tokens and lengths 2 to 3, expected positive lengths that sum to ",
        ),
        (
            (LONG, TWO, LONG, TWO.t()),
            r"context_seqlens, target_seqlens: found shapes \(1, 2\) and \(2, 1\), expected \[M, B",
        ),
        (
            (LONG, TWO[0], LONG, TWO[0]),
            r"context_seqlens, target_seqlens: found shapes \(2,\) and \(2,\), expected \[M, B\]",
        ),
        (
            (LONG[:0], TWO[:, :0], LONG[:0], TWO[:, :0]),
            r"context_seqlens, target_seqlens: found shapes \(1, 0\) and \(1, 0\), expected \[M, B",
        ),
        ((LONG + 7, TWO, LONG, TWO), "context: found tokens 7 to 10, expected 0 to 9"),
        ((LONG, TWO, LONG - 1, TWO), "target: found tokens -1 to 2, expected 0 to 9"),
    ],
)
def test_packing_rejects(arguments, message):
    with pytest.raises(ValueError, match="^" + message):
        pack_masks(*arguments, 10)
