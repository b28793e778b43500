"""Kernel tests on whichever device runs Triton: a GPU (`--device cuda`), or the interpreter."""

from __future__ import annotations

import os

import pytest
import torch

from vjepa_fast.kernels import dispatch

POISON = {torch.bool: True, torch.uint8: 255}


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
