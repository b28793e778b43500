"""Runs of train.py in processes of their own, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.forked_runs import Runs


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    started = Runs(tmp_path_factory.mktemp("runs"))
    yield started
    started.close()


@pytest.fixture
def runs(all_runs: Runs) -> Iterator[Runs]:
    yield all_runs
    all_runs.kill_all()
