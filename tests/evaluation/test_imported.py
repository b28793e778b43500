"""A probe on imported weights, which come without videos of their own."""

import json
from pathlib import Path

import pytest

from tests.weights.published_files import FIRST, SECOND, checkpoint, save
from vjepa_fast.cli import main
from vjepa_fast.evaluation.saved_probe import load_probe
from vjepa_fast.exchange.import_weights import import_weights
from vjepa_fast.weights import weights_checksum
from vjepa_fast.weights.open_file import open_weights


@pytest.mark.parametrize("blocks", [1, 4])
def test_probe_of_imported_weights(tmp_path: Path, demo: Path, blocks: int) -> None:
    """On videos that the user names; size and length of a clip are the file's."""
    sizes = FIRST if blocks == 1 else SECOND
    file = save(checkpoint(3, second=blocks == 4), tmp_path / "tiny.pt")
    run = import_weights(file, tmp_path / "run", **sizes).run
    videos = ["--labels", "digit", "--train", str(demo / "train.csv"), "--epochs", "1"]
    assert main(["probe", "--checkpoint", str(run), *videos, "--blocks", str(blocks)]) == 0
    result = json.loads((run / "probe.json").read_text())
    assert (result["step"], result["blocks"]) == (0, blocks)
    source = open_weights(file, **sizes)
    classifier, header = load_probe(run / result["saved"]["digit"])
    assert (classifier.num_blocks, classifier.heads) == (blocks, sizes["heads"])
    assert header["encoder"]["crc32"] == weights_checksum(source.state("target_encoder"))
    assert header["crop_size"] == source.crop_size
    assert header["num_frames"] == source.num_frames[0]
