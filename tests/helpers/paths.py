"""Where the repository and its parts are, for tests that run programs or read files of it."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BENCH = REPOSITORY / "bench"
TESTS = REPOSITORY / "tests"
GOLDEN = TESTS / "golden"
