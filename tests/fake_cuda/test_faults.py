"""Each check of test_step.py fails where it should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.fake_cuda.device import Operators, counted, host_syncs, kernels_compiled, reset
from tests.fake_cuda.planned import unplanned
from vjepa_fast.kernels import gather_tokens
from vjepa_fast.kernels.gather import launch_gather
from vjepa_fast.models.sequences import SeqLayout, to_device

WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": Tensor.item,
    "bool": lambda x: bool(x > 0),
    "cpu": Tensor.cpu,
    "to": lambda x: x.to("cpu"),
    "nonzero": Tensor.nonzero,
    "boolean index": lambda x: x.expand(3)[x.expand(3) > 0],
    "synchronize": lambda _: torch.cuda.synchronize(),
    "stream": lambda _: torch.cuda.current_stream().synchronize(),
    "new tensor": lambda _: torch.tensor([1.0, 2.0], device="cuda"),
    "from pageable memory": lambda x: x.copy_(torch.ones(1), non_blocking=True),
}


@pytest.fixture
def number() -> Tensor:
    found = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    reset()
    return found


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waiting_for_the_device_is_seen(wait: Callable, number: Tensor) -> None:
    wait(number)
    assert host_syncs(counted()) != {}


def test_work_on_the_device_is_no_wait(number: Tensor) -> None:
    event = torch.cuda.Event(enable_timing=True)
    number = number.mul(2).bfloat16().view(1, 1).mm(number.bfloat16().view(1, 1))
    event.record()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_event(event)
        number += 1
    to_device(torch.ones(3), "cuda")
    found = counted()
    assert host_syncs(found) == {}
    assert found["launches"] > 1 and found["events"] > 0 and found["stream waits"] > 0
    assert found["copy to device from pinned"] == 1


def test_offsets_of_sequences_come_from_pinned_memory(number: Tensor) -> None:
    """They once came from pageable memory, twice in every micro-batch."""
    layout = SeqLayout.of([3, 4], "cuda")
    assert layout.cu_seqlens.device.type == "cuda"
    layout.per_row(torch.zeros(2, device="cuda"))
    assert host_syncs(counted()) == {}


def test_a_tensor_on_the_host_is_seen() -> None:
    with Operators() as operators:
        torch.zeros(3, device="cuda")[torch.tensor([0, 1])]
        torch.arange(1000) + 1
        torch.zeros(3, device="cuda") * torch.tensor(2.0)
    assert operators.mixed == {"index"}
    assert max(operators.on_host.values()) == 1000


def test_a_tensor_on_another_device_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(3, device="cuda") + torch.zeros(3)
    with pytest.raises(ValueError, match="found device cpu"):
        gather_tokens(torch.zeros(1, 3, 8, device="cuda"), torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [
        (lambda x: x.double(), torch.float64),
        (lambda x: x.half(), torch.float16),
        (lambda x: torch.mm(x, x), torch.float32),
        (lambda x: torch._foreach_norm([x.bfloat16()]), torch.bfloat16),
        (lambda x: torch.softmax(x.bfloat16(), 0), torch.bfloat16),
    ],
)
def test_an_unplanned_dtype_is_seen(operator: Callable, dtype: torch.dtype) -> None:
    with Operators() as operators:
        operator(torch.zeros(2, 2, device="cuda"))
    assert dtype in {found for _, found in unplanned(operators.dtypes)}


def test_a_kernel_with_a_tensor_on_the_host_is_seen() -> None:
    x, index = torch.zeros(1, 3, 8, device="cuda"), torch.zeros(1, 2, dtype=torch.int64)
    with kernels_compiled() as kernels:
        launch_gather(x, [index.cuda()])
        assert kernels["gather_kernel"] == {(torch.float32, torch.int64, torch.float32)}
        launch_gather(x, [index])
    assert (torch.float32, None, torch.float32) in kernels["gather_kernel"]
