"""Compares a golden attentive-classifier file with the shipped classifier."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.golden_parity.items import Item, largest
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.weights import load_exactly, probe_from_published


def check_attentive_probe(path: Path) -> list[Item]:
    """Logits of the published classifier on the file's features."""
    with np.load(path) as data:
        meta = json.loads(str(data["meta"]))
        state = {n[6:]: torch.from_numpy(data[n]) for n in data.files if n.startswith("state/")}
        features, logits = torch.from_numpy(data["features"]), torch.from_numpy(data["logits"])
    probe = AttentiveClassifier(meta["embed_dim"], meta["num_heads"], meta["num_classes"])
    load_exactly(probe, probe_from_published(state), "state")
    with torch.no_grad():
        # The tolerance is the one published with the golden files.
        return [Item("logits", largest(probe(features), logits), 1e-5)]
