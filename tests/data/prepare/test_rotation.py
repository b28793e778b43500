"""Rotated videos: the rotation that the index reads from their display matrix."""

import numpy as np
import pytest

from tests.helpers import videos
from vjepa_fast.data.ffmpeg import BadVideo
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.scan import probe_file
from vjepa_fast.data.prepare.scan_journal import ScannedFile
from vjepa_fast.errors import UserError

# (a, b, c, d): the stored point (x, y), y downwards, is shown at (a x + c y, b x + d y).
QUARTERS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
REJECTED = {
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "45 degrees": (0.7071, 0.7071, -0.7071, 0.7071),
}


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return videos.write_numbered(tmp_path_factory.mktemp("mp4"), "h264", 4).read_bytes()


@pytest.mark.parametrize("degrees", QUARTERS)
def test_the_index_tells_the_quarter_turn_and_the_size_that_is_shown(tmp_path, mp4, degrees):
    path = tmp_path / "v.mp4"
    path.write_bytes(videos.with_matrix(mp4, QUARTERS[degrees]))
    entry = probe_video(path)
    size = (48, 64) if degrees in (90, 270) else (64, 48)
    assert (entry.rotation, entry.width, entry.height) == (degrees, *size)
    assert entry.stored_size == (64, 48)
    # The frames are as they are stored: seen from its centre, the matrix takes the stored corner
    # to the corner where turning by `degrees` takes it.
    corner = np.array([-1, -1]) @ np.reshape(QUARTERS[degrees], (2, 2))
    turned = np.rot90([["top left", ""], ["", ""]], -degrees // 90)
    assert turned[tuple((corner[::-1] + 1) // 2)] == "top left"
    status = path.stat()
    file = ScannedFile(str(path), status.st_size, status.st_mtime_ns)
    result = probe_file(file, deep=True)
    assert result.entry == entry, result.reason
    for name in ("m.csv", "m.parquet"):
        write_manifest(tmp_path / name, [entry])
        assert list(read_manifest(tmp_path / name)) == [entry]


@pytest.mark.parametrize("name", REJECTED)
def test_mirrored_pictures_and_other_angles_are_rejected(tmp_path, mp4, name):
    path = tmp_path / "v.mp4"
    path.write_bytes(videos.with_matrix(mp4, REJECTED[name]))
    with pytest.raises(
        BadVideo, match="mirrored, or rotated by other than a multiple of 90 degrees"
    ):
        probe_video(path)


def test_a_rotation_that_is_no_quarter_turn_is_rejected_in_a_manifest(tmp_path, mp4):
    path = tmp_path / "v.mp4"
    path.write_bytes(videos.with_matrix(mp4, QUARTERS[90]))
    write_manifest(tmp_path / "m.csv", [probe_video(path)])
    columns, row = (line.split(",") for line in (tmp_path / "m.csv").read_text().splitlines())
    assert row[columns.index("rotation")] == "90"
    row[columns.index("rotation")] = "45"
    (tmp_path / "m.csv").write_text(",".join(columns) + "\n" + ",".join(row) + "\n")
    with pytest.raises(UserError, match=r"line 2: found rotation = 45, expected 0, 90, 180 or 270"):
        read_manifest(tmp_path / "m.csv")
