"""Between log steps there is no host sync and no garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.trainers import make_trainer, micro_batch
from vjepa_fast.config import parse_config
from vjepa_fast.training.distributed.garbage_collection import ManualGarbageCollection
from vjepa_fast.training.loop import pretrain

READS = {
    *(torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy),
    *(torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__),
    *(torch.Tensor.nonzero, torch.Tensor.to_dense),
}


class Methods(TorchFunctionMode):
    """Records the tensor methods that copy a number from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Records the operators that do so when C++ calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def reads(call: Callable[[], object]) -> list[str]:
    with Methods() as methods, Operators() as operators:
        call()
    return methods.found + operators.found


@pytest.mark.parametrize(
    ("stage", "bf16", "accumulation", "second"),
    [
        (0, False, 1, False),
        (1, False, 2, False),
        (1, True, 2, False),
        (2, True, 2, False),
        (3, True, 2, False),
        (1, True, 2, True),
    ],
)
def test_a_step_has_no_host_sync(stage: int, bf16: bool, accumulation: int, second: bool) -> None:
    """Neither a read nor `synchronize`; on a CPU without stage 3's waits for streams."""
    trainer = make_trainer(stage, bf16, accumulation=accumulation, clip_grad=1.0, second=second)
    batches = [micro_batch(step, second=second) for step in range(accumulation)]
    for _ in range(3):  # the optimizer makes its state; DeepSpeed's timers would start
        trainer.step(batches)
    waits: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        device = type(get_accelerator())
        patch.setattr(device, "synchronize", lambda *_: waits.append("synchronize"))
        found = reads(lambda: trainer.step(batches))
    assert found + waits == []


def test_reads_are_recorded() -> None:
    """The test above can fail."""
    number = torch.ones(1)
    assert reads(lambda: number.item()) == ["item", "aten._local_scalar_dense.default"]
    assert reads(lambda: bool(number > 0))[0] == "__bool__"
    assert reads(lambda: torch.nn.functional.one_hot(torch.tensor([1]))) != []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose driver tells")
@pytest.mark.parametrize("second", [False, True])
def test_on_a_gpu_a_step_has_no_host_sync(second: bool) -> None:
    trainer = make_trainer(bf16=True, second=second)
    batch = [micro_batch(0, device="cuda", second=second)]
    for _ in range(4):
        trainer.step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_garbage_is_collected_only_on_request() -> None:
    class Cycle:
        alive = 0

        def __init__(self) -> None:
            Cycle.alive += 1
            self.own = self

        def __del__(self) -> None:
            Cycle.alive -= 1

    assert gc.isenabled()
    with ManualGarbageCollection() as garbage:
        assert not gc.isenabled() and gc.get_freeze_count() > 0
        for _ in range(3000):  # more than any of Python's thresholds
            Cycle()
        assert Cycle.alive == 3000
        garbage.collect()
        assert Cycle.alive == 0
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_a_run_collects_at_log_steps_only(
    small_config: Callable[..., dict], tmp_path: Path
) -> None:
    """A step leaves next to no garbage until then, since garbage holds memory."""
    found = []

    def watch(phase: str, info: dict) -> None:
        if phase == "stop":
            found.append(info["collected"])

    data = small_config(optim={"steps": 24}, log={"every": 6, "collapse_every": 1000})
    data["checkpoint"]["every"] = 1000
    gc.callbacks.append(watch)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ManualGarbageCollection, "__enter__", _entered_and_counting(found))
            patch.setattr(ManualGarbageCollection, "__exit__", _left_and_stopped(found))
            pretrain(parse_config(data))
    finally:
        gc.callbacks.remove(watch)
    inside = found[found.index("entered") + 1 : found.index("left")]
    assert len(inside) == 5  # the first step, then every sixth
    per_step = [count / 6 for count in inside[1:]]
    assert max(per_step) < 2000


def _entered_and_counting(
    found: list,
) -> Callable[[ManualGarbageCollection], ManualGarbageCollection]:
    enter = ManualGarbageCollection.__enter__

    def call(self: ManualGarbageCollection) -> ManualGarbageCollection:
        enter(self)
        found.append("entered")
        return self

    return call


def _left_and_stopped(found: list) -> Callable[..., None]:
    leave = ManualGarbageCollection.__exit__

    def call(self: ManualGarbageCollection, *error: object) -> None:
        found.append("left")
        leave(self, *error)

    return call
