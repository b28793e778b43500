"""The clips of a run's pictures: a file that crashes FFmpeg costs a clip, not the run."""

import torch

from tests.helpers import damaged, videos
from vjepa_fast.config import parse_config
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.training import batches
from vjepa_fast.training.batches import Batches, make_planner


def test_a_crash_costs_the_pictures_one_clip(small_config, tmp_path, monkeypatch):
    paths = [videos.write_numbered(tmp_path, "mjpeg", 12, name) for name in ("a", "crash", "b")]
    manifest = videos.manifest_of(tmp_path, paths)
    data = {"manifests": [str(manifest)], "num_frames": 4, "frame_step": 1, "crop_size": 24}
    config = parse_config(small_config(data=data))
    planner = make_planner(config)
    plans = [planner.plan_one(sample_id) for sample_id in range(8)]
    valid = [plan for plan in plans if plan.video != 1]
    assert 1 in [plan.video for plan in plans[:3]]  # so a crash comes before the last picture
    monkeypatch.setattr(batches, "decode_pixels", damaged.crash_or_decode)
    found = Batches(config, 0, 1).examples(3)
    expected = [decode_clip(plan, planner.entries[plan.video], 24) for plan in valid[:3]]
    assert torch.equal(found, torch.stack(expected))


def test_there_are_no_pictures_if_every_clip_crashes(small_config, tmp_path, monkeypatch):
    manifest = videos.manifest_of(tmp_path, [videos.write_numbered(tmp_path, "mjpeg", 12, "crash")])
    data = {"manifests": [str(manifest)], "num_frames": 4, "frame_step": 1, "crop_size": 24}
    monkeypatch.setattr(batches, "decode_pixels", damaged.crash_or_decode)
    assert Batches(parse_config(small_config(data=data)), 0, 1).examples(1) is None
