"""`vjepa-fast index`: usable files are described correctly, the others rejected with a reason."""

import dataclasses
import os
import re
import tarfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers import damaged, videos
from vjepa_fast.cli import main
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.ffmpeg import BadVideo
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.prepare import index
from vjepa_fast.data.prepare.index import index_directory
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.scan import scan
from vjepa_fast.data.prepare.scan_journal import ScannedFile
from vjepa_fast.errors import UserError

DAMAGED = (damaged.__name__,)  # imported before the time limit of a file starts


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
    assert main(["index", str(tmp_path), "--output", str(output), "--workers", "2"]) == 0

    entries = read_manifest(output)
    assert [entry.path for entry in entries] == [str(also_good), str(good)]
    found = [(e.frames, e.fps, e.width, e.height, e.codec, e.labels) for e in entries]
    assert found == [(20, 25.0, 64, 48, "h264", {}), (30, 25.0, 64, 48, "vp9", {})]
    assert entries[1].size_bytes == good.stat().st_size
    printed = capsys.readouterr().out
    reasons = dict(re.findall(r"rejected \S*/(\w+)\.\w+: (.*)", printed))
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
    assert "2 videos, 50 frames; 7 files rejected" in printed


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
def test_a_truncated_file_is_rejected(tmp_path, codec, extension, faststart, fraction):
    path = tmp_path / f"video.{extension}"
    pictures = [videos.numbered(i) for i in range(40)]
    videos.write_video(path, pictures, codec, faststart=faststart)
    assert probe_video(path).frames == 40
    with pytest.raises(BadVideo, match=r"truncated|no video stream"):
        probe_video(cut(path, fraction))


def test_an_avi_may_have_empty_chunks_but_not_lack_frames(tmp_path):
    """Where a frame is shown for longer, an AVI file has empty chunks, and counts them."""
    path = tmp_path / "video.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=64, height=48)
        stream.codec_context.time_base = Fraction(1, 25)
        for i, position in enumerate([*range(0, 30, 3), *range(30, 60)]):
            frame = av.VideoFrame.from_ndarray(videos.numbered(i), format="rgb24")
            frame.pts, frame.time_base = position, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    entry = probe_video(path)
    assert (entry.frames, entry.vfr) == (40, True)
    plan = ClipPlan(0, entry.path, 0, np.arange(40), (0.0, 0.0, 1.0, 1.0), False, {})
    assert videos.read_numbers(decode_clip(plan, entry, 48).numpy()) == list(range(40))
    with pytest.raises(BadVideo, match="truncated"):
        probe_video(cut(path, 0.5))


def test_nothing_usable_is_an_error_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "empty.mp4").touch()
    output = tmp_path / "manifest.csv"
    assert main(["index", str(tmp_path), "--output", str(output), "--workers", "1"]) == 2
    printed = capsys.readouterr()
    assert "1 unusable files and no usable video" in printed.err
    assert "empty.mp4: empty" in printed.out
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
    assert after.labels == {"index": 0}

    videos.write_numbered(tmp_path, "mjpeg", 5, "unlabelled")
    with pytest.raises(UserError, match="1 videos without labels"):
        index_directory(tmp_path, manifest)
    assert read_manifest(manifest) == [after]

    write_manifest(manifest, [probe_video(path)])
    assert len(index_directory(tmp_path, manifest)[0]) == 2


def test_indexing_again_keeps_names_of_classes_and_values(tmp_path):
    path = videos.write_numbered(tmp_path, "mjpeg", 5, "a")
    entry = dataclasses.replace(probe_video(path), labels={"k": 1}, values={"ef": 0.25})
    write_manifest(tmp_path / "m.csv", [entry], {"k": ["dog", "cat"]})
    assert ",cat," in (tmp_path / "m.csv").read_text()
    for deep in (False, True):
        index_directory(tmp_path, tmp_path / "m.csv", deep=deep)
        assert read_manifest(tmp_path / "m.csv") == [entry]
        assert ",cat," in (tmp_path / "m.csv").read_text()


def test_a_file_that_ends_or_hangs_its_process_costs_only_itself():
    names = [f"crash{i}" if i in (3, 12) else f"fine{i}" for i in range(20)]
    names[15] = "hang"
    files = [ScannedFile(name, 1, 0) for name in names]
    results = list(scan(files, 2, damaged.crash_or_hang, 3, modules=DAMAGED))
    assert sorted(result.file.path for result in results) == sorted(names)
    for result in results:
        fine = result.file.path.startswith("fine")
        assert result.reason == ("probed" if fine else "damaged (FFmpeg crashes or hangs)")


def test_crashes_and_hangs_are_rejected_files_of_an_index(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a", "b", "crash", "hang"):
        videos.write_numbered(folder, "mjpeg", 5, name)
    probe = partial(scan, probe=damaged.crash_or_probe, seconds=3, modules=DAMAGED)
    monkeypatch.setattr(index, "scan", lambda files, workers, _: probe(files, workers))
    entries, rejected = index_directory(folder, tmp_path / "m.csv", workers=2)
    assert [Path(entry.path).stem for entry in entries] == ["a", "b"]
    assert [Path(path).stem for path, _ in rejected] == ["crash", "hang"]
    assert {reason for _, reason in rejected} == {"damaged (FFmpeg crashes or hangs)"}
    monkeypatch.setattr(index, "scan", lambda *_: pytest.fail("scanned again"))
    assert index_directory(folder, tmp_path / "m.csv") == (entries, rejected)


def test_a_process_that_was_killed_once_costs_no_file(tmp_path):
    files = [ScannedFile(str(tmp_path / name), 1, 0) for name in ("once", "fine")]
    results = list(scan(files, 1, damaged.crash_once))
    assert {Path(result.file.path).name for result in results} == {"once", "fine"}
    assert {result.reason for result in results} == {"probed"}


def test_a_scan_that_is_ended_waits_for_nobody():
    files = [ScannedFile("fine", 1, 0), ScannedFile("hang", 1, 0)]
    found = scan(files, 1, damaged.crash_or_hang, 900, 1, DAMAGED)
    assert next(found).reason == "probed"
    start = time.monotonic()
    found.close()  # as an interrupt does
    assert time.monotonic() - start < 450  # half of the limit that the hanging file has


def test_unchanged_files_are_not_opened_again(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    paths = [videos.write_numbered(folder, "mjpeg", 5, name) for name in "abc"]
    (folder / "bad.mp4").write_bytes(bytes(range(256)))
    output = tmp_path / "m.csv"
    first, rejected = index_directory(folder, output)
    for path in [paths[0], folder / "bad.mp4"]:  # other bytes, but the same size and time
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    paths[1].unlink()
    videos.write_numbered(folder, "mjpeg", 7, "c")
    again, rejected_again = index_directory(folder, output)
    assert [entry.frames for entry in again] == [5, 7]
    assert again[0] == first[0] and rejected_again == rejected
    assert rejected[0][1].startswith("not a video")
    assert read_manifest(output) == again


def test_an_interrupted_scan_resumes_where_it_stopped(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    paths = [videos.write_numbered(folder, "mjpeg", 5, name) for name in "abc"]
    (folder / "empty.mp4").touch()
    output = tmp_path / "m.csv"

    def two_only(files, workers, probe):
        yield from (probe(file) for file in files[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "scan", two_only)
    with pytest.raises(KeyboardInterrupt, match="after 2 of 4 files"):
        index_directory(folder, output)
    journal = tmp_path / "m.csv.partial.jsonl"
    with journal.open("a") as file:
        file.write('{"deep": false, "fil')  # the power went
    monkeypatch.undo()
    for path in paths[:2]:
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    entries, rejected = index_directory(folder, output)
    assert [entry.path for entry in entries] == [str(path) for path in paths]
    assert [reason for _, reason in rejected] == ["empty (0 bytes)"]
    assert not journal.exists()


def test_deep_decodes_what_demuxing_does_not_see(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    good = videos.write_numbered(folder, "h264", 60, "good")
    bad = videos.write_numbered(folder, "h264", 96, "bad")
    with av.open(str(bad)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(bad.read_bytes())
    for position, size in packets[61:70]:  # not at the start, in the middle or at the end
        data[position + 8 : position + size] = bytes(size - 8)
    bad.write_bytes(data)
    entries, rejected = index_directory(folder, tmp_path / "m.csv", deep=True)
    assert [entry.path for entry in entries] == [str(good)]
    assert rejected[0][0] == str(bad) and rejected[0][1].startswith("damaged")
    shallow, _ = index_directory(folder, tmp_path / "shallow.csv")
    assert len(shallow) == 2


def test_videos_in_tar_archives_are_indexed_where_they_are(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    video = videos.write_numbered(tmp_path, "vp9", 20)
    with tarfile.open(folder / "0.tar", "w") as tar:
        tar.add(video, "one.webm")
        tar.add(__file__, "one.txt")
        tar.add(video, "deep/two.webm")
        tar.addfile(tarfile.TarInfo("empty.mp4"))
    (folder / "broken.tar").write_bytes((folder / "0.tar").read_bytes()[:700])
    entries, rejected = index_directory(folder, tmp_path / "m.csv")
    assert [entry.path for entry in entries] == [
        f"{folder}/0.tar::deep/two.webm",
        f"{folder}/0.tar::one.webm",
    ]
    assert [entry.frames for entry in entries] == [20, 20]
    assert entries[1].offset % 512 == 0 and entries[1].size_bytes == video.stat().st_size
    assert [(name.rpartition("/")[2], reason.split(" (")[0]) for name, reason in rejected] == [
        ("0.tar::empty.mp4", "empty"),
        ("broken.tar", "unreadable tar archive"),
    ]
    assert index_directory(folder, tmp_path / "m.csv") == (entries, rejected)


@pytest.mark.parametrize("name", ["folder", "file/m.csv"])
def test_an_output_that_cannot_be_written_is_rejected_before_the_scan(tmp_path, monkeypatch, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.mp4").touch()
    (tmp_path / "file").touch()
    monkeypatch.setattr(index, "scan", lambda *_: pytest.fail("scanned"))
    with pytest.raises(UserError, match=r"--output: found that .* cannot be written"):
        index_directory(folder, tmp_path / name)


def test_the_command_line(tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    videos.write_numbered(folder, "mjpeg", 5, "a")
    output = tmp_path / "m.csv"
    assert main(["index", str(folder), "--output", str(output), "--workers", "1", "--deep"]) == 0
    assert "1 videos, 5 frames; 0 files rejected" in capsys.readouterr().out
    assert main(["index", str(tmp_path / "nowhere"), "--output", str(output)]) == 2
    assert capsys.readouterr().err.endswith(
        ": found no folder, expected a folder with videos; correct the path\n"
    )


@pytest.mark.parametrize("extension", ["mp4", "webm"])
def test_a_title_that_is_no_utf8_does_not_end_the_scan(tmp_path, extension):
    path = videos.write_numbered(tmp_path, "h264" if extension == "mp4" else "vp9", 10)
    with av.open(str(path)) as source, av.open(str(tmp_path / f"t.{extension}"), "w") as target:
        target.metadata["title"] = "TITLE-E"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = (tmp_path / f"t.{extension}").read_bytes()
    assert b"TITLE-E" in data
    (tmp_path / f"t.{extension}").write_bytes(data.replace(b"TITLE-E", b"TITLE-\xe9"))
    path.unlink()
    entries, rejected = index_directory(tmp_path, tmp_path / "m.csv", workers=1)
    assert [entry.frames for entry in entries] == [10] and not rejected


def test_other_endings_are_rejected(tmp_path):
    videos.write_numbered(tmp_path, "vp9", 12, "a")
    with pytest.raises(UserError, match=r"expected a name that ends in \.csv or \.parquet"):
        index_directory(tmp_path, tmp_path / "manifest.txt", workers=1)


def test_links_to_folders_are_followed_once(tmp_path):
    folder, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    videos.write_numbered(folder, "vp9", 12, "a")
    videos.write_numbered(elsewhere, "vp9", 12, "b")
    (folder / "more").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(folder)  # a circle
    entries, rejected = index_directory(folder, tmp_path / "manifest.csv", workers=1)
    assert [os.path.basename(entry.path) for entry in entries] == ["a.webm", "b.webm"]
    assert rejected == []


def test_a_deep_scan_of_a_labelled_manifest_with_rejected_files(tmp_path):
    videos.write_numbered(tmp_path, "vp9", 12, "a")
    (tmp_path / "empty.mp4").touch()
    manifest = tmp_path / "manifest.csv"
    entries, _ = index_directory(tmp_path, manifest, workers=1)
    write_manifest(manifest, [dataclasses.replace(entries[0], labels={"digit": 3})])
    entries, rejected = index_directory(tmp_path, manifest, workers=1, deep=True)
    assert entries[0].labels == {"digit": 3}
    assert len(rejected) == 1
