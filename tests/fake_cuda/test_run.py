"""A whole run on the device: decoding, copies in a stream of their own, pictures, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.fake_cuda.device import counted, reset
from tests.fake_cuda.steps import WORLD, prepared
from vjepa_fast.config import parse_config
from vjepa_fast.training.loop import pretrain

if WORLD > 1:
    pytest.skip("one process has all of a run's clips", allow_module_level=True)


def test_a_run_goes_through(
    small_config: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PyAV's loader; singular values and eigenvectors are computed on the host."""
    values, vectors = torch.linalg.svdvals, torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "svdvals", lambda x: values(x.cpu()).cuda())
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: [y.cuda() for y in vectors(x.cpu())])
    data = small_config(precision="bf16")
    data["data"]["backend"] = "pyav"
    reset()
    with prepared() as kernels:
        pretrain(parse_config(data))
    found = counted()
    assert "patchify_kernel" in kernels and "ema_kernel" in kernels
    clip, clips = 8 * 24 * 24 * 3, 8 * 8
    assert found["copy to device from pinned, bytes"] > clips * clip  # the videos of all steps
    assert found["synchronize stream"] >= clips / 4  # the loader's, in a thread of its own
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(8))
    assert len(list(run.glob("**/state.json"))) == 2
