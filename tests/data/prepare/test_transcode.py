"""Copies have the same frames, times and order; they are smaller, with frequent key frames."""

import os
import re
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import PictureType

from tests.data.prepare.test_inspect import write_timed
from tests.data.prepare.test_rotation import QUARTERS
from tests.helpers import damaged, videos
from vjepa_fast.cli import main
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.ffmpeg import frame_times, open_video
from vjepa_fast.data.manifest.entry import Seek
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.manifest.location import entry_url
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.prepare import transcode
from vjepa_fast.data.prepare.encode import CODECS, comment_of
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.transcode import transcode_manifest
from vjepa_fast.errors import UserError


@pytest.fixture
def originals(tmp_path):
    """A large VP9 video, a variable-rate one, one in a sub-folder: labelled 2, 1, 0."""
    folder = tmp_path / "originals"
    (folder / "sub").mkdir(parents=True)
    pictures = [videos.numbered(i, 120, 160) for i in range(40)]
    times = np.cumsum(np.where(np.arange(40) < 20, 0.033, 0.1))
    paths = [
        videos.write_video(folder / "a.webm", pictures, "vp9", gop=40),
        write_timed(folder / "v.mp4", times),
        videos.write_video(folder / "sub" / "a.avi", pictures[:25], "mpeg4"),
    ]
    entries = [replace(probe_video(path), labels={"kind": 2 - i}) for i, path in enumerate(paths)]
    write_manifest(folder / "m.csv", entries)
    return folder / "m.csv"


@pytest.fixture
def in_process(monkeypatch):
    """Copies made in this process, one after the other."""

    def scan(files, workers, copy, seconds, chunk_size, modules):
        yield from map(copy, files)

    monkeypatch.setattr(transcode, "scan", scan)


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("vp9", "webm")])
def test_copies_show_the_same_frames(originals, tmp_path, codec, suffix):
    target, rejected = transcode_manifest(originals, tmp_path / "copies", codec, 60, 5, workers=1)
    assert not rejected
    before, after = read_manifest(originals), read_manifest(target)
    names = ["a.webm", "v.mp4", "sub/a.avi"]
    names = [name if name.endswith(suffix) else f"{name}.{suffix}" for name in names]
    assert [entry.path for entry in after] == [str(tmp_path / "copies" / name) for name in names]
    assert [(e.width, e.height) for e in after] == [(80, 60), (64, 48), (80, 60)]
    for old, new in zip(before, after, strict=True):
        assert (new.frames, new.labels, new.codec) == (old.frames, old.labels, codec)
        assert new.gop <= 5 and new.vfr == old.vfr
        times = frame_times(entry_url(old), old.frames)
        if times is not None:
            assert frame_times(entry_url(new), new.frames) == pytest.approx(times, abs=0.0021)
        plan = ClipPlan(0, new.path, 0, np.arange(new.frames), (0.0, 0.0, 1.0, 1.0), False, {})
        shown = videos.read_numbers(decode_clip(plan, new, 48).numpy())
        assert shown == list(range(new.frames))


def test_an_interrupted_call_resumes_and_keeps_what_is_made(originals, tmp_path, monkeypatch):
    copies = tmp_path / "copies"
    real = transcode.scan

    def one_only(files, workers, copy, seconds, chunk_size, modules):
        yield copy(next(iter(files)))
        (copies / "v.mp4.part").touch()  # of a process that was killed
        raise KeyboardInterrupt

    monkeypatch.setattr(transcode, "scan", one_only)
    with pytest.raises(KeyboardInterrupt, match="after 1 of 3 videos"):
        transcode_manifest(originals, copies, "h264", 60, 5)
    assert not (copies / "m.csv").exists() and not list(copies.rglob("*.part"))
    kept = (copies / "a.webm.mp4").stat().st_mtime_ns
    monkeypatch.setattr(transcode, "scan", real)
    target, _ = transcode_manifest(originals, copies, "h264", 60, 5, workers=1)
    assert len(read_manifest(target)) == 3
    assert (copies / "a.webm.mp4").stat().st_mtime_ns == kept
    transcode_manifest(originals, copies, "h264", 40, 5, workers=1)  # other settings: made anew
    assert read_manifest(target)[0].height == 40


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("gop", [1, 5, 8])
def test_most_frames_of_an_h264_copy_can_be_skipped(originals, tmp_path, gop):
    """Of four frames three are such that no other frame refers to them."""
    target, _ = transcode_manifest(originals, tmp_path / "copies", "h264", 60, gop)
    first, *others = read_manifest(target)
    assert [entry.seek for entry in (first, *others)] == [Seek.BY_STAMP] * 3
    assert first.gop == gop
    with open_video(entry_url(first)) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        left = [PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    intervals = -(-first.frames // gop)
    # 5: I b b b P, 8: I b b b P b b P
    assert left == {1: ["I"], 5: ["I", "P"], 8: ["I", "P", "P"]}[gop] * intervals


@pytest.mark.usefixtures("in_process")
def test_copies_of_an_older_version_are_made_anew(originals, tmp_path, monkeypatch):
    copies = tmp_path / "copies"
    older = "vjepa_fast transcode h264 60 px, key frame every 5, upright, BT.601"
    with monkeypatch.context() as patched:
        patched.setattr(transcode.Settings, "stamp", older)
        patched.setitem(CODECS["h264"][2], "bf", "0")
        transcode_manifest(originals, copies, "h264", 60, 5)
    assert comment_of(copies / "v.mp4").startswith(older)
    transcode_manifest(originals, copies, "h264", 60, 5)
    assert not comment_of(copies / "v.mp4").startswith(older)
    with open_video(str(copies / "v.mp4")) as container:
        assert "B" in {PictureType(frame.pict_type).name for frame in container.decode(video=0)}


def test_a_damaged_video_is_left_out_with_its_reason(originals, tmp_path):
    path = originals.parent / "a.webm"
    path.write_bytes(b"\x1aE\xdf\xa3" + bytes(range(256)) * 4)
    first, *others = read_manifest(originals)
    pinned = replace(damaged.pinned(first, path), labels=first.labels)
    write_manifest(originals, [pinned, *others])
    target, rejected = transcode_manifest(originals, tmp_path / "copies", "h264", 60, 5, workers=1)
    [(name, reason)] = rejected
    assert name == str(path) and reason.startswith("damaged (FFmpeg: ")
    assert [entry.labels["kind"] for entry in read_manifest(target)] == [1, 0]
    assert (tmp_path / "copies" / "m.csv.rejected.csv").read_text().count(str(path)) == 1
    assert not list((tmp_path / "copies").rglob("*.part"))


def test_the_command_line_measures_the_decoding(originals, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "copies"), "--short-side", "60", "--gop", "4"]
    assert main(["transcode", str(originals), *arguments, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "3 videos" in printed and "0 videos rejected" in printed
    assert "ms before" in printed and "mean of 3 videos" in printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codec": "hevc"}, "--codec: found 'hevc', expected one of h264, vp9"),
        ({"short_side": 99}, "--short-side: found 99, expected an even number"),
        ({"output": "originals"}, "--output: found .*, which holds the manifest itself"),
        ({"output": "originals/a.webm"}, "--output: found that .* cannot be written"),
    ],
)
def test_bad_settings_are_rejected(originals, tmp_path, settings, message):
    settings = {"output": "copies", "workers": 1} | settings
    output = tmp_path / settings.pop("output")
    with pytest.raises(UserError, match=message):
        transcode_manifest(originals, output, **settings)


@pytest.mark.usefixtures("in_process")
def test_originals_outside_the_manifests_folder_are_kept(originals, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    rows = originals.read_text().splitlines()
    rows[1:] = [f"../originals/{row}" for row in rows[1:]]
    (lists / "m.csv").write_text("\n".join(rows) + "\n")
    before = {path: path.read_bytes() for path in originals.parent.rglob("*.*")}
    output = tmp_path / "small"
    target, rejected = transcode_manifest(lists / "m.csv", output, "h264", 32, 5, workers=1)
    assert not rejected
    assert {path: path.read_bytes() for path in originals.parent.rglob("*.*")} == before
    folder = (output / originals.parent.relative_to("/")).resolve()
    names = ["a.webm.mp4", "v.mp4", "sub/a.avi.mp4"]
    assert [entry.path for entry in read_manifest(target)] == [str(folder / name) for name in names]


@pytest.mark.parametrize(
    ("manifest", "output", "message"),
    [
        ("link/m.csv", "originals", "which holds the manifest itself"),
        ("originals/m.csv", "link", "which holds the manifest itself"),
        ("originals/m.csv", "originals/../originals", "which holds the manifest itself"),
        ("other/m.csv", "originals", "which holds the manifest itself"),  # a link to that file
        ("up.csv", "originals", r"the copy of .*/v.mp4 would overwrite .*/originals/v.mp4, a vid"),
        ("up.csv", "link", r"the copy of .*/v.mp4 would overwrite .*/originals/v.mp4, a video"),
        ("originals/m.csv", "linked", r"would be written to .*/originals/sub/.*, expected a path"),
        ("originals/m.csv", "parts", r"would overwrite .*/originals/v.mp4, a video of the"),
    ],
)
def test_no_original_is_ever_overwritten(originals, tmp_path, manifest, output, message):
    (tmp_path / "link").symlink_to("originals")
    for folder in ("other", "linked", "parts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "other" / "m.csv").symlink_to(originals)
    (tmp_path / "linked" / "sub").symlink_to(originals.parent / "sub")
    (tmp_path / "parts" / "v.mp4.part").symlink_to(originals.parent / "v.mp4")
    entries = read_manifest(originals)
    copied = tmp_path / "v.mp4"
    copied.write_bytes((originals.parent / "v.mp4").read_bytes())
    write_manifest(
        tmp_path / "up.csv", [damaged.pinned(entries[1], copied), replace(entries[1], labels={})]
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(UserError, match=message):
        transcode_manifest(tmp_path / manifest, tmp_path / output, "h264", 32, 5, workers=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.usefixtures("in_process")
def test_copies_of_linked_videos_keep_the_names_of_the_links(originals, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    video = originals.parent / "v.mp4"
    (originals.parent / "w.mp4").symlink_to(video.rename(store / "v"))
    video.symlink_to(store / "v")
    entry = read_manifest(originals)[1]
    write_manifest(originals, [entry, replace(entry, path=str(video.with_name("w.mp4")))])
    target, _ = transcode_manifest(originals, tmp_path / "copies", "h264", 32, 5, workers=1)
    assert [row.split(",")[0] for row in target.read_text().split()[1:]] == ["v.mp4", "w.mp4"]


def flipped(path):
    """Some bits flipped in the packet of a frame in the middle."""
    with open_video(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        first, size = packets[15].pos, packets[15].size
    data = bytearray(path.read_bytes())
    for offset in np.random.default_rng(0).integers(first + 8, first + size, 5):
        data[offset] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
@pytest.mark.usefixtures("in_process")
def test_a_video_with_corrupt_frames_gets_no_clean_copy(tmp_path, codec):
    paths = [videos.write_numbered(tmp_path, codec, 40, name) for name in ("bad", "good")]
    entry = probe_video(paths[0])
    flipped(paths[0])
    write_manifest(tmp_path / "m.csv", [damaged.pinned(entry, paths[0]), probe_video(paths[1])])
    copies = tmp_path / "copies"
    target, rejected = transcode_manifest(tmp_path / "m.csv", copies, "h264", 32, 5, workers=1)
    [(path, reason)] = rejected
    assert path == str(paths[0]) and re.fullmatch(r"damaged \(frame \d+ is corrupt\)", reason)
    assert len(read_manifest(target)) == 1
    assert not list(copies.rglob("bad*"))


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.usefixtures("in_process")
def test_a_video_that_changes_its_size_gets_no_copy(tmp_path, codec):
    path = damaged.write_sizes(tmp_path / f"sizes.{videos.CODECS[codec][1]}", codec)
    good = videos.write_numbered(tmp_path, codec, 20)
    entry = replace(probe_video(good), frames=40)
    write_manifest(tmp_path / "m.csv", [damaged.pinned(entry, path), probe_video(good)])
    copies = tmp_path / "copies"
    target, rejected = transcode_manifest(tmp_path / "m.csv", copies, "h264", 32, 5, workers=1)
    assert rejected == [(str(path), "changes its size (64x48, from frame 20 on 128x96)")]
    assert len(read_manifest(target)) == 1


@pytest.mark.usefixtures("in_process")
def test_a_source_that_is_not_the_one_indexed_is_rejected(originals, tmp_path):
    folder = originals.parent
    os.replace(folder / "sub" / "a.avi", folder / "a.webm")  # another size
    status = (folder / "v.mp4").stat()
    os.utime(folder / "v.mp4", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    good = videos.write_numbered(folder, "h264", 20)
    entries = [replace(probe_video(good), labels={"kind": 3}), *read_manifest(originals)]
    write_manifest(originals, entries)
    copies = tmp_path / "copies"
    target, rejected = transcode_manifest(originals, copies, "h264", 32, 5, workers=1)
    assert {Path(path).name: reason for path, reason in rejected} == {
        "a.webm": "changed since it was indexed",
        "v.mp4": "changed since it was indexed",
        "a.avi": "missing",
    }
    assert [entry.labels for entry in read_manifest(target)] == [{"kind": 3}]


@pytest.mark.usefixtures("in_process")
def test_originals_that_do_not_decode_are_not_timed(originals, tmp_path, capsys):
    arguments = ["transcode", str(originals), "--output", str(tmp_path / "copies")]
    arguments += ["--short-side", "32"]
    transcode_manifest(originals, tmp_path / "copies", "h264", 32)
    for gone, name in enumerate(["v.mp4", "a.webm", "sub/a.avi"], start=1):
        (originals.parent / name).unlink()  # its copy is kept
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert "3 videos" in printed and "0 videos rejected" in printed
        assert f"not timed: {gone} of 3 videos" in printed
        assert (f"mean of {3 - gone} videos" in printed) == (gone < 3)
        assert ("ms before" in printed) == (gone < 3)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.usefixtures("in_process")
def test_a_file_that_is_no_copy_is_never_replaced(originals, tmp_path, text):
    other = tmp_path / "copies" / "v.mp4"
    other.parent.mkdir()
    other.write_bytes(b"no video" if text else (originals.parent / "v.mp4").read_bytes())
    before = other.read_bytes()
    target, rejected = transcode_manifest(originals, other.parent, "h264", 32, 5, workers=1)
    reason = f"another file is in the way ({other})"
    assert rejected == [(str(originals.parent / "v.mp4"), reason)]
    assert other.read_bytes() == before
    assert len(read_manifest(target)) == 2


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.usefixtures("in_process")
def test_copies_stand_upright(tmp_path, degrees):
    upright = [videos.numbered(i) for i in range(20)]
    stored = [np.rot90(picture, degrees // 90).copy() for picture in upright]
    path = videos.write_video(tmp_path / "v.mp4", stored, "h264")
    path.write_bytes(videos.with_matrix(path.read_bytes(), QUARTERS[degrees]))
    write_manifest(tmp_path / "m.csv", [probe_video(path)])
    target, _ = transcode_manifest(tmp_path / "m.csv", tmp_path / "copies", "h264", 48, 5, 1)
    [copy] = read_manifest(target)
    assert (copy.rotation, copy.width, copy.height, copy.frames) == (0, 64, 48, 20)
    plan = ClipPlan(0, copy.path, 0, np.arange(20), (0.0, 0.0, 1.0, 1.0), False, {})
    assert videos.read_numbers(decode_clip(plan, copy, 48).numpy()) == list(range(20))
    assert frame_times(entry_url(copy), copy.frames) == pytest.approx(np.arange(20) / 25, abs=0.001)


@pytest.mark.usefixtures("in_process")
def test_a_video_of_which_no_frame_decodes_is_rejected_in_words(tmp_path):
    pictures = [videos.numbered(i) for i in range(40)]
    path = videos.write_video(tmp_path / "v.mp4", pictures, "h264", faststart=True)
    good = videos.write_numbered(tmp_path, "h264", 20)
    entry = probe_video(path)
    zeroed = damaged._DAMAGE["zeroed"](bytearray(path.read_bytes()), np.random.default_rng(14))
    path.write_bytes(zeroed)
    write_manifest(tmp_path / "m.csv", [damaged.pinned(entry, path), probe_video(good)])
    copies = tmp_path / "copies"
    target, rejected = transcode_manifest(tmp_path / "m.csv", copies, "h264", 32, 5, workers=1)
    assert rejected == [(str(path), "damaged (no frame can be decoded)")]
    assert len(read_manifest(target)) == 1


@pytest.mark.usefixtures("in_process")
def test_a_copy_that_lacks_frames_tells_of_a_damaged_source(tmp_path):
    whole, short = (videos.write_numbered(tmp_path, "h264", n, f"v{n}") for n in (30, 20))
    entry = probe_video(whole)
    os.replace(short, whole)
    good = videos.write_numbered(tmp_path, "h264", 20)
    write_manifest(tmp_path / "m.csv", [damaged.pinned(entry, whole), probe_video(good)])
    copies = tmp_path / "copies"
    for _ in range(2):
        target, rejected = transcode_manifest(tmp_path / "m.csv", copies, "h264", 32, 5, workers=1)
        assert rejected == [(str(whole), "damaged (20 of 30 frames can be decoded)")]
    assert len(read_manifest(target)) == 1
    assert not list(copies.rglob("v30*"))


@pytest.mark.usefixtures("in_process")
def test_a_source_that_may_not_be_read_is_reported_as_such():
    with tempfile.TemporaryDirectory() as name, _as_nobody(Path(name)) as folder:
        paths = [videos.write_numbered(folder, "h264", 20, name) for name in ("secret", "open")]
        write_manifest(folder / "m.csv", [probe_video(path) for path in paths])
        paths[0].chmod(0)
        target, rejected = transcode_manifest(folder / "m.csv", folder / "copies", "h264", 32, 5, 1)
        assert rejected == [(str(paths[0]), "unreadable (Permission denied)")]
        assert len(read_manifest(target)) == 1


@contextmanager
def _as_nobody(folder):
    """The folder, given to a user whom permissions bind, where this one is root."""
    user = os.geteuid()
    if user != 0:
        yield folder
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
