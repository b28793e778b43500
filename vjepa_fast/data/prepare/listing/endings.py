"""Whether a container says that nothing of it is missing, whatever its header's duration is."""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

_HEAD = 1024
_ASF = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_INDICES = {
    bytes.fromhex("90080033b1e5cf1189f400a0c90349cb"),
    bytes.fromhex("d329e2d6da35d111903400a0c90349be"),
}
_CHUNK = re.compile(rb"[ -~]{4}")  # a name of a RIFF chunk


def is_whole(file: BinaryIO, start: int, size: int) -> bool:
    """Whether an FLV, AVI or ASF of `size` bytes from byte `start` of a file ends as it should.

    The last frame's duration is in none of these containers, so that a file whose last frame stays
    looks too short. False where that cannot be told, as in other containers. Raises OSError.
    """
    file.seek(start)
    head = file.read(min(_HEAD, size))
    if head.startswith(b"FLV\1"):
        return _is_whole_flv(file, head, start, size)
    if head.startswith(b"RIFF"):
        return _is_whole_riff(file, start, size)
    return head.startswith(_ASF) and _is_whole_asf(file, head, start, size)


def missing_bytes(head: bytes, size: int) -> int:
    """How many bytes an ASF with the first bytes `head` names that a file of `size` bytes lacks; 0
    for others. (Of an ASF that is cut off FFmpeg does not know the duration.)
    """
    at = head.find(_ASF_PROPERTIES) if head.startswith(_ASF) else -1
    if at < 0 or len(head) < at + 92 or head[at + 88] & 1:  # a broadcast does not know its size
        return 0
    return max(int.from_bytes(head[at + 40 : at + 48], "little") - size, 0)


def _is_whole_flv(file: BinaryIO, head: bytes, start: int, size: int) -> bool:
    """It has the size that it names, if it does, and ends with the size of its last tag."""
    named = re.search(rb"filesize\x00(.{8})", head, re.DOTALL)
    if named and struct.unpack(">d", named[1])[0] not in (0, size):
        return False
    file.seek(start + size - 4)
    length = int.from_bytes(file.read(4))
    if not 11 <= length <= size - 17:
        return False
    file.seek(start + size - 4 - length)
    tag = file.read(11)
    return tag[0] & 31 in (8, 9, 18) and int.from_bytes(tag[1:4]) == length - 11


def _is_whole_riff(file: BinaryIO, start: int, size: int) -> bool:
    """Its chunks end where it ends, and one of them is the index, which comes last."""
    at, names = 0, set()
    while at < size:
        file.seek(start + at)
        header = file.read(12)
        end = at + 8 + int.from_bytes(header[4:8], "little")
        if header[:4] != b"RIFF" or end > size:
            return False
        at += 12
        while at < end:
            file.seek(start + at)
            chunk = file.read(8)
            if not _CHUNK.match(chunk):
                return False
            names.add(chunk[:4])
            length = int.from_bytes(chunk[4:], "little")
            at += 8 + length + length % 2
        at = end + end % 2
    return b"idx1" in names


def _is_whole_asf(file: BinaryIO, head: bytes, start: int, size: int) -> bool:
    """Its objects end where it ends, the last of them the index. An ASF without one is not told."""
    at, name = int.from_bytes(head[16:24], "little"), b""
    while at < size:
        file.seek(start + at)
        name = file.read(16)
        length = int.from_bytes(file.read(8), "little")
        if length < 24:
            return False
        at += length
    return at == size and name in _ASF_INDICES
