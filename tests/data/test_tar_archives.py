"""Videos in tar archives: indexed, planned and decoded in place, by both backends."""

import tarfile

import pytest

from tests.helpers import videos
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.prepare.index import index_directory

WHOLE = Augment(area=(1.0, 1.0), aspect_ratio=(4 / 3, 4 / 3), flip=False)


@pytest.fixture
def manifest(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    for archive in range(2):
        with tarfile.open(folder / f"{archive}.tar", "w") as tar:
            for i in range(2):
                path = videos.write_numbered(tmp_path, "vp9", 20 + 10 * (2 * archive + i), "v")
                tar.add(path, f"{i}.webm")
                tar.add(__file__, f"{i}.json")
                path.unlink()
    index_directory(folder, tmp_path / "m.csv", workers=1)
    return tmp_path / "m.csv"


@pytest.mark.parametrize("backend", ["dali", "pyav"])
def test_clips_come_out_of_archives(manifest, backend):
    planner = ClipPlanner([read_manifest(manifest)], num_frames=4, frame_step=2, augment=WHOLE)
    with make_loader(planner, [[0, 1], [2, 3]], 48, backend=backend) as loader:
        batches = list(loader)
    plans = planner.plan(range(4))
    shown = [videos.read_numbers(clip.numpy()) for batch in batches for clip in batch.video]
    assert shown == [plan.frames.tolist() for plan in plans]
    assert {plan.video for plan in plans} == set(range(4))


@pytest.mark.parametrize("backend", ["dali", "pyav"])
def test_a_changed_archive_costs_its_clips_only(manifest, tmp_path, backend):
    planner = ClipPlanner([read_manifest(manifest)], num_frames=4, frame_step=2, augment=WHOLE)
    (tmp_path / "archives" / "0.tar").unlink()
    with make_loader(planner, [range(8)], 48, backend=backend) as loader:
        (batch,) = list(loader)
    assert batch.video.shape == (8, 4, 48, 48, 3)
    shown = [videos.read_numbers(clip.numpy()) for clip in batch.video]
    for i, plan in enumerate(planner.plan(range(8))):
        attempts = (planner.plan_one(i, attempt) for attempt in range(4))
        intact = next(plan for plan in attempts if "1.tar::" in plan.path)
        assert shown[i] == intact.frames.tolist()
        assert ("1.tar::" in plan.path) == (intact.video == plan.video)
