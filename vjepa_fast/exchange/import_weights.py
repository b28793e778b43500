"""Writes the weights of others as a run's checkpoint, from which training can start.

One parameter is in memory at a time, whatever the size of the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from vjepa_fast.config import Config, parse_config
from vjepa_fast.exchange.new_folder import require_new, write_new_folder
from vjepa_fast.training.checkpoint.format import (
    FORMAT,
    Streamed,
    group_of,
    shard_bytes,
    shard_name,
    state_checksum,
    sync,
    write_shard,
)
from vjepa_fast.weights.open_file import open_weights
from vjepa_fast.weights.reading.read_tensors import require_checksums
from vjepa_fast.weights.weight_file import Weight, WeightFile

_ACCOUNTS = 2**16  # bytes of the file system's own accounts of a few files and folders
IMPORTED = "imported"  # stands for the manifest, which imported weights do not have


@dataclass(frozen=True)
class Imported:
    """What an import has written.

    Attributes:
        run: the folder.
        file: what the weights were read from.
        config: the stored config, plain JSON data.
        written: for each network written, "encoder", "target_encoder" or "predictor", the part of
            the file that it is from.
    """

    run: Path
    file: WeightFile
    config: dict
    written: dict[str, str]


def import_weights(
    source: Path,
    output: Path,
    *,
    heads: int | None = None,
    predictor_heads: int | None = None,
    crop_size: int | None = None,
    num_frames: Sequence[int] | None = None,
    generation: Literal[1, 2] | None = None,
) -> Imported:
    """Make a run folder whose checkpoint, at step 0, holds the weights of a file.

    Nothing is written unless all of it is. All mask tokens of the file are kept.

    Args:
        source: see `open_weights`, as for the other arguments.
        output: the run folder to make.

    Raises:
        UserError: the output exists, the disk is full, bytes differ from their checksum, weights
            are not finite, or see `open_weights`.
    """
    require_new(output)
    file = open_weights(
        source,
        heads=heads,
        predictor_heads=predictor_heads,
        crop_size=crop_size,
        num_frames=num_frames,
        generation=generation,
    )
    require_checksums(source)
    config = _config(output, file)
    settings = json.loads(config.model_dump_json())
    trained = "encoder" if "encoder" in file.parts else "target_encoder"
    written = {"encoder": trained, "target_encoder": file.target_encoder}
    if "predictor" in file.parts:
        written["predictor"] = "predictor"
    state = {
        "format": FORMAT,
        "step": 0,
        "shards": [],
        "groups": _groups(file, trained),
        "config": settings,
        "videos": "",
        "imported": {
            "file": Path(os.path.abspath(source)).name,  # a link's own name, e.g. in a cache
            "kind": file.kind,
            "generation": file.generation,
            "parts": list(file.parts),
        },
    }
    _write(output, file, written, state)
    return Imported(output, file, settings, written)


def _config(output: Path, file: WeightFile) -> Config:
    """The config that is stored with the weights."""
    first, *others = file.num_frames
    manifests = [IMPORTED, *({"path": IMPORTED, "num_frames": length} for length in others)]
    data = {"manifests": manifests, "num_frames": first, "crop_size": file.crop_size, **file.pace}
    config: dict = {"output": str(output), "data": data, "model": file.model}
    if file.crop_size // file.model["patch_size"] < 3:  # too few tokens for the default blocks
        config["masks"] = {"specs": [{"strategy": "random_tokens", "ratio": 0.5}]}
    return parse_config(config)


def _groups(file: WeightFile, trained: str) -> dict[str, list]:
    """The parameters of each group, with their shapes, as a trainer of this model orders them."""
    groups: dict[str, list] = {}
    for network, part in (("encoder", trained), ("predictor", "predictor")):
        for name, weight in file.parts.get(part, {}).items():
            full = f"{network}.{name}"
            groups.setdefault(group_of(full, len(weight.shape)), []).append(
                [full, list(weight.shape)]
            )
    return groups


def _vectors(
    file: WeightFile, written: dict[str, str], groups: dict[str, list]
) -> dict[str, Streamed]:
    """The flat vectors of the checkpoint, each read while it is written."""

    def vector(group: str, part: str) -> Streamed:
        weights = [file.parts[part][name.partition(".")[2]] for name, _ in groups[group]]
        count = sum(math.prod(weight.shape) for weight in weights)
        return Streamed((count,), _flat(weights))

    found = {}
    for group in groups:
        network = group.partition(".")[0]
        found[f"{group}/master"] = vector(group, written[network])
        if network == "encoder":
            found[f"{group}/teacher"] = vector(group, written["target_encoder"])
    return found


def _flat(weights: Sequence[Weight]) -> Iterator[Tensor]:
    for weight in weights:
        yield weight.read().reshape(-1).contiguous()


def _write(output: Path, file: WeightFile, written: dict[str, str], state: dict) -> None:
    """Write the run folder, complete or not at all."""
    size = shard_bytes(_vectors(file, written, state["groups"]))
    size += 2 * len(json.dumps(state, indent=1)) + _ACCOUNTS
    write_new_folder(output, size, lambda folder: _fill(folder, file, written, state))


def _fill(folder: Path, file: WeightFile, written: dict[str, str], state: dict) -> None:
    """Write the run's files."""
    checkpoint = folder / "checkpoints" / "step_00000000"
    checkpoint.mkdir(parents=True)
    vectors = _vectors(file, written, state["groups"])
    ranges = {group: [[0, vectors[f"{group}/master"].count]] for group in state["groups"]}
    shard = write_shard(checkpoint / shard_name(0), vectors)
    state = state | {"shards": [{"ranges": ranges, **shard}]}
    _write_json(checkpoint / "state.json", state | {"checksum": state_checksum(state)})
    _write_json(folder / "config.json", state["config"])
    for made in (checkpoint, checkpoint.parent):
        sync(made)


def _write_json(path: Path, content: dict) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
