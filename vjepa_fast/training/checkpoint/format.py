"""The checkpoint format: flat fp32 shards and one JSON file, readable at any world size.

    checkpoints/step_00000800/
        state.json                 step, config, a hash of the videos, counts of non-finite steps;
                                   for each parameter group the names and shapes of its parameters
                                   in flat order; for each shard its size, its checksum and the
                                   ranges of the flat vectors that it holds; the probe's measure
                                   and value, if one ran at this step
        shard_00000.safetensors    rank 0's ranges of every flat vector: master weights, Adam's
                                   moments and, for the encoder, the EMA weights (all fp32)

A folder with its final name is complete (writer.py). A range of a flat vector can be split anew, so
any world size can read a checkpoint. It holds no generator state: randomness and the position in
the data are functions of the step. It holds no pickle, and nothing in it is ever executed.

Imported weights of others have this format too, at step 0: without Adam's moments, perhaps without
a predictor, and with all mask tokens of their file, whatever the config says.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vjepa_fast.errors import UserError

FORMAT = 3
BEST = "best"  # a link in checkpoints/ to the checkpoint with the best probe, see best.py
_CHUNK = 2**24  # bytes summed and written at a time
_WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".tar"}


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step_*") if path.is_dir())


def state_checksum(state: dict) -> int:
    """CRC-32 of the content of state.json, without the checksum itself."""
    content = {key: value for key, value in state.items() if key != "checksum"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def shard_name(rank: int) -> str:
    """File name of a rank's shard."""
    return f"shard_{rank:05d}.safetensors"


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def group_of(name: str, ndim: int) -> str:
    """The parameter group of a parameter, which is also the name of its flat vector.

    Encoder and predictor have groups of their own. Matrices decay; one-dimensional tensors (biases,
    norms) do not. The mask tokens do: they are three-dimensional in the published code.

    Args:
        name: of the parameter in the model, e.g. "encoder.norm.weight".
        ndim: number of its dimensions.
    """
    return f"{name.partition('.')[0]}.{'decay' if ndim >= 2 else 'no_decay'}"


@dataclass(frozen=True)
class Streamed:
    """A tensor that is read piece by piece while it is written.

    Attributes:
        shape: of the tensor.
        pieces: flat contiguous fp32 CPU tensors, one after another its elements in raster order.
    """

    shape: tuple[int, ...]
    pieces: Iterable[Tensor]

    @property
    def count(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


def _header(
    tensors: Mapping[str, Tensor | Streamed], metadata: Mapping[str, str] | None
) -> tuple[bytes, int]:
    """The first bytes of a safetensors file, and the number of bytes that follow."""
    header: dict = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * math.prod(tensor.shape)
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    return len(text).to_bytes(8, "little") + text, end


def shard_bytes(
    tensors: Mapping[str, Tensor | Streamed], metadata: Mapping[str, str] | None = None
) -> int:
    """Size of the file that `write_shard` will write."""
    header, data = _header(tensors, metadata)
    return len(header) + data


def write_shard(
    path: Path,
    tensors: Mapping[str, Tensor | Streamed],
    metadata: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Write fp32 CPU tensors as one safetensors file, and sync it.

    safetensors' own writer returns no checksum, raises no OSError when the disk is full, and needs
    all tensors in memory at once.

    Args:
        path: of the file.
        tensors: flat, or streamed in any shape.
        metadata: of the header; None: none.

    Returns:
        {"bytes": size of the file, "crc32": its checksum}.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full.
    """
    header, data = _header(tensors, metadata)

    def pieces() -> Iterator[np.ndarray]:
        yield np.frombuffer(header, np.uint8)
        for tensor in tensors.values():
            for piece in tensor.pieces if isinstance(tensor, Streamed) else (tensor,):
                yield piece.numpy().view(np.uint8)

    crc = 0
    with open(path, "wb") as file:
        for piece in pieces():
            for start in range(0, piece.size, _CHUNK):
                chunk = piece[start : start + _CHUNK]
                crc = zlib.crc32(chunk, crc)
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        if file.tell() != len(header) + data:
            raise ValueError(f"{path}: wrote {file.tell()} bytes, expected {len(header) + data}")
        return {"bytes": file.tell(), "crc32": crc}


def verify_shard(path: Path, written: Mapping[str, int]) -> str | None:
    """Describe the corruption of a shard in a few words, or None if it is intact.

    Reads the whole file.

    Args:
        path: the shard.
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


def _is_foreign(path: Path) -> bool:
    """Whether this is a file, or a folder of weight files that no run of ours wrote."""
    if path.is_dir() and not (path / "state.json").exists():
        return any(file.suffix in _WEIGHT_FILES for file in path.iterdir())
    return path.is_file()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        folder: the checkpoint's folder.
        state: content of state.json.
    """

    folder: Path
    state: dict

    @staticmethod
    def open(folder: Path) -> Checkpoint:
        """Read a checkpoint's JSON file.

        Raises:
            UserError: there is no checkpoint, it has another format, or state.json is corrupt.
        """
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"{folder}: found no readable state.json ({reason}), expected a checkpoint folder "
                "such as RUN/checkpoints/step_00000800; name one"
            ) from None
        found = state.get("format") if isinstance(state, dict) else None
        if found != FORMAT:
            raise UserError(
                f"{folder}: found checkpoint format {found}, expected {FORMAT}; read it with the "
                "version of vjepa_fast that wrote it"
            )
        if state.get("checksum") != state_checksum(state):
            raise UserError(
                f"{folder}: found a state.json that differs from what was written, expected it "
                "unchanged; remove this checkpoint and use an older one"
            )
        return Checkpoint(folder, state)

    @staticmethod
    def find(path: Path) -> Checkpoint:
        """Open a checkpoint by its own folder or a link to it, or the newest one of a run's folder.

        Raises:
            UserError: the path is neither; weights of other programs have to be imported first.
        """
        if checkpoints(path):
            path = checkpoints(path)[-1]
        elif path.name == BEST and path.is_symlink():
            path = path.with_name(os.readlink(path))  # its own name, which says the step
        elif _is_foreign(path):
            raise UserError(
                f"{path}: found weights that are not a checkpoint of a run, expected a run or a "
                f"checkpoint folder; run vjepa-fast import {path} --output runs/NAME, and name "
                "runs/NAME here"
            )
        elif (path / "config.json").is_file():
            raise UserError(
                f"{path}: found a run without a checkpoint, expected one; train until it saves, or "
                "set checkpoint.every lower"
            )
        return Checkpoint.open(path)

    @property
    def imported(self) -> dict | None:
        """What `vjepa-fast import` made it from; None for the checkpoint of a run.

        "file" (the name), "kind", "generation" (1 or 2) and "parts" (the networks that it holds).
        """
        return self.state.get("imported")

    @property
    def world_size(self) -> int:
        """Number of processes that wrote it; each wrote one shard."""
        return len(self.state["shards"])

    @property
    def result_weights(self) -> str:
        """Which encoder weights are the result of the run, as `weights` names them.

        "teacher" (the EMA, as in the paper), or "master" (the trained weights) if the target
        encoder was frozen, or there was none: where pixels were predicted, and in fine-tuning.
        """
        config = self.state["config"]
        frozen = config.get("teacher", {}).get("mode") == "frozen"
        none = "classifier" in config or config.get("objective") == "pixels"
        return "master" if frozen or none else "teacher"

    def verify(self, ranks: Iterable[int] | None = None) -> str | None:
        """Describe the first corrupt shard, or None if all are intact. Reads whole files.

        Args:
            ranks: ranks whose shards are read; None for all.
        """
        for rank in range(self.world_size) if ranks is None else ranks:
            file = self.folder / shard_name(rank)
            corruption = verify_shard(file, self.state["shards"][rank])
            if corruption:
                return f"{file}: found {corruption}"
        return None

    def size(self, group: str) -> int:
        """Number of elements of a group's flat vector."""
        return sum(torch.Size(shape).numel() for _, shape in self.state["groups"][group])

    def read(self, key: str, start: int, length: int) -> Tensor:
        """Read a range of a flat vector from the shards that hold it.

        Args:
            key: the vector, e.g. "encoder.decay/master".
            start, length: the range.

        Returns:
            fp32 [length].

        Raises:
            UserError: a shard is missing, corrupt or too short.
        """
        group = key.partition("/")[0]
        out, filled = torch.empty(length), 0
        for rank, written in enumerate(self.state["shards"]):
            offset = 0  # of a range in the shard's tensor
            for have, count in written["ranges"].get(group, []):
                low, high = max(start, have), min(start + length, have + count)
                if low < high:
                    first = offset + low - have
                    piece = self._slice(rank, key, first, first + high - low)
                    out[low - start : high - start] = piece
                    filled += high - low
                offset += count
        if filled != length:
            raise UserError(
                f"{self.folder}: found {filled} of {length} elements of {key}, expected all; "
                "remove this checkpoint and use an older one"
            )
        return out

    def _slice(self, rank: int, key: str, first: int, last: int) -> Tensor:
        file = self.folder / shard_name(rank)
        try:
            with safe_open(file, framework="pt") as shard:
                return shard.get_slice(key)[first:last]
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file}: found {error}, expected an intact shard with {key}; remove this "
                "checkpoint and use an older one"
            ) from None

    def weights(self, part: str, which: str) -> dict[str, Tensor]:
        """Read the weights of a part from all shards, fp32, by parameter name.

        Args:
            part: "encoder" or "predictor".
            which: "master" (the trained weights) or "teacher" (the EMA weights; encoder only).

        Raises:
            UserError: the checkpoint is corrupt.
        """
        corruption = self.verify()
        if corruption:
            raise UserError(
                f"{corruption}, expected an intact shard; remove this checkpoint and use an older "
                "one"
            )
        found = {}
        for group, parameters in self.state["groups"].items():
            if group.partition(".")[0] != part:
                continue
            flat, offset = self.read(f"{group}/{which}", 0, self.size(group)), 0
            for name, shape in parameters:
                count = torch.Size(shape).numel()
                found[name.removeprefix(f"{part}.")] = flat[offset : offset + count].view(shape)
                offset += count
        return found
