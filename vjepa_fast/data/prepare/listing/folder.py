"""Lists the videos or images below a folder and in its tar archives, and counts what it passes
over."""

from __future__ import annotations

import io
import logging
import os
import stat
import tarfile
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

from vjepa_fast.data.ffmpeg import BadVideo
from vjepa_fast.data.manifest.class_map import CLASSES_FILE
from vjepa_fast.data.prepare.listing.archive import Member, members
from vjepa_fast.data.prepare.listing.names import (
    HIDDEN_FOLDERS,
    is_named_as_video,
    kind_of,
    label_of,
    suffix_of,
)
from vjepa_fast.data.prepare.listing.signatures import Kind
from vjepa_fast.data.prepare.scan_journal import ScannedFile, ScanResult

_SMALLEST = 64  # bytes: no video is smaller, and reading does not run into the next member
log = logging.getLogger("vjepa_fast")


@dataclass
class Listing:
    """What is below a folder.

    Attributes:
        videos: files that may be videos, by name or content.
        images: the same for images.
        rejected: what cannot be read or listed, and videos that must not be used.
        passed_over: how many other files there are, by `names.label_of`.
    """

    videos: list[ScannedFile] = field(default_factory=list)
    images: list[ScannedFile] = field(default_factory=list)
    rejected: list[ScanResult] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def files(self) -> list[ScannedFile]:
        """The videos, or the images if there is no video."""
        return self.videos or self.images


def list_folder(directory: str | os.PathLike, output: str | os.PathLike) -> Listing:
    """List a folder. Links to folders are followed, each folder once; hidden folders are not.

    Args:
        directory: the folder.
        output: the manifest; it and the files beside it that `index` writes are not counted.
    """
    return _Lister(os.path.abspath(output)).run(os.path.abspath(directory))


class _Lister:
    def __init__(self, output: str) -> None:
        folder, name = os.path.split(output)
        own = (name, f"{name}.rejected.csv", f"{name}.partial.jsonl", f".{name}.lock")
        own += (CLASSES_FILE, f".{CLASSES_FILE}.lock")
        self._own = {os.path.join(folder, file) for file in own}
        self._listing = Listing()
        self._named: set[tuple[int, int]] = set()  # device and inode of files with a known suffix
        self._by_content: list[tuple[tuple[int, int], ScannedFile, Kind]] = []

    def run(self, start: str) -> Listing:
        visited = set()
        for folder, folders, names in os.walk(start, onerror=self._unreadable, followlinks=True):
            try:
                status = os.stat(folder)
            except OSError as error:  # removed since it was listed
                self._unreadable(error)
                continue
            if (status.st_dev, status.st_ino) in visited:  # by a link
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            hidden = [name for name in folders if name.startswith(".")]
            if hidden:
                self._listing.passed_over[HIDDEN_FOLDERS] += len(hidden)
                folders[:] = [name for name in folders if not name.startswith(".")]
            for name in sorted(names):
                path = os.path.join(folder, name)
                if path not in self._own:
                    self._add(path, name)
        self._add_by_content()
        videos, images = self._listing.videos, len(self._listing.images)
        gifs = sum(suffix_of(file.path) == ".gif" for file in videos)
        if 0 < gifs == len(videos) < images:
            self._listing.passed_over["moving .gif among images"] += gifs
            videos.clear()
        if images and videos:
            log.warning(
                "%s: images beside videos are left out (%d); index them in a folder of their own",
                start,
                images,
            )
        return self._listing

    def _add(self, path: str, name: str) -> None:
        if suffix_of(name) == ".tar":
            self._add_archive(path)
            return
        status = None
        try:
            kind = kind_of(name, partial(_open_regular, path))
            if kind is not None:
                status = os.stat(path)
        except BadVideo as reason:
            self._reject(path, str(reason))
            return
        except OSError as error:
            if is_named_as_video(name):
                self._reject(path, f"unreadable ({error.strerror})")
            else:
                self._listing.passed_over[f"unreadable {label_of(name)}"] += 1
            return
        if kind is None:
            self._listing.passed_over[label_of(name)] += 1
        elif not stat.S_ISREG(status.st_mode):
            self._reject(path, "not a regular file")
        else:
            file = ScannedFile(path, status.st_size, status.st_mtime_ns)
            inode = status.st_dev, status.st_ino
            if is_named_as_video(name):
                self._named.add(inode)
                self._of_kind(kind).append(file)
            else:
                self._by_content.append((inode, file, kind))

    def _add_by_content(self) -> None:
        """Stores such as those of DVC and of Hugging Face keep a file under its hash, and give it
        its name by a link: then it counts once.
        """
        for inode, file, kind in self._by_content:
            if inode in self._named:
                self._listing.passed_over["named by a link elsewhere"] += 1
            else:
                self._of_kind(kind).append(file)

    def _add_archive(self, path: str) -> None:
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                self._reject(path, "not a regular file")
            elif not path.endswith(".tar"):
                self._reject(path, "a tar archive must be named .tar, in lower case; rename it")
            else:
                self._add_members(path, status.st_mtime_ns)
        except (tarfile.TarError, OSError, EOFError) as error:
            words = error.strerror if isinstance(error, OSError) else error
            self._reject(path, f"unreadable tar archive ({words})")

    def _add_members(self, path: str, mtime_ns: int) -> None:
        hidden, repeated = set(), []
        with open(path, "rb") as archive:
            for member in members(path):
                *folders, name = member.name.split("/")
                if covered := [f for f in folders if f.startswith(".") and f not in (".", "..")]:
                    hidden.add(covered[0])
                    continue
                member_path = f"{path}::{member.name}"
                try:
                    kind = _kind_of_member(member, name, archive)
                except BadVideo as reason:
                    self._reject(member_path, str(reason))
                    continue
                if kind is None:
                    self._listing.passed_over[label_of(name)] += 1
                    continue
                self._of_kind(kind).append(
                    ScannedFile(member_path, member.size, mtime_ns, member.offset)
                )
                if member.repeated:
                    repeated.append(member.name)
        if hidden:
            self._listing.passed_over[HIDDEN_FOLDERS] += len(hidden)
        if repeated:
            log.warning(
                "%s: found %d names that occur more than once (the first: %s), expected each once; "
                "the last file of a name is taken, as where tar extracts it",
                path,
                len(repeated),
                repeated[0],
            )

    def _of_kind(self, kind: Kind) -> list[ScannedFile]:
        return self._listing.videos if kind == "video" else self._listing.images

    def _reject(self, path: str, reason: str) -> None:
        self._listing.rejected.append(ScanResult(ScannedFile(path, 0, 0), reason=reason))

    def _unreadable(self, error: OSError) -> None:
        self._reject(os.path.abspath(error.filename), f"unreadable folder ({error.strerror})")


def _open_regular(path: str) -> BinaryIO:
    """Open a file unless it is a pipe or a device, which could block for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return io.BytesIO()
    return open(path, "rb")


def _kind_of_member(member: Member, name: str, archive: BinaryIO) -> Kind | None:
    """`names.kind_of` of a member of the open `archive`."""
    if member.reason and is_named_as_video(name):
        raise BadVideo(member.reason)
    if not is_named_as_video(name) and (member.reason or member.size < _SMALLEST):
        return None

    def read() -> AbstractContextManager[BinaryIO]:
        archive.seek(member.offset)
        return nullcontext(archive)

    return kind_of(name, read)
