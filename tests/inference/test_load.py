"""An encoder from a run or a checkpoint: whose weights, which clips, and what does not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import videos
from tests.helpers.paths import REPOSITORY
from vjepa_fast import load_encoder
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.errors import UserError
from vjepa_fast.inference.load import load_target_encoder
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.training.checkpoint.format import Checkpoint, state_checksum

BOTH = pytest.mark.parametrize("generation", [1, 2])


def clips(batch: int = 2, frames: int = 4, height: int = 28, width: int = 28) -> torch.Tensor:
    """Random video."""
    generator = torch.Generator().manual_seed(frames + height)
    shape = batch, frames, height, width, 3
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@BOTH
def test_a_run_gives_the_features_of_its_target_encoder(runs: dict, generation: int) -> None:
    run = runs[generation]
    encoder = load_encoder(run)
    newest = Checkpoint.find(run)
    assert load_encoder(newest.folder).checksum == encoder.checksum
    assert (encoder.width, encoder.grid, encoder.network) == (24, (2, 4, 4), "target_encoder")
    assert (encoder.num_frames, encoder.crop_size) == (4, 28)
    assert {1: encoder.sampling.frame_step, 2: encoder.sampling.fps}[generation] == 2 * generation
    teacher, master = (newest.weights("encoder", which) for which in ("teacher", "master"))
    assert not torch.equal(teacher["norm.bias"], master["norm.bias"])
    assert torch.equal(encoder.model.norm.bias, teacher["norm.bias"])
    video = clips()
    found = encoder(video)
    expected = encode_clips(load_target_encoder(newest), video).view(2, 32, 24)
    assert torch.equal(found.tokens, expected) and found.tokens.dtype == torch.float32
    assert not found.tokens.requires_grad and found.grid == (2, 4, 4)
    assert torch.equal(found.pooled, expected.mean(1))
    assert torch.equal(found.maps[1, 1, 2, 3], expected[1, 16 + 2 * 4 + 3])
    one = encoder(video[1])
    torch.testing.assert_close(one.tokens, expected[1:], rtol=1e-5, atol=1e-5)
    rounded = load_encoder(run, dtype=torch.bfloat16)
    assert rounded.model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    error = (rounded(video).tokens - expected).abs().max()
    assert 0 < error < 0.1 * expected.abs().max()


def test_the_result_of_a_run_with_a_frozen_teacher_is_its_encoder(
    runs: dict, tmp_path: Path
) -> None:
    newest = Checkpoint.find(runs[1])
    copy = shutil.copytree(newest.folder, tmp_path / "frozen")
    state = json.loads((copy / "state.json").read_text())
    state["config"]["teacher"] = {"mode": "frozen", "checkpoint": str(runs[1])}
    state["checksum"] = state_checksum(state)
    (copy / "state.json").write_text(json.dumps(state))
    encoder = load_encoder(copy)
    assert encoder.network == "encoder"
    assert torch.equal(encoder.model.norm.bias, newest.weights("encoder", "master")["norm.bias"])


@BOTH
def test_a_file_gives_what_its_middle_clip_gives(
    runs: dict, generation: int, tmp_path: Path
) -> None:
    """Its frames are those that a probe takes; a picture of the right size is only cut."""
    pictures = [videos.numbered(i, 32, 44) for i in range(30)]
    path = videos.write_video(tmp_path / "a.mp4", pictures, "h264")
    encoder = load_encoder(runs[generation])
    window = {"num_frames": 4, "frame_step": 2, "fps": {1: None, 2: 4}[generation]}
    planner = ClipPlanner.in_order(read_manifest(videos.manifest_of(tmp_path, [path])), **window)
    plan = planner.plan([0])[0]
    whole = decode_clip(plan, planner.entries[0], 32)  # the middle square, 32 x 32 of 32 x 44
    clip = encoder.read_clip(path)
    assert clip.shape == (4, 28, 28, 3)
    assert torch.equal(clip, whole[:, 2:30, 2:30])
    features = encoder(path)
    assert torch.equal(features.tokens, encoder(clip).tokens)
    both = encoder([path, str(path)])
    assert both.tokens.shape == (2, 32, 24)
    torch.testing.assert_close(both.tokens[1], features.tokens[0], rtol=1e-5, atol=1e-5)


def test_other_sizes_where_positions_allow_it(runs: dict) -> None:
    first, second = load_encoder(runs[1]), load_encoder(runs[2])
    assert second(clips(1, 6, 35, 21)).grid == (3, 5, 3)
    assert first(clips(1, 2)).grid == (1, 4, 4)
    larger = load_encoder(runs[1], crop_size=35, num_frames=6)
    assert larger.grid == (3, 5, 5)
    assert larger(clips(1, 6, 35, 35)).tokens.shape == (1, 75, 24)
    table = first.model.positions.view(2, 4, 4, 24)
    assert torch.equal(larger.model.positions.view(3, 5, 5, 24)[:2, :4, :4], table)


@pytest.mark.parametrize(
    ("generation", "video", "sentence"),
    [
        (2, clips().float(), r"found torch.float32, expected torch.uint8, RGB from 0 to 255"),
        (
            2,
            clips().permute(0, 1, 4, 2, 3),
            r"found a tensor of shape \[2, 4, 3, 28, 28\], exp.* perm",
        ),
        (2, clips()[0, 0], r"found a tensor of shape \[1, 28, 28, 3\]"),
        (2, clips(frames=5), r"found 2 clips of 5 frames, expected .* a multiple of 2 frames"),
        (2, clips(0), r"found 0 clips of 4 frames, expected at least one clip"),
        (2, clips(height=30), r"found frames of 30 x 28 pixels, expected multiples of 7"),
        (1, clips(height=35), r"found frames of 35 x 28 pixels, expected 28 x 28, the .* table"),
        (1, clips(frames=6), r"found clips of 6 frames, expected at most 4, the length"),
        (1, [], r"found none, expected at least one"),
        (1, clips().numpy(), r"found several of type ndarray, expected .* torch.from_numpy"),
        (1, list(clips()), r"found several of type Tensor, expected .* or torch.stack"),
        (1, None, r"found NoneType, expected the path of a video"),
    ],
)
def test_tensors_that_do_not_fit(runs: dict, generation: int, video: object, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^videos?: {sentence}"):
        load_encoder(runs[generation])(video)


def test_files_that_are_no_video(runs: dict, tmp_path: Path) -> None:
    encoder = load_encoder(runs[1])
    Image.fromarray(videos.numbered(1)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("some text")
    whole = videos.write_numbered(tmp_path, "vp9", 30).read_bytes()
    (tmp_path / "cut.webm").write_bytes(whole[: len(whole) // 2])
    short = videos.write_numbered(tmp_path, "vp9", 7, "short")
    for name, sentence in (
        ("a.png", r"found an image \(png\), expected a video; to repeat images .* index their"),
        ("a.txt", "found a text file, not a video, expected a video"),
        ("cut.webm", "found truncated"),
        ("none.mp4", "found no such file, expected a video file"),
        (".", "found a folder, expected a video file"),
        (short.name, "found 7 frames at 25 frames per second, expected at least 8 frames of the"),
    ):
        with pytest.raises(UserError, match=sentence) as error:
            encoder(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
    with pytest.raises(UserError, match=r"found 7 frames at .*, expected at least 1 s, the length"):
        load_encoder(runs[2])(short)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"heads": 4}, "^heads: found 4, expected 2, with which .* was trained"),
        ({"crop_size": 30}, "^crop_size: found 30, expected a multiple of 7.*crop_size=28"),
        ({"num_frames": 1}, "^num_frames: found 1, expected a multiple of 2.*num_frames=2"),
    ],
)
def test_arguments_that_do_not_fit(runs: dict, arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_encoder(runs[2], **arguments)


def test_weights_that_are_not_finite(runs: dict, tmp_path: Path) -> None:
    copy = shutil.copytree(Checkpoint.find(runs[1]).folder, tmp_path / "nan")
    shard, state = copy / "shard_00000.safetensors", json.loads((copy / "state.json").read_text())
    content = bytearray(shard.read_bytes())
    size = int.from_bytes(content[:8], "little")
    begin = json.loads(content[8 : 8 + size])["encoder.decay/teacher"]["data_offsets"][0]
    content[8 + size + begin : 8 + size + begin + 4] = np.float32("nan").tobytes()
    shard.write_bytes(content)
    state["shards"][0]["crc32"] = zlib.crc32(content)
    state["checksum"] = state_checksum(state)
    (copy / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"nan: found NaN or infinite numbers in the encoder's"):
        load_encoder(copy)


def test_without_the_packages_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['av'] = None\nfrom vjepa_fast import load_encoder"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "load_encoder: found no module av, expected the packages" in done.stderr
    assert "pip install 'vjepa-fast[train]'" in done.stderr


def test_importing_the_package_stays_light() -> None:
    program = "import sys, vjepa_fast; print(*sys.modules); vjepa_fast.load_encoder"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not {"torch", "av", "numpy"} & set(done.stdout.split())
    with pytest.raises(ImportError, match="load_encoders"):
        from vjepa_fast import load_encoders  # noqa: F401
