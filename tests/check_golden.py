"""Compare golden files with the shipped code: python tests/check_golden.py FILE…

Prints the largest error of every item beside its tolerance. Exit status: 1 if an error exceeds its
tolerance, 2 if a file is not a golden file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from zipfile import BadZipFile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests.`, run as a script

import numpy as np

from tests.golden_parity.items import Item
from vjepa_fast.errors import UserError


def check(path: Path) -> list[Item]:
    """All items of one file, whatever its form.

    Raises:
        UserError: a file of no golden form.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            names = set(data.files)
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise UserError(f"found {error}, expected a golden .npz file; check the path") from None
    if any(name.startswith("init/encoder/") for name in names):
        from tests.golden_parity.training import check_training_steps

        return [item for stage in (0, 1) for item in check_training_steps(path, stage)]
    if any(name.startswith("state/") for name in names):
        from tests.golden_parity.probe import check_attentive_probe

        return check_attentive_probe(path)
    if any(name.endswith("/visible_probability") for name in names):
        from tests.golden_parity.masks import check_mask_statistics

        return [Item(*item) for item in check_mask_statistics(path)]
    if names and all(name.endswith(("/rows", "/values")) for name in names):
        from tests.golden_parity.positions import check_positions

        return check_positions(path)
    raise UserError(
        f"found arrays {sorted(names)[:3]}…, expected training steps (init/encoder/…), an "
        "attentive probe (state/…), mask statistics (…/visible_probability) or positions "
        "(…/rows, …/values); pass such a file"
    )


def main(arguments: list[str]) -> int:
    """Check every file named; the worst outcome is the exit status."""
    if not arguments:
        print("usage: python tests/check_golden.py FILE…", file=sys.stderr)
        return 2
    status = 0
    for argument in arguments:
        print(argument)
        try:
            items = check(Path(argument))
        except KeyError as error:
            print(
                f"error: {argument}: found no {error}, expected every array and entry of its form; "
                "make the file anew",
                file=sys.stderr,
            )
            status = 2
            continue
        except (UserError, ValueError, BadZipFile) as error:
            print(f"error: {argument}: {error!s}", file=sys.stderr)
            status = 2
            continue
        for item in items:
            verdict = "ok" if item.ok else "FAIL"
            print(f"  {verdict:4}  {item.error:9.3e}  (≤ {item.tolerance:g})  {item.name}")
        beyond = sum(not item.ok for item in items)
        print(f"  {len(items)} items, {beyond} beyond tolerance")
        status = max(status, int(beyond > 0))
    return status


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the golden numbers are a CPU's
    raise SystemExit(main(sys.argv[1:]))
