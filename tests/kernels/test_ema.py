"""ema_update_ against the formula in float64."""

import pytest
import torch
from torch import nn

from tests.rounding.accuracy import ROUNDING
from vjepa_fast.kernels import ema_update_

SHAPES = [(1,), (63,), (7, 9), (), (3, 0), (2, 3, 5)]
student_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)


def make(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    teacher = [torch.randn(s, generator=generator) for s in SHAPES]
    return teacher, [torch.randn(s, generator=generator).to(dtype) for s in SHAPES]


def clones(tensors):
    return [t.clone() for t in tensors]


@student_dtypes
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.9, 0.998, 1.0])
def test_formula(momentum, dtype):
    teacher, student = make(dtype)
    before, unchanged = clones(teacher), clones(student)
    assert ema_update_(teacher, student, momentum) is None
    for t, old, s in zip(teacher, before, student, strict=True):
        expected = momentum * old.double() + (1 - momentum) * s.double()
        roundings = 5 * ROUNDING * (old.abs() + s.float().abs())
        assert ((t.double() - expected).abs() <= roundings).all()
    assert all(torch.equal(a, b) for a, b in zip(student, unchanged, strict=True))


def test_ends_are_exact():
    teacher, student = make()
    before = clones(teacher)
    ema_update_(teacher, student, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher, before, strict=True))
    ema_update_(teacher, student, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher, student, strict=True))


def test_many_small_updates_arrive():
    """1000 updates at momentum 0.998 from 1 towards a student that is half an ulp of bf16 away."""
    student = [torch.full((5,), 1.0 + 2**-8)]
    teacher = [torch.ones(5)]
    for _ in range(1000):
        ema_update_(teacher, student, 0.998)
    expected = 1.0 + 2**-8 * (1 - 0.998**1000)
    torch.testing.assert_close(teacher[0], torch.full((5,), expected), rtol=0, atol=1000 * ROUNDING)
    moved = (teacher[0] - 1.0) / 2**-8
    assert bool(((moved > 0.8) & (moved < 0.9)).all())


@student_dtypes
def test_low_precision_copy(dtype):
    teacher, student = make()
    copies = [torch.full(s, float("nan"), dtype=dtype) for s in SHAPES]
    ema_update_(teacher, student, 0.9, copies)
    assert all(torch.equal(c, t.to(dtype)) for c, t in zip(copies, teacher, strict=True))


def test_strided_tensors():
    before, student = torch.randn(5, 6), torch.randn(6, 5).t()
    teacher = torch.empty(6, 5).t().copy_(before)
    copy = torch.full((5, 12), float("nan"), dtype=torch.bfloat16)[:, ::2]
    ema_update_([teacher], [student], 0.75, [copy])
    torch.testing.assert_close(teacher, 0.75 * before + 0.25 * student)
    assert torch.equal(copy, teacher.bfloat16())


def test_parameters_are_updated_outside_the_graph():
    student, teacher = nn.Linear(3, 4), nn.Linear(3, 4)
    before = clones(teacher.parameters())
    ema_update_(list(teacher.parameters()), list(student.parameters()), 0.5)
    for t, old, s in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(t.detach(), (old + s.detach()) / 2)
        assert t.is_leaf and t.grad_fn is None


def test_a_nan_arrives():
    teacher = [torch.zeros(2)]
    ema_update_(teacher, [torch.tensor([float("nan"), 1.0])], 0.5)
    assert teacher[0].isnan().tolist() == [True, False]


@pytest.mark.parametrize("bad", [False, True])
def test_a_skip_writes_nothing(bad):
    teacher, student = [torch.ones(5), torch.ones(2, 3)], [torch.zeros(5), torch.zeros(2, 3)]
    student[1][0, 0] = float("nan")
    copies = [torch.full_like(t, 7, dtype=torch.bfloat16) for t in teacher]
    ema_update_(teacher, student, 0.75, copies, skip=torch.tensor(bad))
    assert teacher[0].tolist() == [1.0 if bad else 0.75] * 5
    assert teacher[1][0, 0].isnan() != bad
    assert copies[0].tolist() == [7.0 if bad else 0.75] * 5
    with pytest.raises(ValueError, match=r"skip: found shape \(2,\), expected one number"):
        ema_update_(teacher, student, 0.75, skip=torch.zeros(2))


def test_nothing_to_update():
    ema_update_([], [], 0.5)
    ema_update_([], [], 0.5, [])


T, HALF = [torch.zeros(2, 3)], [torch.zeros(2, 3, dtype=torch.bfloat16)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((T, T, 1.5), "momentum: found 1.5, expected 0 to 1"),
        ((T, T, -0.1), "momentum: found -0.1, expected 0 to 1"),
        ((T, T, float("nan")), "momentum: found nan, expected 0 to 1"),
        ((T, T + T, 0.5), "teacher, student: found 1 and 2 tensors, expected as many"),
        (
            (T + T, [T[0], T[0].t()], 0.5),
            r"teacher\[1\], student\[1\]: found shapes \(2, 3\) and \(3, 2\), expected equal",
        ),
        ((T, T, 0.5, []), r"low_precision_copy: found shapes \[\], expected .*\[\(2, 3\)\]"),
        (
            (T, T, 0.5, [HALF[0].t()]),
            r"low_precision_copy: found shapes \[\(3, 2\)\], expected .*\[\(2, 3\)\]",
        ),
    ],
)
def test_rejected_arguments(arguments, message):
    with pytest.raises(ValueError, match="^" + message):
        ema_update_(*arguments)


WHOLE = torch.zeros(10)


@pytest.mark.parametrize(
    ("teacher", "copies", "names"),
    [
        ([WHOLE, WHOLE], None, r"teacher\[0\], teacher\[1\]"),
        ([WHOLE[:5], WHOLE[5:], WHOLE[9:]], None, r"teacher\[1\], teacher\[2\]"),
        ([WHOLE[1:], WHOLE[2:3].view(()), WHOLE[:1]], None, r"teacher\[0\], teacher\[1\]"),
        ([WHOLE[::2], WHOLE[::2]], None, r"teacher\[0\], teacher\[1\]"),
        ([WHOLE[:5], WHOLE[5:]], [HALF[0][0]] * 2, "low_precision_copy.0., low_precision_copy.1."),
        ([WHOLE], [WHOLE], r"low_precision_copy\[0\], teacher\[0\]"),
    ],
    ids=["twice", "overlapping", "inside", "strided", "copies", "its own copy"],
)
def test_memory_written_twice_is_rejected(teacher, copies, names):
    """A tied parameter that stands twice in a list would be averaged twice, or in a race."""
    student = [torch.ones_like(t) for t in teacher]
    if copies and copies[0] is not WHOLE:
        teacher, student = [t[:3] for t in teacher], [s[:3] for s in student]
    with pytest.raises(ValueError, match=f"^{names}: found memory that they share"):
        ema_update_(teacher, student, 0.5, copies)
    assert not WHOLE.any()


def test_neighbours_in_one_memory_are_not_rejected():
    """Flat and interleaved, as DeepSpeed's partitions and columns of a matrix are."""
    flat, columns = torch.zeros(9), torch.zeros(3, 2)
    teacher = [flat[:4], flat[4:4], flat[4:], columns[:, 0], columns[:, 1]]
    ema_update_(teacher, [torch.ones_like(t) for t in teacher], 0.5)
    assert (flat == 0.5).all() and (columns == 0.5).all()


def test_generators_are_read_once():
    """As module.parameters() is one."""
    (teacher, student), copies = make(), [torch.empty(s) for s in SHAPES]
    expected = clones(teacher)
    ema_update_(expected, student, 0.75)
    ema_update_(iter(teacher), iter(student), 0.75, iter(copies))
    for found in (teacher, copies):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_tensors_on_several_devices_are_rejected():
    with pytest.raises(
        ValueError, match=r"found tensors on \['cpu', 'meta'\], expected one device"
    ):
        ema_update_(T, [T[0].to("meta")], 0.5)


def test_half_precision_teacher_is_rejected_with_the_reason():
    with pytest.raises(
        ValueError, match=r"teacher\[0\]: found dtype torch.bfloat16, .*float32"
    ) as e:
        ema_update_(HALF, HALF, 0.998)
    assert "half an ulp" in str(e.value) and "never moves" in str(e.value)
    assert "low_precision_copy" in str(e.value)  # the way out


def test_a_rejected_update_changes_nothing():
    teacher = [torch.zeros(2), torch.zeros(2)]
    with pytest.raises(ValueError, match="found shapes"):
        ema_update_(teacher, [torch.ones(2), torch.ones(3)], 0.5)
    assert not any(t.any() for t in teacher)


@student_dtypes
@pytest.mark.parametrize("copying", [True, False], ids=["copying", "no copy"])
def test_opcheck(dtype, copying):
    teacher, student = make(dtype)
    copies = [t.bfloat16() for t in teacher] if copying else []
    arguments = (teacher, student, 0.75, copies)
    torch.library.opcheck(torch.ops.vjepa_fast.ema_update, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(backend):
    """In one graph, in place."""

    def step(teacher, student, copies):
        ema_update_(teacher, [2 * s for s in student], 0.75, copies)

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    teacher, student = make()
    expected, copies = clones(teacher), [t.bfloat16() for t in teacher]
    expected_copies = clones(copies)
    step(expected, student, expected_copies)
    compiled(teacher, student, copies)
    for found, right in ((teacher, expected), (copies, expected_copies)):
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_autocast_changes_nothing():
    teacher, student = make()
    expected = clones(teacher)
    ema_update_(expected, student, 0.75)
    with torch.autocast("cpu", torch.bfloat16):
        ema_update_(teacher, student, 0.75)
    assert all(torch.equal(a, b) for a, b in zip(teacher, expected, strict=True))
