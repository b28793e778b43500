"""`vjepa-fast index`: usable files are described rightly, the others refused with a reason."""

import re

import pytest
import videos

from vjepa_fast.data.index import index_command, index_directory
from vjepa_fast.data.manifest import read_manifest, write_manifest
from vjepa_fast.data.probe import BadVideo, probe_video
from vjepa_fast.errors import UserError


def cut(path, fraction):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def test_bad_files_are_reported_with_their_reason_and_left_out(tmp_path, capsys):
    good = videos.write_numbered(tmp_path, "vp9", 30, "good")
    (tmp_path / "deeper").mkdir()
    also_good = videos.write_numbered(tmp_path / "deeper", "h264", 20, "GOOD")
    also_good = also_good.rename(also_good.with_suffix(".MP4"))
    cut(videos.write_numbered(tmp_path, "vp9", 30, "truncated"), 0.5)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.webm").write_text("not a vidéo\n" * 1000)
    videos.write_audio(tmp_path / "audio.webm")
    videos.write_numbered(tmp_path, "vp9", 1, "one_frame")
    (tmp_path / "noise.mkv").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "missing.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no video extension: not looked at")

    output = tmp_path / "manifest.csv"
    assert index_command(tmp_path, output, workers=2) == 0

    entries = read_manifest(output)
    assert [entry.path for entry in entries] == [str(also_good), str(good)]
    found = [(e.frames, e.fps, e.width, e.height, e.codec, e.labels) for e in entries]
    assert found == [(20, 25.0, 64, 48, "h264", {}), (30, 25.0, 64, 48, "vp9", {})]
    assert entries[1].size_bytes == good.stat().st_size
    printed = capsys.readouterr().out
    reasons = dict(re.findall(r"refused \S*/(\w+)\.\w+: (.*)", printed))
    expected = {
        "truncated": "truncated",
        "empty": "empty (0 bytes)",
        "text": "a text file",
        "audio": "audio only",
        "one_frame": "only 1 frame, at least 2",
        "noise": "not a video",
        "missing": "unreadable (No such file",
    }
    assert reasons.keys() == expected.keys()
    assert all(reasons[name].startswith(reason) for name, reason in expected.items())
    assert "2 videos, 50 frames; 7 files refused" in printed


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.85])
@pytest.mark.parametrize(
    ("codec", "extension", "faststart"),
    [
        ("vp9", "webm", False),
        ("vp8", "webm", False),
        ("h264", "mp4", False),
        ("h264", "mp4", True),
        ("h264", "mkv", False),
        ("mjpeg", "avi", False),
        ("mpeg4", "avi", False),
    ],
)
def test_a_truncated_file_is_refused(tmp_path, codec, extension, faststart, fraction):
    path = tmp_path / f"video.{extension}"
    pictures = [videos.numbered(i) for i in range(40)]
    videos.write_video(path, pictures, codec, faststart=faststart)
    assert probe_video(path).frames == 40
    with pytest.raises(BadVideo, match=r"truncated|no video stream"):
        probe_video(cut(path, fraction))


def test_vp8_reference_frames_that_are_never_shown_are_not_counted(tmp_path):
    path = tmp_path / "video.webm"
    options = {"auto-alt-ref": "1", "lag-in-frames": "25", "cpu-used": "4"}
    pictures = (videos.numbered(i) for i in range(60))
    videos.write_video(path, pictures, "vp8", gop=60, options=options)
    assert probe_video(path).frames == 60


def test_nothing_usable_is_an_error_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "empty.mp4").touch()
    output = tmp_path / "manifest.csv"
    with pytest.raises(UserError, match="1 unusable files and no usable video"):
        index_command(tmp_path, output, workers=1)
    assert "empty.mp4: empty" in capsys.readouterr().out
    assert not output.exists()


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(UserError, match="found no video file"):
        index_directory(tmp_path, tmp_path / "manifest.csv")
    with pytest.raises(UserError, match="found no folder"):
        index_directory(tmp_path / "nowhere", tmp_path / "manifest.csv")


def test_indexing_again_keeps_the_labels(tmp_path):
    path = videos.write_numbered(tmp_path, "mjpeg", 5, "a")
    manifest = videos.manifest_of(tmp_path, [path])
    (before,) = read_manifest(manifest)
    videos.write_numbered(tmp_path, "mjpeg", 7, "a")
    (after,), _ = index_directory(tmp_path, manifest)
    assert (before.frames, after.frames) == (5, 7)
    assert read_manifest(manifest) == [after]
    assert after.labels == {"place": 0}

    videos.write_numbered(tmp_path, "mjpeg", 5, "unlabelled")
    with pytest.raises(UserError, match="1 videos without labels"):
        index_directory(tmp_path, manifest)
    assert read_manifest(manifest) == [after]

    write_manifest(manifest, [probe_video(path)])
    assert len(index_directory(tmp_path, manifest)[0]) == 2
