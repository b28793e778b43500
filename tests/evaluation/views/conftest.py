"""Views of the demo's test videos, and a function that stands for an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.evaluation.views.decode import ViewDecoder
from vjepa_fast.evaluation.views.plan import ViewPlan


@pytest.fixture(scope="session")
def entries(demo: Path) -> Entries:
    return read_manifest(demo / "test.csv")


@pytest.fixture(scope="session")
def views_of() -> Callable[..., ViewDecoder]:
    def make(entries: Entries, plan: ViewPlan, **options: object) -> ViewDecoder:
        return ViewDecoder(entries, plan, **{"backend": "pyav", "num_workers": 1} | options)

    return make


@pytest.fixture(scope="session")
def tubelets() -> Callable[[Tensor], Tensor]:
    """The mean colors of each of two tubelets, [B, 2, 3]."""
    return lambda video: video.float().unflatten(1, (2, -1)).mean((2, 3, 4))
