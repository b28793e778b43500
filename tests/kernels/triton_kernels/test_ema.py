"""ema_update_'s kernel against the formula, on every kind of tensor list."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rounding.accuracy import ROUNDING, assert_accurate
from vjepa_fast.kernels import ema, ema_update_

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = [(1,), (), (3, 0), (63,), (7, 9), (ema.BLOCK,), (3, ema.BLOCK), (ema.BLOCK + 1,)]


def make(device, dtype=torch.float32, shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher = [torch.randn(s, generator=generator).to(device) for s in shapes]
    student = [torch.randn(s, generator=generator).to(device, dtype) for s in shapes]
    return teacher, student


def check(teacher, student, momentum, copies=None):
    """Update, and hold each tensor against float64 with PyTorch's own error as the measure."""
    before, sources = [t.clone() for t in teacher], [s.clone() for s in student]
    ema_update_(teacher, student, momentum, copies)
    for t, old, s, source in zip(teacher, before, student, sources, strict=True):
        exact = momentum * old.double() + (1 - momentum) * source.double()
        torchs = torch.lerp(old, source.float(), 1 - momentum)
        # 1 - momentum, two products and their sum, each rounded; PyTorch may be exact by chance
        largest = torch.cat([old.flatten(), source.float().flatten(), old.new_zeros(1)]).abs().max()
        assert_accurate(t, torchs, exact, atol=4 * ROUNDING * largest.item())
        assert torch.equal(s, source)
    for c, t in zip(copies or [], teacher, strict=bool(copies)):
        assert torch.equal(c, t.to(c.dtype))


@dtypes
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.998, 1.0])
def test_formula(device, dtype, momentum):
    check(*make(device, dtype), momentum)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_ends_are_exact(device, momentum):
    teacher, student = make(device)
    expected = [t.clone() for t in (teacher if momentum else student)]
    ema_update_(teacher, student, momentum)
    assert all(torch.equal(a, b) for a, b in zip(teacher, expected, strict=True))


@dtypes
def test_low_precision_copy(device, dtype):
    teacher, student = make(device)
    copies = [torch.empty(s, dtype=dtype, device=device) for s in SHAPES]
    check(teacher, student, 0.9, copies)


@pytest.mark.parametrize("bad", [False, True])
def test_skip(device, bad):
    """Nothing is written, NaN or not; or everything, as without `skip`."""
    (teacher, student), (expected, _) = make(device), make(device)
    student[-1][3] = float("nan")
    wide = torch.randn(8, 6, device=device)
    teacher.append(wide[:, ::2].clone()), expected.append(wide[:, ::2].clone())
    student.append(wide[:, 1::2])
    copies = [torch.zeros_like(t, dtype=torch.bfloat16) for t in teacher[:-1]]
    copies.append(torch.zeros(8, 6, dtype=torch.bfloat16, device=device)[:, ::2])  # strided
    before = [c.clone() for c in copies]
    flag = torch.tensor(float(bad), device=device)
    ema_update_(teacher, student, 0.9, copies, skip=flag)
    if not bad:
        before = [torch.empty_like(c) for c in copies]
        ema_update_(expected, student, 0.9, before)
    for a, b in zip([*teacher, *copies], [*expected, *before], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_mixed_dtypes(device):
    """One list of every dtype, in an order of its own, float64 too."""
    teacher, student = make(device)
    kinds = [*DTYPES, torch.float64]
    student = [s.to(kinds[i % 4]) for i, s in enumerate(student)]
    copies = [torch.empty_like(t, dtype=kinds[i // 2 % 4]) for i, t in enumerate(teacher)]
    check(teacher, student, 0.9, copies)


@pytest.mark.parametrize("shift", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)], ids=str)
def test_addresses_that_are_not_aligned(device, shift):
    """Nothing outside a view is written: what surrounds it stays NaN."""
    size = 2 * ema.BLOCK + 5
    wholes = [
        torch.empty(size + 9, device=device, dtype=dtype)
        for dtype in (torch.float32, torch.float32, torch.bfloat16)
    ]
    views = [whole[s : s + size] for whole, s in zip(wholes, shift, strict=True)]
    (teacher,), (student,) = make(device, shapes=[(size,)])
    views[0].copy_(teacher), views[1].copy_(student)
    check(views[:1], views[1:2], 0.75, views[2:])
    for whole, s in zip(wholes, shift, strict=True):
        assert whole[:s].isnan().all() and whole[s + size :].isnan().all()


def test_strided_tensors(device):
    (teacher, student), _ = make(device, shapes=[(6, 5), (6, 5)])
    copy = torch.empty(5, 12, dtype=torch.bfloat16, device=device)
    check([teacher.t()], [student.t()], 0.75, [copy[:, ::2]])
    assert copy[:, 1::2].isnan().all()
    check([teacher.t()], [student.view(-1)[:1].expand(5, 6)], 0.75)


def test_a_nan_arrives(device):
    teacher, student = make(device, shapes=[(5,)])
    student[0][3] = float("nan")
    ema_update_(teacher, student, 0.5)
    assert teacher[0].isnan().tolist() == [False, False, False, True, False]


def test_nothing_to_update(device):
    ema_update_([], [], 0.5)
    empty = [torch.empty(0, device=device), torch.empty(3, 0, device=device)]
    ema_update_(empty, empty, 0.5, empty)


def test_memory_written_twice_is_rejected(device):
    """Also where a strided tensor is written by way of another, and after its table was kept."""
    flat, square = torch.zeros(6, device=device), torch.zeros(2, 3, device=device).t()
    for teacher in ([flat, flat[5:]], [square, square]):
        student = [torch.ones_like(t) for t in teacher]
        ema_update_(teacher[:1], student[:1], 1.0)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^teacher\[0\], teacher\[1\]: found memory that"):
                ema_update_(teacher, student, 0.5)
        assert not teacher[0].any()


def test_tables_are_kept_for_the_calls_that_come_again(device, monkeypatch):
    """As a loop over parameters makes them; the one whose last call is longest ago leaves."""
    monkeypatch.setattr(ema, "KEPT_ROWS", 2 * ema.FEWEST_ROWS)
    monkeypatch.setattr(ema, "_cache", {})
    built = []
    build = ema.block_table
    monkeypatch.setattr(
        ema, "block_table", lambda entries, device: built.append(entries) or build(entries, device)
    )
    pairs = [make(device, shapes=[(3,)], seed=seed) for seed in range(4)]
    for turn, tables in ((0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (0, 4), (2, 4), (1, 5)):
        check(*pairs[turn], 0.5)
        assert len(built) == tables
    assert len(ema._cache) == 3


def test_addresses_are_looked_at_each_time(device):
    """Other tensors, then the first ones again, then the same with new storage."""
    first, second = make(device, seed=1), make(device, seed=2)
    for teacher, student in (first, second, first):
        check(teacher, student, 0.5)
    first[0][3].data = first[0][3].clone()
    check(*first, 0.5)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.integers(0, 2), st.integers(0, 2)),
        min_size=1,
        max_size=5,
    ),
    st.floats(0, 1),
    st.booleans(),
)
def test_any_list(device, tensors, momentum, copying):
    shapes = [tuple(shape) for shape, _, _ in tensors]
    teacher, student = make(device, shapes=shapes)
    student = [s.to(DTYPES[kind]) for s, (_, kind, _) in zip(student, tensors, strict=True)]
    kinds = [DTYPES[kind] for _, _, kind in tensors]
    copies = [torch.empty_like(t, dtype=k) for t, k in zip(teacher, kinds, strict=True)]
    check(teacher, student, momentum, copies if copying else None)
