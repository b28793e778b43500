"""Where probes write: a store that is kept serves others, and no two write to one place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.test_locks import HOLD
from vjepa_fast.evaluation.views import fill

PIXELS = ("--baselines", "pixels")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many videos' features were computed since the last look, by the kind of the store."""
    counts: dict[str, int] = {}
    compute = fill._compute

    def counting(stores, missing) -> None:
        for lacks in missing.values():
            for store, rows in zip(stores, lacks, strict=True):
                kind = store.folder.path.name.split("-")[0]
                counts[kind] = counts.get(kind, 0) + len(rows)
        compute(stores, missing)

    monkeypatch.setattr(fill, "_compute", counting)
    return counts


@pytest.mark.slow
def test_a_kept_store_serves_other_probes(probe, run: Path, demo: Path, computed: dict) -> None:
    """Another grid, another validation set, another form of the features, other clips."""
    test = str(demo / "test.csv")
    for more, new in (
        ((), 48 + 16),
        (("--validation", "0.2"), 0),
        (("--label-shares", "0.3", "--draws", "1"), 0),
        (("--validation", test), 0),  # its features are those of --test
        (("--validation", test, "--lr", "1e-3,1e-2"), 0),
        (("--probe", "linear", "--lr", "1e-2"), 48 + 16),
        (("--num-frames", "4"), 48 + 16),
        ((), 0),
    ):
        computed.clear()
        kept, _ = probe(*more, *PIXELS, "--store", str(run / "store"))
        wanted = {"pretrained_encoder": new, "raw_pixels": new} if new else {}
        assert {kind: count for kind, count in computed.items() if count} == wanted, more
        assert kept["grid"] == probe(*more, *PIXELS)[0]["grid"], more
    components = [*(run / "store").glob("pixels-*.safetensors")]
    assert len(components) == 2  # of clips of 8 frames and of 4


def test_a_file_for_a_folder(probe, run: Path) -> None:
    for option in ("--store", "--output"):
        for place in ("config.json", "config.json/below"):
            error = probe(option, str(run / place), *PIXELS, status=2)[1]
            assert f"{run / place}: found that nothing can be written there (" in error
            assert f"name another with {option}" in error and "Traceback" not in error
    (run / "probe_work").touch()
    error = probe(*PIXELS, status=2)[1]
    assert f"{run / 'probe_work'}: found that nothing can be written there (File exists)" in error


@contextmanager
def held(place: Path) -> Iterator[None]:
    """Another process writes there."""
    command = [sys.executable, "-c", HOLD, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            yield
        finally:
            holder.kill()


@pytest.mark.parametrize("option", ["--output", "--store"])
def test_a_second_probe_is_refused(probe, tmp_path: Path, option: str) -> None:
    """And takes nothing from the first one."""
    place = tmp_path / "place"
    (place / "probe_work").mkdir(parents=True)
    (place / "probe_work" / "half").touch()
    lock = place / "probe.json" if option == "--output" else place
    with held(lock):
        error = probe(option, str(place), status=2)[1]
    assert f"{lock}: found that another process writes to it (host " in error
    assert f"wait for its end, or name another folder with {option}" in error
    assert (place / "probe_work" / "half").is_file()


def test_a_run_that_trains_can_be_probed(probe, run: Path) -> None:
    with held(run):
        assert probe("--epochs", "1")[0]["step"] == 2
