"""Links, repeated names and odd members of tar archives: resolved, or refused with their reason."""

import io
import logging
import os
import subprocess
import tarfile

import numpy as np
import pytest

from tests.helpers import videos
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.prepare.index import index_directory
from vjepa_fast.data.prepare.listing.archive import members
from vjepa_fast.data.prepare.listing.folder import list_folder


def link(tar, name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    tar.addfile(info)


def shown_by(entry):
    frames = np.arange(entry.frames)
    plan = ClipPlan(0, entry.path, 0, frames, (0.0, 0.0, 1.0, 1.0), False, {})
    return videos.read_numbers(decode_clip(plan, entry, 48).numpy())


def numbered_from(path, first, frames=6):
    return videos.write_video(path, (videos.numbered(first + i) for i in range(frames)), "vp9")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "archives").mkdir()
    return tmp_path / "archives"


def test_links_show_what_they_lead_to(folder, tmp_path):
    video = numbered_from(tmp_path / "v.webm", 50)
    with tarfile.open(folder / "a.tar", "w") as tar:
        link(tar, "./before.webm", "deep/v.webm")  # to what comes later
        tar.add(video, "./deep/v.webm")
        link(tar, "deep/hard.webm", "./deep/v.webm", tarfile.LNKTYPE)
        link(tar, "deep/soft.webm", "v.webm")
        link(tar, "other/up.webm", "../deep/hard.webm")
        link(tar, "chain.webm", "other/up.webm")
        link(tar, "folder", "deep")
        link(tar, "through.webm", "folder/v.webm")
        link(tar, "unnamed", "deep/v.webm")
        link(tar, "hard_to_soft.webm", "deep/soft.webm", tarfile.LNKTYPE)
    entries, rejected = index_directory(folder, tmp_path / "m.csv", workers=1)
    assert {entry.path.partition("::")[2] for entry in entries} == {
        "./before.webm",
        "./deep/v.webm",
        "deep/hard.webm",
        "deep/soft.webm",
        "other/up.webm",
        "chain.webm",
        "through.webm",
        "unnamed",
        "hard_to_soft.webm",
    }
    assert not rejected
    assert all(shown_by(entry) == list(range(50, 56)) for entry in entries)


def test_links_that_lead_nowhere_are_refused(folder, tmp_path):
    (tmp_path / "outside.webm").touch()
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(numbered_from(tmp_path / "v.webm", 0), "v.webm")
        link(tar, "absolute.webm", str(tmp_path / "outside.webm"))
        link(tar, "above.webm", "../../outside.webm")
        link(tar, "circle.webm", "circle.webm")
        link(tar, "missing.webm", "w.webm", tarfile.LNKTYPE)
        link(tar, "notes", "nowhere")
        info = tarfile.TarInfo("pipe.webm")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    listing = list_folder(folder, tmp_path / "m.csv")
    assert [file.path for file in listing.files] == [f"{folder}/a.tar::v.webm"]
    reasons = {r.file.path.partition("::")[2]: r.reason for r in listing.rejected}
    assert reasons == {
        "absolute.webm": f"a link to no file of its archive ({tmp_path}/outside.webm)",
        "above.webm": "a link to no file of its archive (../../outside.webm)",
        "circle.webm": "a link to no file of its archive (circle.webm)",
        "missing.webm": "a link to no file of its archive (w.webm)",
        "pipe.webm": "not a regular file",
    }
    assert listing.passed_over == {"without a suffix": 1}


def test_archives_of_gnu_tar_with_hard_links(folder, tmp_path):
    """GNU tar makes hard links of files that are linked on the disk."""
    source = tmp_path / "source"
    (source / "run").mkdir(parents=True), (source / "jump").mkdir()
    os.link(numbered_from(source / "run" / "v.webm", 20), source / "jump" / "v.webm")
    subprocess.run(["tar", "-C", source, "-cf", folder / "a.tar", "."], check=True)
    with tarfile.open(folder / "a.tar") as tar:
        assert sum(member.islnk() for member in tar) == 1
    entries, rejected = index_directory(folder, tmp_path / "m.csv", workers=1)
    found = [entry.path.partition("::")[2] for entry in entries]
    assert (found, rejected) == (["./jump/v.webm", "./run/v.webm"], [])
    assert all(shown_by(entry) == list(range(20, 26)) for entry in entries)


def test_the_last_file_of_a_name_counts(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(numbered_from(tmp_path / "v.webm", 10), "x/v.webm")
        link(tar, "old.webm", "x/v.webm", tarfile.LNKTYPE)  # of what is there at that time
        link(tar, "new.webm", "x/v.webm")
        tar.add(numbered_from(tmp_path / "v.webm", 90), "./x/v.webm")  # as `tar --append` does
        for text in (b"1", b"22"):
            info = tarfile.TarInfo("label.txt")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    entries, rejected = index_directory(folder, tmp_path / "m.csv", workers=1)
    first = {entry.path.partition("::")[2]: shown_by(entry)[0] for entry in entries}
    assert first == {"./x/v.webm": 90, "old.webm": 10, "new.webm": 90} and not rejected
    (message,) = [r.getMessage() for r in caplog.records if "more than once" in r.getMessage()]
    assert message.startswith(f"{folder}/a.tar: found 1 names that occur more than once")
    assert "(the first: ./x/v.webm)" in message


def test_members_are_told_by_content_too(folder, tmp_path):
    video = numbered_from(tmp_path / "v.webm", 0)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in ("v", "v.xyz", "v.webm.part", ".git/v.webm", "a/.b/w.webm"):
            tar.add(video, name)
        tar.add(__file__, "text.py")
        tar.add(__file__, "text")
        info = tarfile.TarInfo("empty")  # and after it what begins like a video
        tar.addfile(info)
        tar.add(__file__, "DKIF")
        info = tarfile.TarInfo("./._v.webm")
        info.size = 104
        tar.addfile(info, io.BytesIO(b"\0\5\x16\7" + bytes(100)))
    listing = list_folder(folder, tmp_path / "m.csv")
    found = [file.path.partition("::")[2] for file in listing.files]
    assert found == ["v", "v.xyz"]
    assert [r.file.path.partition("::")[2] for r in listing.rejected] == ["v.webm.part"]
    assert listing.passed_over == {
        "without a suffix": 3,
        ".py": 1,
        "hidden folders": 2,
        "._* of macOS": 1,
    }


def test_sparse_members_and_other_archives_are_refused(folder, tmp_path):
    hole = tmp_path / "hole.mp4"
    with open(hole, "wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"x" * 8192)
    command = ["tar", "-C", tmp_path, "--sparse", "-cf", folder / "a.tar", "hole.mp4"]
    subprocess.run(command, check=True)
    (folder / "B.TAR").write_bytes((folder / "a.tar").read_bytes())
    (folder / "c.tar.gz").write_bytes(b"\x1f\x8b")
    listing = list_folder(folder, tmp_path / "m.csv")
    assert {r.file.path.rpartition("/")[2]: r.reason for r in listing.rejected} == {
        "a.tar::hole.mp4": "stored with holes in its tar archive (sparse); extract it",
        "B.TAR": "a tar archive must be named .tar, in lower case; rename it",
    }
    assert listing.passed_over == {".tar.gz": 1} and not listing.files


def test_a_circle_of_folders_ends(folder):
    with tarfile.open(folder / "a.tar", "w") as tar:
        link(tar, "a", "b/a")
        link(tar, "b", "a/b")
        link(tar, "v.mp4", "a/b/v.mp4")
    (member,) = [m for m in members(str(folder / "a.tar")) if m.name == "v.mp4"]
    assert member.reason
