"""Checkpoints: flat shards in safetensors and one JSON, complete or absent, for any world size.

    checkpoints/step_00000800/
        state.json                 step, world size, config, a hash of the videos, and for each
                                   parameter group the names and shapes of its parameters in flat
                                   order
        shard_00000.safetensors    rank 0's range of every flat vector: masters, Adam's moments and,
                                   for the encoder, the teacher's average (all fp32)

Everything is written into a hidden folder, synced to disk, and renamed: a folder with its final
name is whole. A flat range of a flat vector can be cut anew, so any world size can read it. Nothing
in it is a pickle.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.training.shards import MOMENTS, adam_moments, restore_adam, restore_masters
from vjepa_fast.training.trainer import Trainer

FORMAT = 1


def _flat(tensors: list[Tensor], length: int) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])[:length].cpu().contiguous()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / "state.json").is_file())


def save_checkpoint(trainer: Trainer, run: Path, config: dict, videos: str, keep: int) -> Path:
    """Write a checkpoint of the whole run and prune old ones. Collective.

    Args:
        trainer: what to save.
        run: the run's folder.
        config: the run's config as JSON data, kept for whoever reads the checkpoint.
        videos: a hash of the videos that sample ids stand for.
        keep: newest checkpoints to leave.

    Returns:
        The checkpoint's folder.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    final = run / "checkpoints" / f"step_{trainer.step_number:08d}"
    writing = final.with_name(f".{final.name}.writing")
    if rank == 0:
        for stale in final.parent.glob(".step_*"):  # what a kill left half written or half removed
            shutil.rmtree(stale)
        writing.mkdir(parents=True)
    dist.barrier()

    tensors, ranges = {}, {}
    for shard in trainer.shards:
        if not shard.sharded and rank:
            continue  # rank 0 holds the whole
        ranges[shard.name] = [shard.start, shard.length]
        tensors[f"{shard.name}/master"] = _flat(shard.masters, shard.length)
        for moment in MOMENTS:
            values = adam_moments(trainer.optimizer, shard, moment)
            tensors[f"{shard.name}/{moment}"] = _flat(values, shard.length)
        if shard.name in trainer.teacher.averages:
            average = trainer.teacher.averages[shard.name]
            tensors[f"{shard.name}/teacher"] = _flat(average, shard.length)
    file = writing / f"shard_{rank:05d}.safetensors"
    save_file(tensors, file)
    _sync(file)

    every_range: list[dict] = [{}] * world
    dist.all_gather_object(every_range, ranges)
    if rank == 0:
        _write_state(trainer, writing, config, videos, every_range)
        _sync(writing)
        writing.rename(final)
        _sync(final.parent)
        for old in checkpoints(run)[:-keep]:
            dying = old.with_name(f".{old.name}.removing")  # out of sight first, then gone
            old.rename(dying)
            shutil.rmtree(dying)
    dist.barrier()
    return final


def _write_state(
    trainer: Trainer, folder: Path, config: dict, videos: str, ranges: list[dict]
) -> None:
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    state = {
        "format": FORMAT,
        "step": trainer.step_number,
        "world_size": len(ranges),
        "ranges": ranges,
        "groups": {
            shard.name: [[names[id(p)], list(p.shape)] for p in shard.parameters]
            for shard in trainer.shards
        },
        "config": config,
        "videos": videos,
    }
    with open(folder / "state.json", "w", encoding="utf-8") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, read by ranges."""

    folder: Path
    state: dict

    @staticmethod
    def open(folder: Path) -> Checkpoint:
        """Read a checkpoint's JSON.

        Raises:
            UserError: no such checkpoint, or one of another format.
        """
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(
                f"{folder}: found no readable state.json ({error}), expected a checkpoint folder "
                "such as RUN/checkpoints/step_00000800; name one"
            ) from None
        if state.get("format") != FORMAT:
            raise UserError(
                f"{folder}: found checkpoint format {state.get('format')}, expected {FORMAT}; read "
                "it with the version of vjepa_fast that wrote it"
            )
        return Checkpoint(folder, state)

    @staticmethod
    def find(path: Path) -> Checkpoint:
        """A checkpoint by its folder, or the newest of a run's folder.

        Raises:
            UserError: neither.
        """
        if not (path / "state.json").is_file() and checkpoints(path):
            path = checkpoints(path)[-1]
        return Checkpoint.open(path)

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
        for rank, ranges in enumerate(self.state["ranges"]):
            if group not in ranges:
                continue
            have, count = ranges[group]
            low, high = max(start, have), min(start + length, have + count)
            if low >= high:
                continue
            file = self.folder / f"shard_{rank:05d}.safetensors"
            try:
                with safe_open(file, framework="pt") as shard:
                    out[low - start : high - start] = shard.get_slice(key)[low - have : high - have]
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"{file}: found {error}, expected a whole shard with {key}; resume from an "
                    "older checkpoint by removing this one"
                ) from None
            filled += high - low
        if filled != length:
            raise UserError(
                f"{self.folder}: found {filled} of {length} elements of {key}, expected all; "
                "resume from an older checkpoint by removing this one"
            )
        return out

    def weights(self, part: str, which: str) -> dict[str, Tensor]:
        """Whole weights, fp32, by parameter name.

        Args:
            part: "encoder" or "predictor".
            which: "master" (as trained) or "teacher" (the target encoder; encoder only).
        """
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


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Bring masters, moments, teacher and step number back, at any world size. Collective.

    Raises:
        UserError: parameters other than this model's; a damaged checkpoint.
    """
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    saved = checkpoint.state["groups"]
    for shard in trainer.shards:
        own = [[names[id(p)], list(p.shape)] for p in shard.parameters]
        if saved.get(shard.name) != own:
            raise UserError(
                f"{checkpoint.folder}: found other parameters in {shard.name} than this model has, "
                "expected the same names and shapes; set model and masks as the checkpoint's "
                "state.json has them, or choose another output folder"
            )
    step = checkpoint.state["step"]
    for shard in trainer.shards:

        def read(kind: str, shard=shard) -> Tensor:
            return checkpoint.read(f"{shard.name}/{kind}", shard.start, shard.length)

        restore_masters(trainer.optimizer, shard, read("master"))
        restore_adam(trainer.optimizer, shard, {m: read(m) for m in MOMENTS}, step)
        averages = trainer.teacher.averages.get(shard.name)
        if averages is not None:
            flat, offset = read("teacher"), 0
            for average in averages:
                piece = flat[offset : offset + average.numel()]
                average.view(-1)[: piece.numel()].copy_(piece)
                offset += piece.numel()
    trainer.after_restore(step)
