"""`vjepa-fast finetune`: full fine-tuning of a checkpoint's encoder, with a test at its end."""

from __future__ import annotations

import argparse
import os

from vjepa_fast.commands.terminal import add_config_arguments

HELP = "fine-tune a checkpoint's encoder with a classifier, and test it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    add_config_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Fine-tune or resume, test, and print the accuracies. Runs under any launcher.

    Raises:
        UserError: see `load_finetune_config` and `finetune`.
    """
    from vjepa_fast.config.finetune.load import load_finetune_config

    config = load_finetune_config(
        options.config, options.set
    )  # before DeepSpeed loads, for seconds
    from vjepa_fast.finetuning.loop import finetune
    from vjepa_fast.finetuning.multi_view import results_table
    from vjepa_fast.training.distributed.launch import end_process_group
    from vjepa_fast.training.recipe import with_own_folder

    config = with_own_folder(config, options.set)
    results = finetune(config)
    end_process_group()
    if int(os.environ.get("RANK", "0")) == 0:
        if results:
            print(results_table(results))
        print(f"run folder: {config.output}")
    return 0
