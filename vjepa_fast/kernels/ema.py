"""Exponential moving average of parameters, in fp32, all tensors in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels.checks import require
from vjepa_fast.kernels.dispatch import LAUNCH, use_triton

BLOCK, WARPS = 2048, 8
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@torch.no_grad()
def ema_update_reference_(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float,
    low_precision_copy: Sequence[Tensor] | None,
) -> None:
    """The specification of `ema_update_`, in plain PyTorch."""
    torch._foreach_lerp_(list(teacher), [s.float() for s in student], 1.0 - momentum)
    if low_precision_copy is not None:
        torch._foreach_copy_(list(low_precision_copy), list(teacher))


@triton.jit
def average(p_teacher, p_student, p_copy, weight, m_left, COPY: tl.constexpr):
    """One block: teacher + weight · (student - teacher), exact at weight 0 and 1."""
    b_teacher = tl.load(p_teacher, m_left)
    b_student = tl.load(p_student, m_left).to(tl.float32)
    b_difference = b_student - b_teacher
    b_near = b_teacher + weight * b_difference
    b_far = b_student - (1.0 - weight) * b_difference
    b_teacher = tl.where(weight < 0.5, b_near, b_far)
    tl.store(p_teacher, b_teacher, m_left)
    if COPY is not None:
        tl.store(p_copy, b_teacher.to(COPY), m_left)


@triton.jit
def ema_kernel(p_table, weight, STUDENT: tl.constexpr, COPY: tl.constexpr, BLOCK: tl.constexpr):
    """Program i averages the block that row i of the table tells: see `block_table`."""
    p_row = p_table + tl.program_id(0).to(tl.int64) * 4
    a_teacher, a_student, a_copy = tl.load(p_row), tl.load(p_row + 1), tl.load(p_row + 2)
    left = tl.load(p_row + 3)
    o = tl.arange(0, BLOCK)
    p_teacher = a_teacher.to(tl.pointer_type(tl.float32)) + o
    p_student = a_student.to(tl.pointer_type(STUDENT)) + o
    p_copy = p_student
    if COPY is not None:
        p_copy = a_copy.to(tl.pointer_type(COPY)) + o
    if (left >= BLOCK) & (((a_teacher | a_student | a_copy) & 15) == 0):
        # 4 elements a thread whatever their dtype: 8 would exchange values through shared memory
        p_teacher = tl.max_contiguous(tl.multiple_of(p_teacher, 16), 4)
        p_student = tl.max_contiguous(tl.multiple_of(p_student, 16), 4)
        p_copy = tl.max_contiguous(tl.multiple_of(p_copy, 16), 4)
        average(p_teacher, p_student, p_copy, weight, None, COPY)
    else:
        average(p_teacher, p_student, p_copy, weight, o < left, COPY)


@lru_cache(maxsize=16)
def block_table(
    tensors: tuple[tuple[int, int, int, int], ...], sizes: tuple[int, int], device: torch.device
) -> Tensor:
    """What each program does: addresses of its teacher, student and copy, elements left there.

    Built when the addresses change, that is once in a training run.

    Args:
        tensors: addresses of teacher, student and copy, and number of elements, of each tensor.
        sizes: bytes of an element of the student and of the copy; the teacher's has 4.

    Returns:
        [blocks, 4] int64 on the device.
    """
    table = torch.tensor(tensors, dtype=torch.int64)
    blocks = (table[:, 3] + BLOCK - 1) // BLOCK
    owner = torch.repeat_interleave(torch.arange(len(tensors)), blocks)
    first = torch.cumsum(blocks, 0) - blocks
    offset = BLOCK * (torch.arange(len(owner)) - first[owner])
    step = torch.tensor([4, *sizes, -1])
    return (table[owner] + offset[:, None] * step).to(device)  # host sync


def launch_ema_(
    teacher: Sequence[Tensor], student: Sequence[Tensor], momentum: float, copies: Sequence[Tensor]
) -> None:
    """One launch for each pair of dtypes of student and copy; a model usually has one."""
    averages = [t.contiguous() for t in teacher]  # the same tensors, but for strided ones
    sources = [(s if s.dtype in DTYPES else s.float()).contiguous() for s in student]
    targets = [
        c
        if c.is_contiguous() and c.dtype in DTYPES
        else torch.empty_like(t, dtype=c.dtype if c.dtype in DTYPES else t.dtype)
        for c, t in zip(copies, averages, strict=bool(copies))
    ]
    groups: dict[tuple[torch.dtype, torch.dtype | None], list[tuple[int, int, int, int]]] = {}
    for i, (t, s) in enumerate(zip(averages, sources, strict=True)):
        copy, address = (targets[i].dtype, targets[i].data_ptr()) if copies else (None, 0)
        entry = (t.data_ptr(), s.data_ptr(), address, t.numel())
        groups.setdefault((s.dtype, copy), []).append(entry)
    with torch.cuda.device_of(teacher[0]):
        for (dtype, copy), entries in groups.items():
            sizes = (dtype.itemsize, copy.itemsize if copy else 0)
            table = block_table(tuple(entries), sizes, teacher[0].device)
            if len(table):
                ema_kernel[(len(table),)](
                    table,
                    1.0 - momentum,
                    STUDENT=DTYPES[dtype],
                    COPY=DTYPES[copy] if copy else None,
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                    **LAUNCH,
                )
    for own, written in ((teacher, averages), (copies, targets)):
        for o, w in zip(own, written, strict=True):
            if o is not w:
                o.copy_(w)


@torch.library.custom_op("vjepa_fast::ema_update", mutates_args=("teacher", "copies"))
def _ema_update(
    teacher: Sequence[Tensor], student: Sequence[Tensor], momentum: float, copies: Sequence[Tensor]
) -> None:
    if use_triton("ema_update_", teacher[0]):
        launch_ema_(teacher, student, momentum, copies)
    else:
        ema_update_reference_(teacher, student, momentum, copies or None)


@_ema_update.register_fake
def _(teacher, student, momentum, copies):
    return None


def ema_update_(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float,
    low_precision_copy: Sequence[Tensor] | None = None,
) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, in place (paper, section 3.1).

    On a GPU all contiguous tensors are read and written once, in one launch; the others are copied
    before and after.

    Args:
        teacher: fp32 tensors, all on one device.
        student: tensors of the same shapes, any floating dtype.
        momentum: in 0 … 1.
        low_precision_copy: tensors of the same shapes that receive the new teacher, cast.

    Raises:
        ValueError: lists, shapes or devices that differ, a momentum outside 0 … 1, a teacher not in
            fp32.
    """
    require(0.0 <= momentum <= 1.0, f"momentum: found {momentum}, expected 0 to 1")
    require(
        len(teacher) == len(student),
        f"teacher, student: found {len(teacher)} and {len(student)} tensors, expected as many",
    )
    for i, (t, s) in enumerate(zip(teacher, student, strict=True)):
        require(
            t.shape == s.shape,
            f"teacher[{i}], student[{i}]: found shapes {tuple(t.shape)} and {tuple(s.shape)}, "
            "expected equal shapes",
        )
        require(
            t.dtype == torch.float32,
            f"teacher[{i}]: found dtype {t.dtype}, expected float32; in lower precision an update "
            "at a momentum near 1 is less than half an ulp and the average never moves (keep fp32 "
            "and pass low_precision_copy)",
        )
    copies = list(low_precision_copy or ())
    if low_precision_copy is not None:
        found = [tuple(c.shape) for c in low_precision_copy]
        expected = [tuple(t.shape) for t in teacher]
        require(
            found == expected,
            f"low_precision_copy: found shapes {found}, expected the teacher's {expected}",
        )
    if not teacher:  # PyTorch's list functions refuse an empty list
        return
    devices = {t.device for tensors in (teacher, student, copies) for t in tensors}
    require(
        len(devices) == 1,
        f"teacher, student, low_precision_copy: found tensors on {sorted(map(str, devices))}, "
        "expected one device; update the tensors of each device in a call of their own",
    )
    with torch.no_grad():
        _ema_update(list(teacher), list(student), momentum, copies)
