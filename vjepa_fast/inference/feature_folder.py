"""A folder of features on the disk: shards, an index of their rows, and what they were made with.

    DIR/
      features.json          the settings and the weights' checksum; another command is refused
      shards/00000.csv       the clips of a shard and their rows; it is there once the shard is done
      shards/00000.safetensors (or .npz)    "features": [rows, N, D], or pooled [rows, D]; and, in
                             a safetensors file's header, their checksum
      index.csv              all clips: the shards' CSV files together, once all are done

A shard is a fixed range of the clips, whichever process computes it, and every file is renamed to
its name when it is complete. So any number of processes leaves the same files, and a restart loses
at most the shards that were being computed.
"""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vjepa_fast.data.manifest.replaced import TEXT_READ, replaced_atomically
from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer

FORMAT = 1
_SETTINGS, _INDEX, _SHARDS = "features.json", "index.csv", "shards"
_KEY, _CHECKSUM = "features", "crc32"


@dataclass(frozen=True)
class FeatureFolder:
    """See above.

    Attributes:
        path: the folder.
        shards: number of shards.
        suffix: "safetensors" or "npz".
        option: which names the folder, for messages.
    """

    path: Path
    shards: int
    suffix: str
    option: str = "--output"

    @staticmethod
    def open(
        path: Path, settings: Mapping, shards: int, suffix: str, option: str = "--output"
    ) -> FeatureFolder:
        """Make the folder, or go on with one that the same settings made.

        Args:
            path: the folder.
            settings: plain JSON data, on which every feature depends.
            shards: number of shards.
            suffix: of their files.
            option: which names the folder, for messages.

        Raises:
            UserError: the folder holds something else, or features of other settings.
        """
        settings = {"format": FORMAT, **settings}
        file = path / _SETTINGS
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: found a file, expected a folder; choose another {option}")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{path}: found that no folder can be made there ({error.strerror}), expected a "
                f"place to write to; choose another {option}"
            ) from None
        with sole_writer(path, wait=True):
            if file.is_file():
                _require_same(path, file, settings, option)
            elif foreign := _foreign(path):
                raise UserError(
                    f"{path}: found a folder with other files ({foreign}), expected none or one of "
                    f"features; choose another {option}"
                )
            else:
                (path / _SHARDS).mkdir(exist_ok=True)
                with replaced_atomically(file) as out:
                    out.write(json.dumps(settings, indent=2) + "\n")
        return FeatureFolder(path, shards, suffix, option)

    def is_done(self, shard: int) -> bool:
        """Whether a shard is complete, and its file of features whole."""
        if not self._csv(shard).is_file():
            return False
        rows = sum(not row["left_out"] for row in self.rows(shard))
        return _rows_in(self._file(shard)) == rows

    def write(self, shard: int, features: Tensor | None, rows: Sequence[Mapping]) -> None:
        """Write a shard; the same shard may be written again.

        Args:
            shard: its number.
            features: [n, …] on the host, in the type that is stored; None where n is 0.
            rows: a mapping from column to value for each clip, in order; n of them have an empty
                "left_out". The columns shard and row are added.

        Raises:
            OSError: it cannot be written, e.g. because the disk is full; nothing of it remains.
        """
        file = self._file(shard)
        if features is None:  # a killed process may have left some, which no row would name
            file.unlink(missing_ok=True)
        else:
            with replaced_atomically(file, binary=True) as out:
                if self.suffix == "npz":
                    np.savez(out, **{_KEY: features.numpy()})
                else:
                    features = features.contiguous()
                    out.write(save({_KEY: features}, {_CHECKSUM: _checksum(features)}))
        name, row, lines = f"{_SHARDS}/{file.name}", 0, []
        for clip in rows:
            place = {"shard": "", "row": ""} if clip["left_out"] else {"shard": name, "row": row}
            row += not clip["left_out"]
            *columns, left_out = clip
            lines.append({key: clip[key] for key in columns} | place | {left_out: clip[left_out]})
        with replaced_atomically(self._csv(shard)) as out:
            table = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(lines)

    def mapped(self, shard: int) -> Tensor:
        """The features of a shard, [rows, …], of which is read from the disk what is used; in a
        safetensors file.
        """
        with safe_open(self._file(shard), framework="pt") as file:
            return file.get_tensor(_KEY)

    def check(self, shard: int) -> None:
        """Compare the features of a shard with their checksum, if its file has any features.

        Raises:
            UserError: they are other bytes than were written.
        """
        path = self._file(shard)
        if not path.is_file():
            return
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(_CHECKSUM)
        if written != _checksum(self.mapped(shard)):
            raise UserError(
                f"{path}: found other bytes than were written, expected the features as they were; "
                "remove this file, and run the same command again to compute it anew"
            )

    def finish(self) -> int:
        """Write index.csv if all shards are done, and remove what killed processes left behind.

        Returns:
            the number of shards that are done.
        """
        done = sum(self._csv(shard).is_file() for shard in range(self.shards))
        if done < self.shards:
            return done
        with sole_writer(self.path, wait=True), replaced_atomically(self.path / _INDEX) as out:
            for shard in range(self.shards):
                with open(self._csv(shard), **TEXT_READ) as part:
                    header = part.readline()
                    out.write(header if shard == 0 else "")
                    out.writelines(part)
        for file in (self.path / _SHARDS).glob(".*"):
            file.unlink(missing_ok=True)
        return done

    def left_out(self) -> list[dict[str, str]]:
        """The rows of index.csv without features."""
        with open(self.path / _INDEX, **TEXT_READ) as file:
            return [row for row in csv.DictReader(file) if row["left_out"]]

    def _csv(self, shard: int) -> Path:
        return self.path / _SHARDS / f"{shard:05d}.csv"

    def _file(self, shard: int) -> Path:
        return self.path / _SHARDS / f"{shard:05d}.{self.suffix}"

    def rows(self, shard: int) -> list[dict[str, str]]:
        """The clips of a shard that is done, as its CSV file has them."""
        with open(self._csv(shard), **TEXT_READ) as file:
            return list(csv.DictReader(file))


def require_space(path: Path, needed: int, instead: str) -> None:
    """Raise UserError before hours of work if their result, in bytes, will not fit.

    Args:
        path: where it goes; need not exist.
        needed: bytes.
        instead: what to do other than to free space, for the message.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{path}: found {free / 1e9:.1f} GB of free disk, expected the {needed / 1e9:.1f} GB "
            f"that the features take; free space, {instead}"
        )


def _checksum(features: Tensor) -> str:
    """CRC-32 of the type, the shape and the values."""
    crc = zlib.crc32(f"{features.dtype} {list(features.shape)}".encode())
    return f"{zlib.crc32(features.reshape(-1).view(torch.uint8).numpy(), crc):08x}"


def _rows_in(file: Path) -> int:
    """The rows of a shard's file by its header; 0 if there is none, -1 if it is damaged."""
    if not file.is_file():
        return 0
    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive, archive.open(f"{_KEY}.npy") as array:
                np.lib.format.read_magic(array)
                return np.lib.format.read_array_header_1_0(array)[0][0]
        with safe_open(file, framework="pt") as shard:
            return shard.get_slice(_KEY).get_shape()[0]
    except (OSError, SafetensorError, zipfile.BadZipFile, ValueError, KeyError):
        return -1


def _require_same(path: Path, file: Path, settings: Mapping, option: str) -> None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    if not isinstance(found, dict):
        found = {}
    # Also keys that only the folder has: what another version had to tell apart.
    keys = [key for key in {**settings, **found} if found.get(key) != settings.get(key)]
    if keys:
        differing = "; ".join(f"{key} {found.get(key)}, now {settings.get(key)}" for key in keys)
        raise UserError(
            f"{path}: found features of other weights or settings ({differing}), expected the same "
            f"ones, to go on; choose another {option}"
        )


def _foreign(path: Path) -> str:
    """Names of a few files in a folder that no command for features wrote."""
    ours = {".lock", _SHARDS, _SETTINGS}
    names = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    names += sorted(entry.name for entry in (path / _SHARDS).glob("*"))
    return ", ".join(names[:3])
