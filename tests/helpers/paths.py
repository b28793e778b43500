"""Paths of the repository and its parts, for tests that run its programs or read its files."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BENCH = REPOSITORY / "bench"
TESTS = REPOSITORY / "tests"
GOLDEN = TESTS / "golden"
