"""Kernel tests on whichever device runs Triton: a GPU (`--device cuda`), or the interpreter."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from vjepa_fast.kernels import _dispatch as dispatch

POISON = {torch.bool: True, torch.uint8: 255}


def round_to_bfloat16(cast):
    """The interpreter truncates fp32 to bf16; a GPU rounds to nearest, so both do that here."""

    def wrapper(self, source, dtype):
        if (source.dtype.scalar, dtype.scalar) == (tl.float32, tl.bfloat16):
            values = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
            data = values.view(torch.int16).numpy().view(np.uint16)
            return interpreter.TensorHandle(data.reshape(source.data.shape), dtype.scalar)
        return cast(self, source, dtype)

    return wrapper


Builder = interpreter.InterpreterBuilder
Builder.cast_impl = round_to_bfloat16(Builder.cast_impl)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run in this session."""
    name = request.config.getoption("--device")
    if name == "cpu":
        assert dispatch.INTERPRETED, "on a CPU these tests need TRITON_INTERPRET=1"
        assert os.environ.get("VJEPA_FAST_KERNELS") == "triton"
    elif not torch.cuda.is_available():
        sentence = "found no GPU, expected one for --device cuda"
        if os.environ.get("VJEPA_FAST_REQUIRE_CUDA") == "1":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return torch.device(name)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN (integers: their largest value), so an element left out shows."""

    def poisoned(allocate):
        def wrapper(*args, **kwargs):
            out = allocate(*args, **kwargs)
            if out.dtype.is_floating_point:
                return out.fill_(float("nan"))
            return out.fill_(POISON.get(out.dtype) or torch.iinfo(out.dtype).max)

        return wrapper

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
