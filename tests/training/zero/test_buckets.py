"""Buckets cover each parameter once, are sent in one order, and are waited for before use."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.helpers.trainers import make_model, micro_batch
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.evaluation.heads.spec import LinearClassifier
from vjepa_fast.finetuning.model import ClipClassifier
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.training.zero.bucketed import BucketedOptimizer
from vjepa_fast.training.zero.gradients import GradientBuckets
from vjepa_fast.training.zero.shards import (
    ALIGNED,
    BUCKETS,
    LARGEST,
    SLICE,
    SMALLEST,
    Bucket,
    Range,
    bucket_capacity,
    bucket_each,
    layout_of,
    make_buckets,
)
from vjepa_fast.training.zero.weights import GatheredWeights, SortedWeights

RANKS = 2


def one_group(model: nn.Module, capacity: int, slices: int) -> list:
    parameters = list(model.parameters())
    return [(parameters, make_buckets([p.numel() for p in parameters], slices, capacity))]


@pytest.mark.parametrize("sizes", [[5], [3, 100, 1, 1, 64, 7], [40, 40, 40], [1] * 50])
@pytest.mark.parametrize("slices", [1, 2, 3, 64])
def test_every_element_is_in_one_slice_of_one_bucket(sizes: list[int], slices: int) -> None:
    buckets = make_buckets(sizes, slices, capacity=40)
    assert [i for b in buckets for i in b.parameters] == list(range(len(sizes)))
    for number, bucket in enumerate(buckets):
        full = 40 * min(1, 2**number / 8)
        assert bucket.count >= full or bucket is buckets[-1]
        assert bucket.count - sizes[bucket.parameters[-1]] < full  # full with its last parameter
    for bucket in buckets:
        assert bucket.count == sum(sizes[i] for i in bucket.parameters)
        assert bucket.length % ALIGNED == 0 and bucket.length * slices >= bucket.count
    layout = layout_of(buckets, slices)
    held = sorted(i for ranges in layout for r in ranges for i in range(r.start, r.start + r.count))
    assert len(layout) == slices and held == list(range(sum(sizes)))
    shard = sum(b.length for b in buckets)
    places = [i for r in layout[0] for i in range(r.offset, r.offset + r.count)]
    assert len(set(places)) == len(places) and max(places) < shard


def test_a_layout_by_hand() -> None:
    # parameters of 10 and 3 elements, each split over two ranks
    buckets = [Bucket(range(1), 0, 10, 8, 0), Bucket(range(1, 2), 10, 3, 8, 8)]
    assert layout_of(buckets, 2) == [[Range(0, 8, 0), Range(10, 3, 8)], [Range(8, 2, 0)]]
    # ranges that follow one another in both are one
    assert layout_of(bucket_each([4, 6], [4, 6]), 1) == [[Range(0, 10, 0)]]


def test_large_models_have_large_buckets() -> None:
    assert bucket_capacity(1000, 1) == SMALLEST
    assert bucket_capacity(BUCKETS * SMALLEST * 3, 2) == 3 * SMALLEST
    assert bucket_capacity(10**10, 256) == LARGEST
    assert bucket_capacity(10**10, 1024) == 1024 * SLICE > LARGEST


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """This process believes to be one of two; what it exchanges, in order, comes back to it."""
    sent: list[Tensor] = []

    def exchange(received: Tensor, whole: Tensor, async_op: bool) -> SimpleNamespace:
        sent.append(whole.clone())
        rows = whole.view(RANKS, -1)
        received.view(RANKS, -1).copy_(rows[:1].expand_as(rows))  # both ranks have the same
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(dist, "get_world_size", lambda: RANKS)
    monkeypatch.setattr(dist, "all_to_all_single", exchange)
    return sent


def filled(keep: bool) -> tuple[GradientBuckets, list[nn.Parameter], list[Bucket]]:
    model = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in (7, 5, 30, 30))
    ((parameters, buckets),) = groups = one_group(model, 30, RANKS)
    return GradientBuckets(model, groups, RANKS, keep), parameters, buckets


def give(parameter: nn.Parameter, value: float) -> None:
    (parameter * value).sum().backward()
    assert parameter.grad is None  # freed


@pytest.mark.parametrize("keep", [True, False])
def test_buckets_are_sent_in_one_order_as_they_are_complete(
    two_ranks: list[Tensor], keep: bool
) -> None:
    gradients, (first, second, third, fourth), buckets = filled(keep)
    assert [len(b.parameters) for b in buckets] == [1, 2, 1]
    gradients.begin(first=True, last=True)
    give(first, 1.0)  # complete, but not its turn
    give(third, 3.0)
    assert len(two_ranks) == 0
    give(fourth, 4.0)
    assert [whole.max() for whole in two_ranks] == [4.0]
    give(second, 2.0)
    assert [whole.max() for whole in two_ranks] == [4.0, 3.0, 1.0]
    gradients.finish()
    assert len(two_ranks) == 3
    (shard,) = gradients.shards
    lengths = [b.length for b in buckets]
    one, middle, last = shard.split(lengths)
    assert one[:7].eq(1).all() and last[:16].eq(4).all()  # the mean of two equal ranks
    assert middle[:5].eq(2).all() and middle[5:].eq(3).all()
    with pytest.raises(RuntimeError, match="found a second one"):
        give(second, 2.0)


@pytest.mark.parametrize("keep", [True, False])
def test_micro_batches_add_up(two_ranks: list[Tensor], keep: bool) -> None:
    gradients, parameters, buckets = filled(keep)
    for _ in range(2):  # steps
        two_ranks.clear()
        for number in range(3):
            gradients.begin(first=number == 0, last=number == 2)
            for parameter in reversed(parameters):
                give(parameter, 1.0 + number)
            calls = len(buckets)
            assert len(two_ranks) == (calls * (number == 2) if keep else calls * (number + 1))
        gradients.finish()
        assert {v for v in gradients.shards[0].tolist() if v} == {6.0}


@pytest.mark.parametrize("keep", [True, False])
def test_what_no_gradient_reaches_is_zero(two_ranks: list[Tensor], keep: bool) -> None:
    gradients, parameters, buckets = filled(keep)
    for step, missing in enumerate((None, 3, 0)):
        two_ranks.clear()
        gradients.begin(first=True, last=True)
        for index, parameter in enumerate(parameters):
            if index != missing:
                give(parameter, 1.0)
        assert len(two_ranks) == (0 if missing == 3 else 2 if missing == 0 else 3), step
        gradients.finish()
        assert len(two_ranks) == 3
        bucket = {3: buckets[2], 0: buckets[0]}.get(missing)
        for b in buckets:
            own = gradients.shards[0][b.offset : b.offset + b.length]
            assert own.any() == (b != bucket)


class Sum(nn.Module):
    """Calls one of its linear layers, and takes the weight of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.taken = nn.Linear(40, 40), nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x) + x @ self.taken.weight


def test_weights_that_nothing_waits_for_are_an_error(
    two_ranks: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Sum()
    group = {"params": list(model.parameters()), "name": "encoder.decay", "part": "encoder"}
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(
        dist, "all_gather_into_tensor", lambda *_, **__: SimpleNamespace(wait=lambda: None)
    )
    monkeypatch.setattr("vjepa_fast.training.zero.bucketed.bucket_capacity", lambda *_: 100)
    optimizer = BucketedOptimizer(model, torch.optim.AdamW([group]), 1, torch.float32)
    model(torch.zeros(1, 40))
    optimizer.begin_backward(first=True, last=True)  # nothing is gathered yet
    optimizer.share_weights()
    model(torch.zeros(1, 40))
    with pytest.raises(RuntimeError, match=r"^weights: found taken\.weight used or unused"):
        optimizer.begin_backward(first=True, last=True)
    optimizer.wait_for_weights()
    optimizer.begin_backward(first=True, last=True)


class Lazy:
    """An all-gather that writes when it is waited for. Until then the weights are not numbers."""

    def __init__(self, whole: Tensor, values: Tensor) -> None:
        self._whole, self._values = whole, values
        whole.fill_(float("nan"))

    def wait(self) -> None:
        self._whole.copy_(self._values)


def clips(model: nn.Module) -> Tensor:
    return model(micro_batch(0)[0])


def classifier(head: nn.Module) -> ClipClassifier:
    return ClipClassifier(make_model().encoder, head)


NETWORKS = [
    pytest.param(make_model, lambda model: model(*micro_batch(0)), id="student"),
    pytest.param(
        lambda: make_model().make_target_encoder(),
        lambda model: encode_clips(model, micro_batch(0)[0]),
        id="target-encoder",
    ),
    pytest.param(lambda: classifier(LinearClassifier(24, 3)), clips, id="linear"),
    pytest.param(lambda: classifier(AttentiveClassifier(24, 2, 3)), clips, id="attentive"),
    pytest.param(lambda: classifier(AttentiveClassifier(24, 2, 3, 4)), clips, id="four-blocks"),
]


@pytest.mark.parametrize(("make", "run"), NETWORKS)
@pytest.mark.parametrize("kind", [GatheredWeights, SortedWeights])
def test_a_forward_pass_waits_for_all_weights_before_it_uses_them(
    monkeypatch: pytest.MonkeyPatch, make: Callable, run: Callable, kind: type
) -> None:
    model = make()
    expected = run(model)
    before = [p.detach().clone() for p in model.parameters()]
    weights = kind(model, one_group(model, 500, RANKS), RANKS, 0, torch.float32)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    order: list[int] = []

    def gather(whole: Tensor, own: Tensor, async_op: bool) -> Lazy:
        order.append(whole.data_ptr())
        whole_values = whole.clone()
        own.fill_(float("nan"))
        return Lazy(whole, whole_values)

    if kind is SortedWeights:  # what it gathers holds nothing yet
        for gathered in weights._gathered:
            gathered.fill_(0.5)
        for p in model.parameters():
            p.data.fill_(0.5)
        expected = run(model)
    monkeypatch.setattr(dist, "all_gather_into_tensor", gather)
    assert not weights.pending
    weights.start()
    assert weights.pending and order == sorted(order)
    assert torch.equal(run(model), expected)
    assert not weights.pending
    weights.start()
    weights.wait()
    assert not weights.pending and all(p.isfinite().all() for p in model.parameters())
