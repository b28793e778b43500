"""`vjepa-fast finetune` under the launchers, at several numbers of processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.finetuning.test_run import ALL
from tests.helpers.ranks import run_ranks
from vjepa_fast import cli
from vjepa_fast.config.finetune.load import parse_finetune_config
from vjepa_fast.finetuning.start import pinned_initial
from vjepa_fast.training.checkpoint.format import checkpoints
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.distributed.launch import end_process_group, init_process_group
from vjepa_fast.training.distributed.launcher import free_port
from vjepa_fast.training.monitoring.writer import read_metrics

BIN = Path(sys.executable).parent


def run(command: list[str]) -> subprocess.CompletedProcess:
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept |= {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{kept['PATH']}"}
    return subprocess.run(command, capture_output=True, text=True, env=kept, check=False)


def launched(launcher: str) -> list[str]:
    port = str(free_port())
    if launcher == "deepspeed":
        own = ["--num_accelerators", "2", "--master_port", port, "--no_local_rank", "--no_python"]
        return [str(BIN / "deepspeed"), *own, "vjepa-fast"]
    own = ["--nproc-per-node", "2", "--master-port", port, "--no-python"]
    return [str(BIN / "torchrun"), *own, "vjepa-fast"]


@pytest.mark.slow
def test_two_processes_see_what_one_sees(
    finetune_config: Callable[..., dict], tmp_path: Path
) -> None:
    """The first loss is the same to rounding, with all augmentation and all that is dropped; the
    test counts every video once."""
    found = {}
    for launcher in ("none", "deepspeed", "torchrun"):
        config = finetune_config(
            output=str(tmp_path / launcher),
            data={"clips_per_video": 2},
            augment=ALL,
            optim={"epochs": 0.5, "drop_path": 0.5, "head_dropout": 0.5},
            test={"segments": 2, "crops": 1},
        )
        path = tmp_path / f"{launcher}.json"
        path.write_text(json.dumps(config))
        command = [str(BIN / "vjepa-fast")] if launcher == "none" else launched(launcher)
        done = run([*command, "finetune", "--config", str(path)])
        assert done.returncode == 0, done.stderr
        assert f"run folder: {tmp_path / launcher}" in done.stdout
        assert "top-1" in done.stdout
        rows = read_metrics(tmp_path / launcher / "metrics.jsonl")
        results = json.loads((tmp_path / launcher / "results.json").read_text())
        assert results["videos"]["used"] == 16
        found[launcher] = [(row["loss"], row["grad_norm_model"]) for row in rows]
    for launcher in ("deepspeed", "torchrun"):
        assert len(found[launcher]) == 3 * 2
        assert found[launcher][0] == pytest.approx(found["none"][0], rel=1e-4)


@pytest.mark.slow
def test_every_process_starts_from_the_checkpoint_that_rank_0_sees(
    finetune_config: Callable[..., dict], pretrained: Path, tmp_path: Path
) -> None:
    """Though the other one sees a newer one, as where the run to start from still trains."""
    newer = tmp_path / "newer"
    shutil.copytree(pretrained, newer)
    shutil.copytree(checkpoints(newer)[-1], newer / "checkpoints" / "step_00000009")
    configs = [finetune_config(init={"checkpoint": str(run)}) for run in (pretrained, newer)]
    found = run_ranks([__file__, *map(json.dumps, configs)], 2, seconds=300)
    assert found == [str(checkpoints(pretrained)[-1])] * 2


def test_a_mistake_is_one_sentence(
    tmp_path: Path, finetune_config: Callable[..., dict], capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(finetune_config()))
    assert cli.main(["finetune", "--config", str(path), "--set", "optim.lrr=1"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: optim.lrr: found an unknown key")
    assert printed.count("\n") == 1


if __name__ == "__main__":
    rank, _ = init_process_group()
    own = parse_finetune_config(json.loads(sys.argv[1 + rank]))
    print("FOUND" + json.dumps(str(pinned_initial(own, HostGroup()))), flush=True)
    end_process_group()
