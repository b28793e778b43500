"""An import holds one parameter in memory, not a file."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.paths import REPOSITORY
from vjepa_fast.models.encoder import VisionTransformer

LARGEST = 4 * 1536 * 384  # bytes of a parameter in fp32
# Memory of this process that no file backs, sampled while something runs.
PROGRAM = """
import json, sys, threading
from pathlib import Path
from vjepa_fast.exchange.import_weights import import_weights
from vjepa_fast.weights.open_file import open_weights

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])

def growth(call):
    done, peak, start = threading.Event(), [0], anonymous()
    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    result = call()
    peak[0] = max(peak[0], anonymous())
    done.set()
    thread.join()
    return peak[0] - start

folder = Path(sys.argv[1])
options = dict(heads=6, crop_size=48, num_frames=[2])
found = {}
for suffix in sys.argv[2:]:
    source, output = folder / f"large{suffix}", folder / f"runs{suffix}"
    import_weights(folder / f"tiny{suffix}", output / "tiny", **options)  # allocates once
    streamed = growth(lambda: import_weights(source, output / "large", **options))
    held = open_weights(source, **options)
    whole = growth(lambda: [w.clone() for part in held.parts for w in held.state(part).values()])
    found[suffix] = streamed, whole
print(json.dumps(found))
"""


def encoder(depth):
    model = VisionTransformer(
        width=384, depth=depth, heads=6, grid=(1, 1, 1), patch_size=16, tubelet_size=2
    )
    return {name: value.bfloat16() for name, value in model.state_dict().items()}


@pytest.mark.slow
def test_one_parameter_is_in_memory(tmp_path):
    """In bf16, so that each is converted."""
    for name, depth in (("tiny", 1), ("large", 8)):
        state = encoder(depth)
        torch.save({"encoder": state, "target_encoder": state}, tmp_path / f"{name}.pt")
        save_file(state, tmp_path / f"{name}.safetensors")
    command = [sys.executable, "-c", PROGRAM, tmp_path, ".pt", ".safetensors"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size = 4 * sum(value.numel() for value in encoder(8).values())
    for streamed, whole in json.loads(done.stdout).values():
        assert whole > size  # the measure sees what is held
        assert streamed < 4 * LARGEST < size / 4
