"""The peak memory of a step of one config, in bytes, in a process of its own:

python tests/fake_cuda/memory.py NAME KEY=VALUE …
"""

from __future__ import annotations

import json
import sys

import torch

from tests.fake_cuda.steps import WORLD, batches_of, config_of, prepared, trainer_of
from vjepa_fast.commands.cost_of_config import memory_by_world


def peak_and_computed(name: str, **changes: object) -> tuple[int, float]:
    """The peak of torch's allocator in the third step, and what `vjepa-fast info` computes."""
    config = config_of(name, **changes)
    with prepared():
        trainer = trainer_of(config)
        for step in range(3):
            batches = batches_of(config, trainer, step)
            torch.cuda.reset_peak_memory_stats()
            trainer.step(batches)
    largest = max(len(masks.predictor_tokens) for _, masks in batches)
    context = max(len(masks.context_rows) for _, masks in batches) / trainer.micro_batch
    rows = memory_by_world(config, context, largest / trainer.micro_batch - context)
    (totals,) = [totals for world, *_, totals in rows if world == WORLD]
    return torch.cuda.max_memory_allocated(), totals[config.zero.stage - 1]


if __name__ == "__main__":
    given = (argument.split("=") for argument in sys.argv[2:])
    changes = {key: int(value) if value.isdigit() else value for key, value in given}
    print(json.dumps(peak_and_computed(sys.argv[1], **changes)))
