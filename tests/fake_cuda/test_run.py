"""A whole run on the device: decoding, copies in a stream of their own, pictures, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from tests.fake_cuda.device import counted, reset
from tests.fake_cuda.steps import WORLD, prepared
from vjepa_fast.config import parse_config
from vjepa_fast.inference.load import load_encoder
from vjepa_fast.training.loop import pretrain

if WORLD > 1:
    pytest.skip("one process has all of a run's clips", allow_module_level=True)


@pytest.fixture(autouse=True)
def _linear_algebra_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuSOLVER needs a driver."""
    values, vectors = torch.linalg.svdvals, torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "svdvals", lambda x: values(x.cpu()).cuda())
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: [y.cuda() for y in vectors(x.cpu())])


def test_a_run_and_its_features_go_through(small_config: Callable[..., dict]) -> None:
    """With PyAV's loader."""
    data = small_config(precision="bf16")
    data["data"]["backend"] = "pyav"
    reset()
    with prepared() as kernels:
        run = pretrain(parse_config(data))
    found = counted()
    assert "patchify_kernel" in kernels and "ema_kernel" in kernels
    clip, clips = 8 * 24 * 24 * 3, 8 * 8
    assert found["copy to device from pinned, bytes"] > clips * clip  # the videos of all steps
    assert found["synchronize stream"] >= clips / 4  # the loader's, in a thread of its own
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(8))
    assert len(list(run.glob("**/state.json"))) == 2

    with prepared():
        features = load_encoder(run)(torch.zeros(2, 8, 24, 24, 3, dtype=torch.uint8)).tokens
    assert features.device.type == "cuda" and features.dtype == torch.float32
