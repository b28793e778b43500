"""A data set that was copied or moved is told at once, not clip by clip."""

import os
import shutil
from pathlib import Path

import pytest

from tests.helpers import videos
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.manifest.location import is_in_place
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.prepare.index import index_directory
from vjepa_fast.errors import UserError

NOON = 1_700_000_000_123_456_789  # ns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four indexed videos, and their manifest."""
    made = tmp_path / "made"
    made.mkdir()
    for name in "abcd":
        path = videos.write_numbered(made, "mjpeg", 5, name)
        os.utime(path, ns=(NOON, NOON))
    index_directory(made, made / "m.csv", workers=1)
    return made


def told(manifest: Path) -> str:
    with pytest.raises(UserError) as error:
        open_manifest(manifest)
    return str(error.value)


def test_a_copy_without_modification_times(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    assert told(copy / "m.csv") == (
        f"{copy}/m.csv: found that 4 of 4 videos looked at have another modification time than "
        f"when they were indexed, and the same size (the first: {copy}/a.avi), expected the time "
        "as well; copying loses it, so copy with `cp -p` or `rsync -t`, or run `vjepa-fast index` "
        "again, which keeps the labels"
    )
    index_directory(copy, copy / "m.csv", workers=1)
    assert len(open_manifest(copy / "m.csv")) == 4
    whole = Path(shutil.copytree(folder, tmp_path / "with times"))
    assert len(open_manifest(whole / "m.csv")) == 4


def test_a_moved_and_a_changed_data_set(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(folder / "m.csv", tmp_path))
    described = "missing or changed since they were indexed (the first: "
    assert told(moved).startswith(f"{moved}: found 4 of 4 videos looked at {described}")
    assert f"{tmp_path}/a.avi is missing), expected the files that" in told(moved)
    for name in "ab":
        with open(folder / f"{name}.avi", "ab") as file:
            file.write(b"more")
    assert len(open_manifest(folder / "m.csv")) == 4  # half of them: up to data.max_bad_fraction
    os.utime(folder / "d.avi")
    assert "found 3 of 4 videos" in told(folder / "m.csv")
    assert f"{folder}/a.avi is of another size" in told(folder / "m.csv")


@pytest.mark.parametrize(
    ("time", "same"),
    [
        (NOON, True),
        (1_700_000_000_123_456_700, True),
        (1_700_000_000_123_456_000, True),
        (1_700_000_000_123_000_000, True),
        (1_700_000_000_000_000_000, True),  # as in a tar archive
        (1_700_000_000_123_456_788, False),
        (1_700_000_001_000_000_000, False),
        (1_699_999_999_000_000_000, False),
    ],
)
def test_times_that_were_cut_are_the_same(folder: Path, time: int, same: bool) -> None:
    os.utime(folder / "a.avi", ns=(time, time))
    assert is_in_place(read_manifest(folder / "m.csv")[0]) == same
