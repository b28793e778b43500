"""Fixtures that several test files share: small videos, a small config, and a small trainer."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

THREADS = 2 if os.environ.get("OMP_NUM_THREADS") == "2" else 1  # eight processes may run tests
os.environ["OMP_NUM_THREADS"] = str(THREADS)
torch.set_num_threads(THREADS)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
# Runs would ignore these where nohup, or a shell in the background, started the tests.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

KERNELS = Path(__file__).parent / "kernels" / "triton_kernels"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="cuda also runs tests/kernels/triton_kernels here, on a GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    """What the tests expect is what a CPU gives. By the option, which pytest-xdist's processes know
    too; their command line doesn't hold it."""
    if config.getoption("--device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """SVT-AV1, which writes some tests' videos, makes its process real-time if it may: under root,
    and then the other processes of the machine stand still."""
    _share_processors()
    try:
        return (yield)
    finally:
        _share_processors()


def _share_processors() -> None:
    found = os.sched_getscheduler(0)
    flag = found & os.SCHED_RESET_ON_FORK  # only root may clear it
    if found - flag in (os.SCHED_FIFO, os.SCHED_RR):  # users choose the others
        os.sched_setscheduler(0, os.SCHED_OTHER | flag, os.sched_param(0))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """On a CPU kernels/without_gpu/test_interpreted.py runs these, in a process of their own."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if collection_path == KERNELS and config.getoption("--device") == "cpu" and not interpreted:
        return True
    return None


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    """Commands that ran in a test set up the logger for a stderr that is closed after it."""
    logger = logging.getLogger("vjepa_fast")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate, level = before
    logger.setLevel(level)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few demo videos: train.csv (48 clips) and test.csv (16)."""
    from vjepa_fast.data.prepare.demo.write import make_demo

    folder = tmp_path_factory.mktemp("demo")
    make_demo(folder, clips=48, test_clips=16, workers=2)
    return folder


@pytest.fixture
def small_config(demo: Path, tmp_path: Path) -> Callable[..., dict]:
    """Makes the JSON data of a run that takes seconds; keyword arguments replace whole sections'
    keys, e.g. optim={"steps": 4}."""

    def make(**changes: dict) -> dict:
        config = {
            "output": str(tmp_path / "run"),
            "data": {
                "manifests": [str(demo / "train.csv")],
                "num_frames": 8,
                "frame_step": 1,
                "crop_size": 24,
                "num_workers": 1,
            },
            "model": {
                "encoder": {"width": 24, "depth": 2, "heads": 2},
                "predictor": {"width": 12, "depth": 1, "heads": 2},
                "patch_size": 8,
            },
            "masks": {
                "specs": [
                    {"num_blocks": 2, "spatial_scale": [0.3, 0.3]},
                    {"num_blocks": 1, "spatial_scale": [0.6, 0.6]},
                ],
                "truncate_group": 8,
            },
            "optim": {
                "steps": 8,
                "global_batch": 8,
                "micro_batch": 4,
                "warmup_steps": 2,
                "lr": 1e-3,
                "clip_grad": 0.05,
            },
            "teacher": {"momentum": [0.9, 1.0]},
            "log": {"every": 1, "collapse_every": 4},
            "checkpoint": {"every": 4, "keep_last": 2},
        }
        for section, keys in changes.items():
            if isinstance(keys, dict):
                config[section] = config.get(section, {}) | keys
            else:
                config[section] = keys
        return config

    return make
