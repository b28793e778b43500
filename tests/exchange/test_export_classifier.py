"""A probe of four blocks becomes transformers' classifier, or a sentence says why it can't."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.exchange.runs import FIRST, SECOND, write_run
from tests.exchange.test_export import refused
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.evaluation.saved_probe import save_probe
from vjepa_fast.exchange.export.form import features
from vjepa_fast.exchange.export.run import export_run
from vjepa_fast.exchange.export.source import open_source
from vjepa_fast.weights import weights_checksum

USER = """
import re, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
(code,) = re.findall(r"```python\\n(.+?)```", open("classifier/README.md").read(), re.S)
assert len(code.splitlines()) == 3, code
exec(code)
with torch.no_grad():
    inputs = processor(load_file("video.safetensors")["video"], return_tensors="pt")
    logits = model(**inputs).logits
    features = AutoModel.from_pretrained("classifier")(**inputs).last_hidden_state
print(type(model).__name__, model.config.id2label)
save_file({"logits": logits, "features": features}, "found.safetensors")
"""


def save(path, run, *, blocks=4, width=24, heads=2, norm_eps=1e-6, crc32=None):
    """A probe with weights that are far from their initial ones, on the run's encoder."""
    torch.manual_seed(0)
    probe = AttentiveClassifier(width, heads, 3, blocks, norm_eps)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if crc32 is None:
        crc32 = weights_checksum(open_source(run).checkpoint.weights("encoder", "teacher"))
    header = {"label": "digit", "classes": [0, 4, 700], "encoder": {"crc32": crc32}}
    save_probe(path, probe, header)
    return probe.eval()


@pytest.mark.slow
def test_a_users_process_gets_our_logits(tmp_path):
    run = write_run(tmp_path / "run", SECOND)
    probe = save(tmp_path / "probe.safetensors", run)
    done = export_run(run, "transformers", tmp_path / "classifier", tmp_path / "probe.safetensors")
    assert done.difference <= 1e-5
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (8, 27, 41, 3), dtype=torch.uint8, generator=generator)
    save_file({"video": video}, tmp_path / "video.safetensors")
    user = subprocess.run(
        [sys.executable, "-c", USER],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert user.returncode == 0, user.stderr
    assert user.stdout.strip() == ("VJEPA2ForVideoClassification {0: '0', 1: '4', 2: '700'}")
    found = load_file(tmp_path / "found.safetensors")
    with torch.no_grad():
        expected = features(open_source(run).build_encoder(), video[None, :, 1:25, 8:32])
        logits = probe(expected)
    assert (found["features"] - expected).abs().max() <= 1e-5
    assert (found["logits"] - logits).abs().max() <= 1e-5
    assert logits.std() > 1e-2
    config = json.loads((tmp_path / "classifier" / "config.json").read_text())
    assert config["architectures"] == ["VJEPA2ForVideoClassification"]
    assert config["num_pooler_layers"] == 3
    card = (tmp_path / "classifier" / "README.md").read_text()
    assert "- video-classification\n" in card
    assert "Classes: 3 of the label 'digit'" in card


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"blocks": 1, "norm_eps": 1e-5}, "found a probe of one block, expected four, since the"),
        ({"heads": 3}, "found a probe with 3 attention heads, expected 2, since transformers"),
        ({"norm_eps": 1e-5}, "found a probe with norm_eps 1e-05, expected 1e-06, since transf"),
        ({"width": 12}, "found a probe with 12 features a token, expected 24, as this encoder"),
        ({"crc32": 5}, "found a probe of another encoder, expected one that was trained on "),
    ],
)
def test_a_probe_that_the_classifier_cannot_hold(others, sentence, tmp_path):
    run = write_run(tmp_path / "run", SECOND)
    probe = tmp_path / "probe.safetensors"
    save(probe, run, **others)
    found = refused(tmp_path, run, "transformers", probe=probe)
    assert found.startswith(f"{probe}: {sentence}")


def test_a_probe_of_a_first_generation(tmp_path):
    run = write_run(tmp_path / "run", FIRST)
    probe = tmp_path / "probe.safetensors"
    save(probe, run)
    assert refused(tmp_path, run, "transformers", probe=probe).startswith(
        "--probe: found an encoder of the first generation, expected V-JEPA 2"
    )


def test_a_file_that_is_no_probe(tmp_path):
    run = write_run(tmp_path / "run", SECOND)
    found = refused(tmp_path, run, "transformers", probe=tmp_path / "nothing")
    assert "found no readable probe" in found
