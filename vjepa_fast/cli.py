"""The console script `vjepa-fast COMMAND …`; each command is a file in commands/."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vjepa_fast import __version__
from vjepa_fast.commands import demo_data, index, info, masks, report, transcode
from vjepa_fast.commands.evaluation import finetune, labels, probe, study
from vjepa_fast.commands.terminal import print_any_name
from vjepa_fast.commands.weights import export, features, import_weights
from vjepa_fast.errors import exit_status
from vjepa_fast.train import set_up_logging

COMMANDS = {
    "index": index,
    "transcode": transcode,
    "labels": labels,
    "demo-data": demo_data,
    "info": info,
    "masks": masks,
    "report": report,
    "probe": probe,
    "finetune": finetune,
    "study": study,
    "import": import_weights,
    "export": export,
    "features": features,
}
RESUME = {"index", "transcode", "demo-data", "probe", "finetune", "study", "features"}  # again


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit status: 2, and one sentence on stderr, for a user's mistake; 130 for Ctrl-C.
    """
    print_any_name()
    parser = argparse.ArgumentParser(
        prog="vjepa-fast",
        description="Commands around V-JEPA pretraining. To pretrain, run vjepa_fast/train.py.",
    )
    parser.add_argument("--version", action="version", version=f"vjepa_fast {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        )
    options = parser.parse_args(arguments)
    set_up_logging()
    name = options.command
    return exit_status(lambda: COMMANDS[name].run(options), resumes=name in RESUME)


if __name__ == "__main__":
    raise SystemExit(main())
