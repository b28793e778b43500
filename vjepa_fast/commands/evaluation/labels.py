"""`vjepa-fast labels`: join the annotation files of a data set to a manifest."""

from __future__ import annotations

import argparse

from vjepa_fast.commands.terminal import label_argument, path_argument

HELP = "join the annotation files of a data set to a manifest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("manifest", type=path_argument, help="written by `vjepa-fast index`")
    parser.add_argument(
        "annotations",
        type=path_argument,
        nargs="+",
        help="files as they are distributed: of Kinetics (CSV, JSON), Something-Something (JSON, "
        'labels.json, test answers), Diving-48 (JSON), or lines "path label"; told by content',
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        required=True,
        help="manifest to write, of the videos that have an annotation, .csv or .parquet",
    )
    parser.add_argument(
        "--name",
        type=label_argument,
        default="class",
        help="of the label: its column is label_NAME (default: class)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the manifest; print what did not match, in both directions."""
    from vjepa_fast.data.prepare.labels.join import join_labels, report_lines

    joined = join_labels(options.manifest, options.annotations, options.output, options.name)
    print("\n".join(report_lines(joined, options.output, options.name)))
    return 0
