"""Writing demo data: files, manifests, the same bytes again, keeping what is valid."""

import av
import numpy as np
import pytest

from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.prepare.demo.write import SETS, make_demo
from vjepa_fast.errors import UserError


def decode(path):
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def files(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_a_file_decodes_to_what_was_drawn(tmp_path, codec, kind):
    manifest, _ = make_demo(tmp_path, 4, 1, codec=codec, seed=5, workers=1, kind=kind)
    entries = read_manifest(manifest)
    assert [entry.codec for entry in entries] == 4 * [codec]
    for index, entry in enumerate(entries):
        drawn, labels = SETS[kind].render(5, "train", index)
        decoded = decode(entry.path).astype(float)
        assert decoded.shape == drawn.shape == (entry.frames, entry.height, entry.width, 3)
        assert entry.labels == labels
        # The color is stored at half the resolution, so the luma (BT.601) is what stays close.
        stored, meant = decoded @ [0.299, 0.587, 0.114], drawn @ [0.299, 0.587, 0.114]
        assert np.abs(stored - meant).mean() < 4
        noise = np.diff(stored, axis=0).std() / np.diff(meant, axis=0).std()
        assert 0.8 < noise < 1.2


@pytest.mark.parametrize("kind", SETS)
def test_the_same_call_writes_the_same_bytes(tmp_path, kind):
    small, again = (
        make_demo(tmp_path / str(workers), 24, 8, workers=workers, kind=kind) for workers in (1, 2)
    )
    for first, second in zip(small, again, strict=True):
        for one, other in zip(read_manifest(first), read_manifest(second), strict=True):
            assert one.labels == other.labels
            with open(one.path, "rb") as a, open(other.path, "rb") as b:
                assert a.read() == b.read()


def test_good_files_are_kept_and_bad_ones_written_again(tmp_path):
    def make(seed, kind="digits"):
        return make_demo(tmp_path, clips=6, test_clips=2, seed=seed, workers=1, kind=kind)

    make(0)
    whole = {path: path.read_bytes() for path in files(tmp_path)}
    before = files(tmp_path / "train")

    truncated, missing, empty, text = sorted(before)[:4]
    truncated.write_bytes(whole[truncated][:-200])
    missing.unlink()
    missing.with_name(missing.name + ".part").write_bytes(whole[missing][:500])
    empty.write_bytes(b"")
    text.write_text("not a video")
    make(0)
    after = files(tmp_path / "train")
    assert {path for path in before if after[path] == before[path]} == set(sorted(before)[4:])
    assert {path: path.read_bytes() for path in before} == {path: whole[path] for path in before}
    assert set(after) == set(before)

    make(1)  # other settings: every file is written again
    assert all(path.read_bytes() != whole[path] for path in before)
    make(0, "shapes")
    assert all(path.read_bytes() != whole[path] for path in before)
    make(0)
    assert {path: path.read_bytes() for path in before} == {path: whole[path] for path in before}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"codec": "av1"}, "found codec 'av1'.*expected one of vp9, h264"),
        ({"kind": "letters"}, "--kind: found 'letters', expected one of digits, shapes"),
        ({"clips": 0}, "found 0 training and 8 test clips, expected at least 1"),
        ({"seed": -1}, "found seed -1, expected 0"),
    ],
)
def test_impossible_settings_are_rejected(tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        make_demo(tmp_path, **{"clips": 8, "test_clips": 8, **settings})
    assert not files(tmp_path)


def test_a_file_in_place_of_the_folder_is_rejected(tmp_path):
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(UserError, match="where no folder can be made"):
        make_demo(tmp_path / "data", clips=8, test_clips=8)
