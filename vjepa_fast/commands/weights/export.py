"""`vjepa-fast export`: a run's weights in a form that others read."""

from __future__ import annotations

import argparse

from vjepa_fast.commands.terminal import path_argument

HELP = "write a run's weights for transformers, for Meta's code, or as safetensors"
FORMS = ("transformers", "published", "safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "run", type=path_argument, help="folder of a run (also an imported one) or of a checkpoint"
    )
    parser.add_argument(
        "--to",
        choices=FORMS,
        required=True,
        help="transformers: a folder that AutoModel loads; published: a file for "
        "facebookresearch/jepa or vjepa2; safetensors: the encoder alone",
    )
    parser.add_argument(
        "--output", type=path_argument, required=True, help="folder to make; it must not exist"
    )
    parser.add_argument(
        "--network",
        choices=("target_encoder", "encoder"),
        help="the encoder to export (default: the target encoder; of a run with a frozen one, the "
        "trained encoder)",
    )
    parser.add_argument(
        "--probe",
        type=path_argument,
        help="a trained four-block probe; with --to transformers and V-JEPA 2 the export is a "
        "VJEPA2ForVideoClassification",
    )


def run(options: argparse.Namespace) -> int:
    """Export, check what was written, and print what it is.

    Raises:
        UserError: see `export_run`.
    """
    from vjepa_fast.exchange.export.run import export_run

    done = export_run(options.run, options.to, options.output, options.probe, options.network)
    source = done.source
    print(f"{options.output}: {done.title}")
    network = source.network.replace("_", " ")
    print(f"network: {network}, step {source.checkpoint.state['step']} of {source.run.name}")
    for name, size in done.files.items():
        print(f"{size:>14,} bytes  {name}")
    print(
        "checked: loaded again, its outputs for a random clip differ from ours by "
        f"{done.difference:.2g} (at most {done.tolerance:.2g} is allowed)"
    )
    return 0
