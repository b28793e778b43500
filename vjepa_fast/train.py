"""Pretrain: deepspeed vjepa_fast/train.py --config configs/tiny.json [--set optim.lr=1e-4 …]

Also runs under torchrun and srun (configs/slurm.sbatch), or as plain `python …/train.py` in
a single process. Run the same command again to resume from the newest checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script, Python puts vjepa_fast/ first on the path, where `data`, `models` and `kernels`
    # would shadow other packages of these names. Put the repository's root there instead.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import logging
import os
import warnings
from collections.abc import Sequence

from vjepa_fast.commands.terminal import add_config_arguments, print_any_name
from vjepa_fast.errors import exit_status


def set_up_logging() -> None:
    """Log lines from rank 0, warnings from every rank, the latter with the rank in front."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    first = rank == "0"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s" if first else f"[{rank}] %(message)s"))
    log = logging.getLogger("vjepa_fast")
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if first else logging.WARNING)
    # DeepSpeed still uses names that the newest torch deprecates.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and pretrain.

    Returns:
        the exit status.
    """
    print_any_name()
    parser = argparse.ArgumentParser(description="Pretrain V-JEPA from a config.")
    add_config_arguments(parser)
    parser.add_argument("--local_rank", type=int, help="set by the launcher")
    options = parser.parse_args(arguments)
    if options.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(options.local_rank))
    set_up_logging()
    return exit_status(lambda: _pretrain(options), resumes=True)


def _pretrain(options: argparse.Namespace) -> int:
    from vjepa_fast.config import load_config

    config = load_config(options.config, options.set)  # before DeepSpeed loads, for seconds
    from vjepa_fast.training.distributed.launch import end_process_group
    from vjepa_fast.training.loop import pretrain
    from vjepa_fast.training.recipe import with_own_folder

    run = pretrain(with_own_folder(config, options.set))
    end_process_group()
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"run folder: {run}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
