"""The checkpoint format: the imports that reading needs, and the bytes on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.helpers.house import loaded
from tests.helpers.paths import REPOSITORY
from vjepa_fast.training.checkpoint.format import verify_shard, write_shard


def test_reading_a_checkpoint_imports_neither_deepspeed_nor_the_trainer() -> None:
    found = set(loaded(REPOSITORY, "import vjepa_fast.training.checkpoint.format"))
    ours = {name for name in found if name.startswith("vjepa_fast.")}
    assert ours == {
        "vjepa_fast.errors",
        "vjepa_fast.training",
        "vjepa_fast.training.checkpoint",
        "vjepa_fast.training.checkpoint.format",
    }
    assert not found & {"deepspeed", "pydantic", "sklearn", "matplotlib", "av"}


def test_the_bytes_of_a_shard(tmp_path: Path) -> None:
    tensors = {"encoder.decay/master": torch.arange(5.0), "encoder.decay/teacher": torch.ones(3)}
    file = tmp_path / "shard"
    written = write_shard(file, tensors)
    assert written == {"bytes": 208, "crc32": 3880764536}  # as by the first version of format 3
    assert verify_shard(file, written) is None
    read = load_file(file)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
