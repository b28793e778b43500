"""The files in a tar archive that can be read in place, with hard and symbolic links resolved."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

_LINKS = 40  # that lead to a file at most, as in Linux


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar archive, or a link to one.

    Attributes:
        name: as the archive has it.
        offset: of the data's first byte in the archive; meaningless with a `reason`.
        size: in bytes.
        reason: why it cannot be read in place; "" if it can.
        repeated: whether an earlier member has the same name.
    """

    name: str
    offset: int = 0
    size: int = 0
    reason: str = ""
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class _Link:
    """A symbolic link to the `path` in the archive, if that is there."""

    path: str
    shown: str


def members(archive: str) -> Iterator[Member]:
    """The files of a tar archive, and its links to files, in the archive's order.

    Only headers are read. Of several members with one name the last counts, as where tar extracts
    them. Links to folders are left out: the files are there under their own names.

    Raises:
        tarfile.TarError, OSError, EOFError: no tar archive, compressed, or truncated.
    """
    found: dict[str, Member | _Link] = {}  # by normalized name
    names: dict[str, str] = {}
    repeated, folders = set(), {"."}
    with tarfile.open(archive, "r:") as tar:
        for info in tar:
            name = posixpath.normpath(info.name)
            if info.isdir():
                folders.add(name)
                continue
            if name in found:
                repeated.add(name)
            found[name] = _content(info, name, found)
            names[name] = info.name
    folders |= {folder for name in found for folder in _parents(name)}
    for name, content in found.items():
        if isinstance(content, _Link):
            path = _target(content.path, found)
            if path in folders:
                continue
            target = found.get(path) if path else None
            content = target or _missing(content.shown)
        yield Member(names[name], content.offset, content.size, content.reason, name in repeated)


def _content(
    info: tarfile.TarInfo, name: str, earlier: dict[str, Member | _Link]
) -> Member | _Link:
    if info.issym():
        folder = posixpath.dirname(name)
        return _Link(posixpath.normpath(posixpath.join(folder, info.linkname)), info.linkname)
    if info.islnk():  # to an earlier member, as it was there
        return earlier.get(posixpath.normpath(info.linkname)) or _missing(info.linkname)
    if info.issparse():
        return Member(name, reason="stored with holes in its tar archive (sparse); extract it")
    if not info.isreg():
        return Member(name, reason="not a regular file")
    return Member(name, info.offset_data, info.size)


def _missing(target: str) -> Member:
    return Member("", reason=f"a link to no file of its archive ({target})")


def _target(path: str, found: dict[str, Member | _Link]) -> str | None:
    """Where a path leads if symbolic links are followed; None for a circle."""
    for _ in range(_LINKS):
        for prefix in [*reversed(_parents(path)), path]:
            link = found.get(prefix)
            if isinstance(link, _Link):
                path = posixpath.normpath(posixpath.join(link.path, path[len(prefix) + 1 :]))
                break
        else:
            return path
    return None


def _parents(path: str) -> list[str]:
    """The folders above a normalized path, the innermost first."""
    parents = []
    while path := posixpath.dirname(path):
        if path in parents:  # "/" is its own parent
            break
        parents.append(path)
    return parents
