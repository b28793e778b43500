"""`vjepa-fast index`: scan a folder of videos into a manifest."""

from __future__ import annotations

import argparse
from collections import Counter

from vjepa_fast.commands.terminal import add_workers_argument, label_argument, path_argument
from vjepa_fast.errors import UserError

HELP = "scan a folder of videos into a manifest"
SHOWN = 20  # rejected files that are printed; the list of rejected files has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "directory", type=path_argument, help="folder with videos, images or .tar archives"
    )
    parser.add_argument(
        "--output", type=path_argument, required=True, help="manifest to write, .csv or .parquet"
    )
    add_workers_argument(parser)
    parser.add_argument(
        "--deep",
        action="store_true",
        help="decode every frame of every video; takes much longer",
    )
    parser.add_argument(
        "--label-from-folders",
        nargs="?",
        const="class",
        type=label_argument,
        metavar="NAME",
        help="the first folder below DIRECTORY is a video's class, in the column label_NAME "
        "(default: label_class)",
    )
    parser.add_argument(
        "--classes",
        type=path_argument,
        metavar="FILE",
        help="with --label-from-folders: number the classes as in this classes.json, such as that "
        "of the training split (default: the one beside the manifest)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the manifest; print the rejected files with their reasons, what was passed over, and a
    summary.

    Raises:
        UserError: no file is usable.
    """
    from vjepa_fast.data.prepare.index import index_listing, list_videos
    from vjepa_fast.data.prepare.labels.folders import FolderLabel
    from vjepa_fast.data.prepare.listing.names import holds_archives, in_words

    directory, output = options.directory, options.output
    label = options.label_from_folders
    if options.classes is not None and label is None:
        raise UserError(
            "--classes: found it without --label-from-folders, expected both; add that one"
        )
    listing = list_videos(directory, output)
    entries, rejected = index_listing(
        listing,
        output,
        options.workers,
        progress=True,
        deep=options.deep,
        folder_label=FolderLabel(label, directory, options.classes) if label else None,
    )
    for path, reason in rejected[:SHOWN]:
        print(f"rejected {path}: {reason}")
    if len(rejected) > SHOWN:
        print(f"… and {len(rejected) - SHOWN} more, see {output}.rejected.csv")
    counts = Counter(reason.split(" (")[0] for _, reason in rejected)
    for reason, count in counts.most_common():
        print(f"{count:>8} rejected: {reason}")
    passed_over = listing.passed_over
    if passed_over:
        print(f"passed over, not videos: {in_words(passed_over)}")
    if holds_archives(passed_over):
        print("Videos in .zip and compressed .tar archives are not read: unpack them.")
    if not entries:
        raise UserError(
            f"{directory}: found {len(rejected)} unusable files and no usable video, expected at "
            "least one; see the reasons above"
        )
    frames = sum(entry.frames for entry in entries)
    others = f", {sum(passed_over.values())} passed over" if passed_over else ""
    print(
        f"{output}: {len(entries)} videos, {frames} frames; {len(rejected)} files rejected{others}"
    )
    if label:
        classes = len({entry.labels[label] for entry in entries})
        print(f"label {label}: {classes} classes, by folder")
    return 0
