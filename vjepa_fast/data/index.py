"""`vjepa-fast index`: scan a folder for videos, refuse what cannot be trained on, write the
manifest.
"""

import os
from dataclasses import replace
from pathlib import Path

from vjepa_fast.data.manifest import ManifestEntry, read_manifest, write_manifest
from vjepa_fast.data.probe import probe_videos
from vjepa_fast.errors import UserError

_CONTAINERS = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg ogv ts webm wmv"
VIDEO_EXTENSIONS = frozenset(f".{name}" for name in _CONTAINERS.split())


def index_directory(
    directory: str | os.PathLike,
    output: str | os.PathLike,
    workers: int | None = None,
    progress: bool = False,
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    """Probe every video file below `directory` and write the usable ones, sorted by path, as the
    manifest `output`.

    Returns them and the refused ones as (path, reason). Labels that `output` holds already are kept
    by path. Raises UserError if nothing is usable (nothing is written then), or if only some of the
    videos have labels there.
    """
    directory, output = Path(directory), Path(output)
    if not directory.is_dir():
        raise UserError(
            f"found no folder at {directory}, expected one with videos, correct the path"
        )
    paths = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(directory)
        for name in names
        if os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS
    )
    if not paths:
        raise UserError(
            f"found no video file in {directory}, expected {', '.join(sorted(VIDEO_EXTENSIONS))}, "
            "give the folder that holds the videos"
        )
    entries, refused = probe_videos(paths, workers, progress)
    if entries:
        entries = _keep_labels(entries, output)
        write_manifest(output, entries)
    return entries, refused


def index_command(directory: Path, output: Path, workers: int | None = None) -> int:
    """Run `vjepa-fast index`: print each refused file with its reason and a summary; returns the
    exit status 0.

    Raises UserError if no file is usable.
    """
    entries, refused = index_directory(directory, output, workers, progress=True)
    for path, reason in refused:
        print(f"refused {path}: {reason}")
    if not entries:
        raise UserError(
            f"found {len(refused)} unusable files and no usable video in {directory}, expected at "
            "least one, see the reasons above"
        )
    frames = sum(entry.frames for entry in entries)
    print(f"{output}: {len(entries)} videos, {frames} frames; {len(refused)} files refused")
    return 0


def _keep_labels(entries: list[ManifestEntry], output: Path) -> list[ManifestEntry]:
    """Indexing again must not lose the label columns that somebody added to the manifest."""
    if not output.is_file():
        return entries
    labels = {entry.path: entry.labels for entry in read_manifest(output) if entry.labels}
    if not labels:
        return entries
    unlabelled = [entry.path for entry in entries if entry.path not in labels]
    if unlabelled:
        raise UserError(
            f"found {len(unlabelled)} videos without labels in {output} (the first: "
            f"{unlabelled[0]}), expected all or none of them labelled, write to another --output "
            "and add the labels there"
        )
    return [replace(entry, labels=labels[entry.path]) for entry in entries]
