"""What was fine-tuned leaves as any run's encoder does, and its classifier is a probe's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vjepa_fast.config.finetune.load import parse_finetune_config
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.saved_probe import load_probe
from vjepa_fast.exchange.export.run import export_run
from vjepa_fast.finetuning.loop import finetune
from vjepa_fast.inference.load import load_encoder


@pytest.mark.slow
def test_encoder_and_attentive_classifier(
    finetune_config: Callable[..., dict], tmp_path: Path
) -> None:
    config = parse_finetune_config(
        finetune_config(
            classifier={"kind": "attentive", "blocks": 4},
            optim={"epochs": 0.5, "drop_path": 0.1, "lr": 1e-3},
            test={"segments": 2},
        )
    )
    results, run = finetune(config), Path(config.output)
    probe = run / "probe_digit.safetensors"
    head, header = load_probe(probe)
    encoder = load_encoder(run)
    assert header["test"] == results["accuracy"]
    assert header["segments"] == 1  # of those that are tested it reads one at a time
    assert header["encoder"]["crc32"] == encoder.checksum
    clip = torch.zeros(1, 4, 28, 28, 3, dtype=torch.uint8)
    assert head(encoder(clip).tokens).shape == (1, results["num_classes"])

    export_run(run, "safetensors", tmp_path / "exported")
    exported = load_encoder(tmp_path / "exported")
    assert torch.equal(exported(clip).tokens, encoder(clip).tokens)
    with pytest.raises(UserError, match="found an encoder without a predictor"):
        export_run(run, "transformers", tmp_path / "refused", probe=probe)
