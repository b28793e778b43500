"""Checkpoints, as they are read: flat shards and one JSON, for any world size.

    checkpoints/step_00000800/
        state.json                 step, config, a hash of the videos, counts of bad steps; for each
                                   parameter group the names and shapes of its parameters in flat
                                   order; for each shard its size, its checksum and the ranges of
                                   the flat vectors in it
        shard_00000.safetensors    rank 0's ranges of every flat vector: masters, Adam's moments
                                   and, for the encoder, the teacher's average (all fp32)

A folder with its final name is whole (saving.py). A flat range of a flat vector can be cut anew, so
any world size can read it. The state of no random generator is in it: chance, and the place in the
data, are functions of the step. Nothing in it is a pickle, and nothing in it is ever run.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.training.checkpoint.shard_file import shard_damage
from vjepa_fast.training.trainer import Trainer
from vjepa_fast.training.zero.shards import MOMENTS, restore_adam

FORMAT = 3


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step_*") if path.is_dir())


def state_checksum(state: dict) -> int:
    """CRC-32 of a state.json's content, less the checksum itself."""
    content = {key: value for key, value in state.items() if key != "checksum"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def shard_name(rank: int) -> str:
    """The file of a rank's shard."""
    return f"shard_{rank:05d}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, read by ranges."""

    folder: Path
    state: dict

    @staticmethod
    def open(folder: Path) -> Checkpoint:
        """Read a checkpoint's JSON.

        Raises:
            UserError: no such checkpoint, one of another format, or a damaged state.json.
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
                f"{folder}: found a state.json other than was written, expected it unchanged; "
                f"remove this checkpoint and use an older one"
            )
        return Checkpoint(folder, state)

    @staticmethod
    def find(path: Path) -> Checkpoint:
        """A checkpoint by its folder, or the newest of a run's folder.

        Raises:
            UserError: neither.
        """
        if checkpoints(path):
            path = checkpoints(path)[-1]
        elif (path / "config.json").is_file():
            raise UserError(
                f"{path}: found a run without a checkpoint, expected one; train until it saves, or "
                "set checkpoint.every lower"
            )
        return Checkpoint.open(path)

    @property
    def world_size(self) -> int:
        """Processes that wrote it: one shard each."""
        return len(self.state["shards"])

    def damage(self, ranks: Iterable[int] | None = None) -> str | None:
        """What is wrong with the first damaged shard, or None. Reads the shards' every byte.

        Args:
            ranks: whose shards to look at; None for all.
        """
        for rank in range(self.world_size) if ranks is None else ranks:
            file = self.folder / shard_name(rank)
            wrong = shard_damage(file, self.state["shards"][rank])
            if wrong:
                return f"{file}: found {wrong}"
        return None

    def size(self, group: str) -> int:
        """Elements of a group's flat vector."""
        return sum(torch.Size(shape).numel() for _, shape in self.state["groups"][group])

    def read(self, key: str, start: int, length: int) -> Tensor:
        """Elements start … start + length of a flat vector such as "encoder.decay/master".

        Raises:
            UserError: a shard that is missing, damaged or too short.
        """
        group = key.partition("/")[0]
        out, filled = torch.empty(length), 0
        for rank, written in enumerate(self.state["shards"]):
            place = 0  # in the shard's tensor, where a range begins
            for have, count in written["ranges"].get(group, []):
                low, high = max(start, have), min(start + length, have + count)
                if low < high:
                    first = place + low - have
                    piece = self._slice(rank, key, first, first + high - low)
                    out[low - start : high - start] = piece
                    filled += high - low
                place += count
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
                f"{file}: found {error}, expected a whole shard with {key}; remove this checkpoint "
                "and use an older one"
            ) from None

    @property
    def evaluated(self) -> str:
        """Which of the encoder's weights are the run's result, see `weights`: the target encoder's,
        as in the paper; the trained ones where the target encoder was frozen."""
        frozen = self.state["config"].get("teacher", {}).get("mode") == "frozen"
        return "master" if frozen else "teacher"

    def weights(self, part: str, which: str) -> dict[str, Tensor]:
        """Whole weights, fp32, by parameter name.

        Args:
            part: "encoder" or "predictor".
            which: "master" (as trained) or "teacher" (the target encoder; encoder only).

        Raises:
            UserError: a damaged checkpoint.
        """
        damage = self.damage()
        if damage:
            raise UserError(
                f"{damage}, expected a whole shard; remove this checkpoint and use an older one"
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


def _difference(saved: list, own: list) -> str:
    """Where two lists of names and shapes part, as "name of shape … instead of name of shape …"."""
    for number in range(max(len(saved), len(own))):
        pair = [
            f"{group[number][0]} of shape {group[number][1]}" if number < len(group) else "nothing"
            for group in (saved, own)
        ]
        if pair[0] != pair[1]:
            return " instead of ".join(pair)
    raise ValueError("the lists are equal")


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Bring masters, moments, teacher and step number back, at any world size. Collective.

    Raises:
        UserError: parameters other than this model's; a damaged checkpoint.
    """
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    saved = checkpoint.state["groups"]
    for shard in trainer.shards:
        own = [[names[id(p)], s] for p, s in zip(shard.parameters, shard.shapes, strict=True)]
        if saved.get(shard.name) != own:
            raise UserError(
                f"{checkpoint.folder}: found {_difference(saved.get(shard.name, []), own)} of this "
                f"model in {shard.name}, expected the same names and shapes; set model and masks "
                "as the checkpoint's state.json has them, or choose another output folder"
            )
    step = checkpoint.state["step"]
    for shard in trainer.shards:

        def read(kind: str, shard=shard) -> Tensor:
            key = f"{shard.name}/{kind}"
            pieces = [checkpoint.read(key, r.start, r.count) for r in shard.ranges]
            return torch.cat(pieces) if pieces else torch.empty(0)

        shard.place(read("master"), shard.masters)
        restore_adam(trainer.optimizer, shard, {m: read(m) for m in MOMENTS}, step)
        averages = trainer.teacher.averages.get(shard.name)
        if averages is not None:
            shard.place(read("teacher"), averages)
    trainer.guard.restore(*checkpoint.state.get("bad_steps", (0, 0, -1)))  # older ones have none
    trainer.after_restore(step)
