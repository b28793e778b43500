"""The process in which `bench/throughput.py --peer DIR` runs steps of a checkout of a public
trainer:

    python bench/peer/process.py DIR --config FILE --threads N

The networks, their multi-mask wrappers and the gather are imported from DIR; nothing is copied
here. Requests come on stdin, answers go to stdout, one JSON object a line:

    (at start)         → {"parameters": {"encoder": …, "predictor": …}} or {"error": sentence}
    {"steps": [3, 4]}  → {"seconds": mean of a step, "loss": of the last step}
    {"memory": 5}      → {"bytes": peak of step 5}
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    ANSWERS = os.dup(1)
    os.dup2(2, 1)  # what imports and the checkout print must not mix with the answers
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # bench/, as its commands have it

import argparse
import importlib
import json
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import torch

from peer.generations import Generation, generation_of, not_a_checkout
from peer.step import Step
from step.clock import Clock, peak_memory
from vjepa_fast.config import load_config
from vjepa_fast.errors import UserError

WARM_UP = 3  # steps, as many as the other sides run in the gate


def load_parts(folder: Path, generation: Generation) -> SimpleNamespace:
    """Classes and functions of the checkout, by name.

    Raises UserError if one of them, or a package that it needs, is missing.
    """
    sys.path.insert(0, str(folder))
    found = SimpleNamespace()
    for name, module_name in generation.parts.items():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "src":
                raise not_a_checkout(folder, f"no module {error.name} in it") from None
            raise UserError(
                f"--peer: found no module {error.name}, expected what {module_name} of {folder} "
                "imports; install the package in this environment, see that folder's "
                "requirements.txt"
            ) from None
        if not Path(module.__file__).is_relative_to(folder):
            raise not_a_checkout(folder, f"{module_name} at {module.__file__}, outside it")
        if not hasattr(module, name):
            raise not_a_checkout(folder, f"no {name} in {module_name}")
        setattr(found, name, getattr(module, name))
    return found


def answers(options: argparse.Namespace) -> Iterator[dict]:
    """The first answer, then one for each line of stdin."""
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(options.config)
    generation = generation_of(options.folder)
    parts = load_parts(options.folder, generation)
    step, clock = Step(parts, generation, config, device), Clock(device, decodes=False)
    for i in range(WARM_UP):
        step(i, step.masks(i))
    yield {"parameters": step.parameters()}
    for line in sys.stdin:
        request = json.loads(line)
        if "memory" in request:
            i = request["memory"]
            masks = step.masks(i)
            yield {"bytes": peak_memory(partial(step, i, masks), device)}
        else:
            prepared = [(i, step.masks(i)) for i in request["steps"]]
            start = clock()
            losses = [step(*arguments) for arguments in prepared]
            yield {"seconds": (clock() - start) / len(losses), "loss": losses[-1]}


def main() -> int:
    """0; 2 for a mistake, which is then the answer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    with os.fdopen(ANSWERS, "w", encoding="utf-8") as output:
        try:
            for answer in answers(options):
                print(json.dumps(answer), file=output, flush=True)
        except UserError as error:
            print(json.dumps({"error": str(error)}), file=output, flush=True)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
