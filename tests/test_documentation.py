"""docs/training.md names keys that exist and the memory that `vjepa-fast info` computes.

The SLURM script looks for a message that the training loop logs, and docs/gpu_check.md has a table
of all code for CUDA.
"""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
from pydantic import BaseModel

from tests.helpers.paths import REPOSITORY
from vjepa_fast.commands import cost_of_config, info
from vjepa_fast.config import Config, load_config
from vjepa_fast.training.timers import PARTS

TEXT = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
MODES = ("none", "selective", "full")
CONFIGS = {
    "ViT-L/16, 224 px": "vitl16",
    "ViT-H/16, 224 px": "vith16",
    "ViT-H/16, 384 px": "vith16_384",
}


def test_keys_exist() -> None:
    sections = {
        name: set(field.annotation.model_fields)
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    keys = re.findall(rf"`({'|'.join(sections)})\.(\w+)", TEXT)
    assert len(keys) > 20
    assert {(a, b) for a, b in keys if b not in sections[a] and b != "jsonl"} == set()


def test_the_slurm_script_recognizes_a_run_that_was_stopped() -> None:
    script = (REPOSITORY / "configs" / "slurm.sbatch").read_text(encoding="utf-8")
    message = re.search(r'grep -q "(.+)"', script)[1]
    assert message in (REPOSITORY / "vjepa_fast" / "training" / "loop.py").read_text()


def test_the_table_of_code_for_cuda_has_every_file() -> None:
    package = REPOSITORY / "vjepa_fast"
    cuda = re.compile(r"torch\.cuda|is_cuda|[\"']cuda|nccl|pin_memory|non_blocking|record_stream")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if cuda.search(path.read_text(encoding="utf-8"))
    }
    page = (REPOSITORY / "docs" / "gpu_check.md").read_text(encoding="utf-8")
    table = page[page.index("| where | what | covered by |") :].partition("\n\n")[0]
    assert set(re.findall(r"`([\w/]+\.py)`", table.replace("tests/", ""))) == found


def test_every_part_is_explained() -> None:
    assert all(f"_{part}" in TEXT for part in PARTS)


def test_computed_stages() -> None:
    names = ("v2_vitg16", "v2_cooldown_vitg16_384")
    configs = [load_config(REPOSITORY / "configs" / f"{name}.json") for name in names]
    *rows, ratio = info.stages_text(configs).splitlines()
    table = TEXT[TEXT.index("| stage | clip | steps |") :].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == len(rows) - 1 == 4
    for line, row in zip(table, rows[1:], strict=True):
        cells = line.partition("|")[2].partition("|")[2], row.partition("  ")[2]
        numbers, computed = (re.findall(r"\d[\d,.]*\b", text) for text in cells)
        assert set(numbers) <= set(computed), line
        assert numbers[-1] == row.split()[-1], line
    assert f"That is {ratio.split()[0].strip('(')} times as much." in TEXT


def test_computed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    count = cost_of_config.count_tokens

    @lru_cache
    def counted(name: str) -> tuple:
        return count(load_config(REPOSITORY / "configs" / f"{name}.json"))

    table = TEXT[TEXT.index("| | micro-batch | GPUs |") :].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == 10
    name = ""
    for line in table:
        first, micro, gpus, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        name = CONFIGS[first] if first else name
        monkeypatch.setattr(cost_of_config, "count_tokens", lambda _, name=name: counted(name))
        found = []
        for mode in MODES:
            changes = [f"activation_checkpointing={mode}", f"optim.micro_batch={micro}"]
            config = load_config(REPOSITORY / "configs" / f"{name}.json", changes)
            rows = [row.split() for row in info.info_text(config).splitlines()]
            found += [row[-3] for row in rows if row[:1] == [gpus] and "=" in row]
        assert found == cells, line
