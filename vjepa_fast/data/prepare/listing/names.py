"""Which files are videos: those with a known suffix, and any others whose first bytes say so."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO

from vjepa_fast.data.ffmpeg import BadVideo
from vjepa_fast.data.prepare.listing.signatures import (
    APPLE_DOUBLE,
    HEAD,
    Kind,
    is_animated_gif,
    kind_of_content,
)


def _suffixes(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


VIDEO_EXTENSIONS = _suffixes(
    "3g2 3gp asf avi divx f4v flv m2t m2ts m4v mkv mov mp4 mpe mpeg mpg mts mxf ogm ogv qt rm rmvb "
    "ts vob webm wmv y4m"
)
IMAGE_EXTENSIONS = _suffixes("bmp jpeg jpg png webp")
_VIDEO_OR_IMAGE = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS | {".gif"}
_ARCHIVES = _suffixes("7z bz2 gz lz4 rar tbz2 tgz txz xz zip zst")
_UNFINISHED = _suffixes(
    "!qb !ut crdownload download filepart opdownload part partial temp tmp ytdl"
)
# Never videos, so that a million of them are not opened. (.lrv, .lrf: a camera's small copies.)
_OTHER = _ARCHIVES | _suffixes(
    "aac aif aiff amr ape caf flac m4a mka mp3 oga opus wav wma "
    "ass idx lrc sami smi srt ssa sub sup ttml vtt "
    "avif cr2 dng exr heic heif ico lrf lrv nef psd svg thm tif tiff "
    "c cc cfg cpp css csv doc docx h hpp htm html ini ipynb js json jsonl log md md5 ndjson pdf "
    "py pyc rst sh sha1 sha256 so toml tsv txt xls xlsx xml yaml yml "
    "arrow ckpt db feather h5 hdf5 lmdb mat mdb npy npz onnx parquet pickle pkl pt pth "
    "safetensors sqlite tfrecord"
)
HIDDEN_FOLDERS = "hidden folders"
_SHOWN = 10  # suffixes that a message counts one by one


def kind_of(name: str, read: Callable[[], AbstractContextManager[BinaryIO]]) -> Kind | None:
    """What a file is, by the last part of its path; None: it is passed over.

    Args:
        name: the last part of the path.
        read: opens the file at its first byte. It is called only where the name does not tell.

    Raises:
        BadVideo: a video that must not be used.
        OSError: the file cannot be read.
    """
    suffix = suffix_of(name)
    if name.startswith("._"):
        with read() as file:
            if file.read(4) == APPLE_DOUBLE:
                return None
    if suffix in VIDEO_EXTENSIONS:
        return "video"
    if suffix in IMAGE_EXTENSIONS:
        return "image"
    if suffix in _OTHER or name.startswith("."):
        return None
    with read() as file:
        head = file.read(HEAD)
        kind = kind_of_content(head)
        if kind == "gif":
            file.seek(-len(head), 1)
            kind = "video" if is_animated_gif(file) else "image"
    if kind == "video" and (suffix in _UNFINISHED or suffix.startswith(".part")):
        raise BadVideo("an unfinished download or copy, by its suffix; rename it if it is whole")
    return "image" if kind is None and suffix == ".gif" else kind


def is_named_as_video(name: str) -> bool:
    """Whether the suffix is that of a video or an image: then the file is rejected, not passed
    over, where it cannot be used.
    """
    return suffix_of(name) in _VIDEO_OR_IMAGE


def suffix_of(name: str) -> str:
    """The suffix with its dot, in lower case; "" where there is none."""
    return os.path.splitext(name)[1].lower()


def label_of(name: str) -> str:
    """How files like this one are named where they are counted."""
    if name.startswith("._"):
        return "._* of macOS"
    suffix = suffix_of(name)
    if name.startswith(".") and suffix not in _OTHER:
        return "hidden files"
    if suffix in _ARCHIVES and name[: -len(suffix)].lower().endswith(".tar"):
        return f".tar{suffix}"
    spoken = 1 < len(suffix) <= 12 and suffix.isprintable() and " " not in suffix
    return suffix if spoken else "without a suffix"


def holds_archives(passed_over: Counter[str]) -> bool:
    """Whether any of what was passed over is an archive, which may hold videos."""
    return any(label.removeprefix(".tar") in _ARCHIVES for label in passed_over)


def in_words(passed_over: Counter[str]) -> str:
    """What was passed over, the most frequent first: "12 .txt, 3 .json, 1 without a suffix"."""
    parts = [f"{count} {label}" for label, count in passed_over.most_common(_SHOWN)]
    rest = sum(passed_over.values()) - sum(count for _, count in passed_over.most_common(_SHOWN))
    return ", ".join(parts) + (f" and {rest} others" if rest else "")
