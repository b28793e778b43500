"""Opening what `data.manifests` names: a manifest (CSV or Parquet), or a text list of videos."""

from __future__ import annotations

import os

from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.files import is_text_list, read_manifest
from vjepa_fast.data.manifest.location import check_sample


def open_manifest(path: str | os.PathLike) -> Entries:
    """The videos of a manifest, or of a text list of the public trainers ("path label" a line).

    Raises:
        UserError: as `read_videos`; or most of the files that a manifest describes are missing or
            changed.
    """
    entries = read_videos(path)
    if not is_text_list(path):  # whose videos were looked at just now
        check_sample(entries, str(path))
    return entries


def read_videos(path: str | os.PathLike) -> Entries:
    """`open_manifest` without a look at the files that a manifest describes.

    A text list says nothing about its videos, so each is inspected once, see
    `prepare.text_list.read_text_list`.

    Raises:
        UserError: a missing, empty or malformed file; the message names the line.
    """
    if is_text_list(path):
        from vjepa_fast.data.prepare.text_list import read_text_list  # needs PyAV, a CSV does not

        return read_text_list(path)
    return read_manifest(path)
