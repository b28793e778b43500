"""Which modules a program imports, seen in a fresh process."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.paths import REPOSITORY


def modules_after(program: str) -> set[str]:
    """Names in sys.modules after a few lines of Python."""
    command = [sys.executable, "-c", f"import sys\n{program}\nprint()\nprint(*sys.modules)"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())
