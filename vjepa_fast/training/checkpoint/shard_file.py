"""One shard on disk: a safetensors file whose checksum is known when it is written."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

_CHUNK = 2**24  # bytes that are summed and written at a time


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write flat fp32 CPU tensors as safetensors, and sync.

    safetensors' own writer gives neither a checksum nor an OSError when the disk is full.

    Returns:
        {"bytes": the file's size, "crc32": its checksum}.

    Raises:
        OSError: the disk is full, say.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * tensor.numel()
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    crc = 0
    with open(path, "wb") as file:
        pieces = [np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)]
        pieces += [tensor.numpy().view(np.uint8) for tensor in tensors.values()]
        for piece in pieces:
            for start in range(0, piece.size, _CHUNK):
                chunk = piece[start : start + _CHUNK]
                crc = zlib.crc32(chunk, crc)
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "crc32": crc}


def shard_damage(path: Path, written: Mapping[str, int]) -> str | None:
    """What is wrong with a shard, in a few words, or None. Reads the whole file.

    Args:
        path: of the file.
        written: what `write_shard` returned.
    """
    try:
        if path.stat().st_size != written["bytes"]:
            return f"{path.stat().st_size} bytes where {written['bytes']} were written"
        crc = 0
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
    except OSError as error:
        return error.strerror or str(error)
    return None if crc == written["crc32"] else "other bytes than were written"
