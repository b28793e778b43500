"""Exponential moving average (EMA) of parameters, in fp32, all tensors in one launch.

Our trainer passes one flat tensor per parameter group. The pointer tables and their cache serve
drop-in use: hundreds of separate parameters, some strided, in one launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from vjepa_fast.kernels._dispatch import LAUNCH, require, use_triton

BLOCK, WARPS = 2048, 8
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# The cache holds 128 MiB of tables, or 1024 tables of any size.
KEPT_ROWS, FEWEST_ROWS = 1 << 22, 1 << 12

Entry = tuple[int, int, int, int, torch.dtype, torch.dtype | None]  # Args of `block_table`
BlockTable = tuple[Tensor, torch.dtype, torch.dtype | None]
_cache: dict[tuple[torch.device, tuple[Entry, ...]], list[BlockTable]] = {}


@torch.no_grad()
def ema_update_reference_(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float,
    low_precision_copy: Sequence[Tensor] | None,
    skip: Tensor | None = None,
) -> None:
    """The specification of `ema_update_`, in plain PyTorch."""
    if skip is not None and skip.device.type == "cpu":  # no host sync
        if skip != 0:
            return
        skip = None
    ema = list(teacher) if skip is None else [t.clone() for t in teacher]
    torch._foreach_lerp_(ema, [s.float() for s in student], 1.0 - momentum)
    copies = [] if low_precision_copy is None else list(low_precision_copy)
    if skip is None:
        written, new = copies, ema[: len(copies)]
    else:
        written, new = [*teacher, *copies], [*ema, *ema[: len(copies)]]
        new = [torch.where(skip != 0, w, n.to(w.dtype)) for w, n in zip(written, new, strict=True)]
    if written:
        torch._foreach_copy_(written, new)


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
def ema_kernel(
    p_table, weight, p_skip, STUDENT: tl.constexpr, COPY: tl.constexpr, BLOCK: tl.constexpr
):
    """Program i updates the block of row i of the table, see `block_table`."""
    if p_skip is not None:  # noqa: SIM102 decided at compile time
        if tl.load(p_skip) != 0:
            return
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
        # 4 elements per thread for every dtype: 8 would exchange values through shared memory
        p_teacher = tl.max_contiguous(tl.multiple_of(p_teacher, 16), 4)
        p_student = tl.max_contiguous(tl.multiple_of(p_student, 16), 4)
        p_copy = tl.max_contiguous(tl.multiple_of(p_copy, 16), 4)
        average(p_teacher, p_student, p_copy, weight, None, COPY)
    else:
        average(p_teacher, p_student, p_copy, weight, o < left, COPY)


def require_disjoint(teacher: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Reject tensors that overlap: a GPU would write them in any order.

    Only the first element of a strided tensor is checked.
    """
    written = sorted(
        (t.data_ptr(), t.nbytes if t.is_contiguous() else t.itemsize, name, i)
        for name, tensors in (("teacher", teacher), ("low_precision_copy", copies))
        for i, t in enumerate(tensors)
        if t.numel() and not t.is_meta
    )
    for (start, size, *one), (after, _, *other) in pairwise(written):
        if after < start + size:
            raise ValueError(
                "{}[{}], {}[{}]: found memory that they share, expected memory of its own for each "
                "tensor; pass a tied parameter once".format(*one, *other)
            )


def block_table(entries: Sequence[Entry], device: torch.device) -> Tensor:
    """For each program: addresses of its block of teacher, student and copy, and elements left.

    Args:
        entries: of each tensor the addresses of teacher, student and copy, the number of elements,
            and the dtypes of student and copy, which are the same in all entries.

    Returns:
        [blocks, 4] int64 on the device.
    """
    table = torch.tensor([entry[:4] for entry in entries], dtype=torch.int64)
    student, copy = entries[0][4:]
    blocks = (table[:, 3] + BLOCK - 1) // BLOCK
    owner = torch.repeat_interleave(torch.arange(len(entries)), blocks)
    first = torch.cumsum(blocks, 0) - blocks
    offset = BLOCK * (torch.arange(len(owner)) - first[owner])
    step = torch.tensor([4, student.itemsize, copy.itemsize if copy else 0, -1])
    return (table[owner] + offset[:, None] * step).to(device)  # host sync


def _table_rows(tables: list[BlockTable]) -> int:
    return max(FEWEST_ROWS, sum(len(table) for table, *_ in tables))


def block_tables(
    entries: tuple[Entry, ...], teacher: Sequence[Tensor], copies: Sequence[Tensor]
) -> list[BlockTable]:
    """For each launch (one per pair of dtypes): table, student's dtype, copy's dtype.

    The first call with these tensors is a host sync. Tables are cached, about `KEPT_ROWS` rows in
    all; the least recently used are evicted.
    """
    key = (teacher[0].device, entries)
    tables = _cache.pop(key, None)
    if tables is None:
        require_disjoint(teacher, copies)
        groups: dict[tuple, list[Entry]] = {}
        for entry in entries:
            groups.setdefault(entry[4:], []).append(entry)
        tables = [(block_table(group, key[0]), *kinds) for kinds, group in groups.items()]
        while sum(map(_table_rows, _cache.values())) > KEPT_ROWS:
            _cache.pop(next(iter(_cache)))
    _cache[key] = tables
    return tables


def _temporary_copy(copy: Tensor) -> Tensor:
    """A contiguous tensor that the kernel can write, for a strided copy or an unsupported dtype.

    It starts with the values of the copy, which a skipped update must leave unchanged.
    """
    dtype = copy.dtype if copy.dtype in DTYPES else torch.float32
    return torch.empty(copy.shape, dtype=dtype, device=copy.device).copy_(copy)


def launch_ema_(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float,
    copies: Sequence[Tensor],
    skip: Tensor | None = None,
) -> None:
    """One launch for each pair of dtypes of student and copy; a model usually has one pair."""
    contiguous = [t.contiguous() for t in teacher]  # the same tensors unless strided
    sources = [(s if s.dtype in DTYPES else s.float()).contiguous() for s in student]
    targets = [c if c.is_contiguous() and c.dtype in DTYPES else _temporary_copy(c) for c in copies]
    own, written = [*teacher, *copies], [*contiguous, *targets]
    moved = [(o, w) for o, w in zip(own, written, strict=True) if o is not w]
    if moved:
        require_disjoint(teacher, copies)  # the temporaries never overlap
    ends = [(c.data_ptr(), c.dtype) for c in targets] or [(0, None)] * len(contiguous)
    entries = tuple(
        (t.data_ptr(), s.data_ptr(), address, t.numel(), s.dtype, copy)
        for t, s, (address, copy) in zip(contiguous, sources, ends, strict=True)
    )
    with torch.cuda.device_of(teacher[0]):
        for table, dtype, copy in block_tables(entries, contiguous, targets):
            if len(table):
                ema_kernel[(len(table),)](
                    table,
                    1.0 - momentum,
                    skip,
                    STUDENT=DTYPES[dtype],
                    COPY=DTYPES[copy] if copy else None,
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                    **LAUNCH,
                )
    for o, w in moved:
        o.copy_(w)


@torch.library.custom_op("vjepa_fast::ema_update", mutates_args=("teacher", "copies"))
def ema_update_op(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    momentum: float,
    copies: Sequence[Tensor],
    skip: Tensor | None = None,
) -> None:
    """See `ema_update_`; an empty list of copies is none."""
    if use_triton("ema_update_", teacher[0]):
        launch_ema_(teacher, student, momentum, copies, skip)
    else:
        require_disjoint(teacher, copies)
        ema_update_reference_(teacher, student, momentum, copies or None, skip)


@ema_update_op.register_fake
def _(teacher, student, momentum, copies, skip=None):
    return None


def ema_update_(
    teacher: Iterable[Tensor],
    student: Iterable[Tensor],
    momentum: float,
    low_precision_copy: Iterable[Tensor] | None = None,
    skip: Tensor | None = None,
) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, in place (paper, section 3.1).

    On a GPU all contiguous tensors are read and written once, in one launch; strided ones are
    copied before and after. The first call with these tensors is a host sync.

    Args:
        teacher: fp32 tensors, all on one device, each with memory of its own.
        student: tensors of the same shapes, any floating dtype.
        momentum: in 0 … 1.
        low_precision_copy: tensors of the same shapes that receive the new teacher, cast.
        skip: one number on the same device; if it is not 0, nothing is written. It is read on the
            device, without a host sync.

    Raises:
        ValueError: unequal lengths, shapes or devices; a momentum outside 0 … 1; a teacher not in
            fp32; teachers or copies that share memory; a skip of more than one number.
    """
    require(
        0.0 <= momentum <= 1.0, f"momentum: found {momentum}, expected 0 to 1; pass the EMA's decay"
    )
    teacher, student, copies = list(teacher), list(student), list(low_precision_copy or ())
    require(
        len(teacher) == len(student),
        f"teacher, student: found {len(teacher)} and {len(student)} tensors, expected as many; "
        "pass one student tensor for each teacher tensor",
    )
    for i, (t, s) in enumerate(zip(teacher, student, strict=True)):
        if t.shape != s.shape:  # not `require`, which would format its message for every tensor
            raise ValueError(
                f"teacher[{i}], student[{i}]: found shapes {tuple(t.shape)} and {tuple(s.shape)}, "
                "expected equal shapes; pass both lists in one order"
            )
        if t.dtype != torch.float32:
            raise ValueError(
                f"teacher[{i}]: found dtype {t.dtype}, expected float32; keep fp32 and pass "
                "low_precision_copy, since at a momentum near 1 an update is below half an ulp of "
                "lower precision and the EMA never moves"
            )
    if low_precision_copy is not None:
        found, expected = [c.shape for c in copies], [t.shape for t in teacher]
        if found != expected:
            raise ValueError(
                f"low_precision_copy: found shapes {[*map(tuple, found)]}, expected the teacher's "
                f"{[*map(tuple, expected)]}; pass one copy for each teacher tensor"
            )
    if not teacher:  # PyTorch's list functions reject an empty list
        return
    skips = [] if skip is None else [skip]
    if skip is not None and skip.numel() != 1:
        raise ValueError(
            f"skip: found shape {tuple(skip.shape)}, expected one number; reduce it first"
        )
    devices = {t.device for tensors in (teacher, student, copies, skips) for t in tensors}
    if len(devices) > 1:
        raise ValueError(
            "teacher, student, low_precision_copy, skip: found tensors on "
            f"{sorted(map(str, devices))}, expected one device; call once per device"
        )
    with torch.no_grad():
        ema_update_op(teacher, student, momentum, copies, skip)
