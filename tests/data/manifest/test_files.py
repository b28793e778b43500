"""The manifest file and the public trainers' text lists."""

import fcntl
import logging
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.helpers import videos
from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.errors import UserError

ENTRY = ManifestEntry("a.webm", 30, 29.97003, 320, 240, "vp9", 1234, 10**18 + 7, {"digit": 3})


def test_it_reads_what_it_wrote(tmp_path):
    outside = replace(ENTRY, path="/elsewhere/b.webm", labels={"digit": -1})
    odd = replace(ENTRY, path=str(tmp_path / 'c, "d" \udcff é.webm'))
    write_manifest(tmp_path / "m.csv", [ENTRY, outside, odd])
    first = replace(ENTRY, path=str(tmp_path / "a.webm"))
    assert read_manifest(tmp_path / "m.csv") == [first, outside, odd]


def test_videos_below_the_manifest_move_with_it(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    write_manifest(old / "m.csv", [replace(ENTRY, path=str(old / "sub" / "a.webm"))])
    old.rename(new)
    assert read_manifest(new / "m.csv")[0].path == str(new / "sub" / "a.webm")


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    write_manifest(tmp_path / "m.csv", [ENTRY])
    with pytest.raises(UserError, match="give every video of a manifest the same labels"):
        write_manifest(tmp_path / "m.csv", [ENTRY, replace(ENTRY, labels={"other": 1})])
    assert len(read_manifest(tmp_path / "m.csv")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",codec", ",cdc", "found no column codec"),
        ("30,", "thirty,", "found frames = 'thirty' in .*line 2, expected int"),
        ("vp9,1234", "vp9", "a row of another length in .*line 2"),
        (",3,", ",,", "found label_digit = '' in"),
        (",30,", ",0,", "found no frames or no size"),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path, old, new, message):
    path = tmp_path / "m.csv"
    write_manifest(path, [ENTRY])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_manifest(path)


def test_a_missing_or_empty_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match="found no manifest"):
        read_manifest(tmp_path / "m.csv")
    write_manifest(tmp_path / "m.csv", [])
    with pytest.raises(UserError, match="found no video in"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_bytes(b"")
    with pytest.raises(UserError, match="found no video in"):
        read_manifest(tmp_path / "m.csv")


def test_a_text_list_is_probed_once(tmp_path):
    first = videos.write_numbered(tmp_path, "mjpeg", 5, "with space")
    second = videos.write_numbered(tmp_path, "vp9", 6, "b")
    listed = tmp_path / "list.csv"
    listed.write_text(f"{first} 17\n\nb.webm 2\n{first} 4\n")

    entries = open_manifest(listed)
    found = [(entry.path, entry.frames, entry.codec, entry.labels["label"]) for entry in entries]
    one = (str(first), 5, "mjpeg")
    assert found == [(*one, 17), (str(second), 6, "vp9", 2), (*one, 4)]

    cache = tmp_path / "list.csv.indexed.csv"
    written = cache.stat().st_mtime_ns
    assert open_manifest(listed) == entries
    assert cache.stat().st_mtime_ns == written
    videos.write_numbered(tmp_path, "vp9", 9, "b")
    assert [entry.frames for entry in open_manifest(listed)] == [5, 9, 5]


def test_unusable_videos_of_a_text_list_are_left_out_and_remembered(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    listed = tmp_path / "list.txt"
    good = videos.write_numbered(tmp_path, "mjpeg", 5, "good")
    (tmp_path / "empty.mp4").touch()
    listed.write_text(f"{good} 3\nempty.mp4 1\nmissing.mp4 1\n")
    for _ in range(2):
        caplog.clear()
        assert [entry.labels for entry in open_manifest(listed)] == [{"label": 3}]
        assert re.search(r"2 unusable .*empty\.mp4: empty.*missing\.mp4: unread", caplog.text)
    assert "probing 1 videos" in caplog.text  # only what is not there: it may come
    videos.write_numbered(tmp_path, "h264", 6, "empty")
    assert [entry.frames for entry in open_manifest(listed)] == [5, 6]
    good.unlink()
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 unusable .*expected at least one valid video"):
        open_manifest(listed)


def test_processes_do_not_probe_a_text_list_at_once(tmp_path):
    good = videos.write_numbered(tmp_path, "mjpeg", 5, "good")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{good} 3\n")
    program = "import sys; from vjepa_fast.data.open_manifest import open_manifest;"
    program += "print(open_manifest(sys.argv[1])[0].frames)"
    with open(listed) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        command = [sys.executable, "-c", program, str(listed)]
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=8)
    assert waiting.communicate(timeout=120)[0] == "5\n"


def test_a_bad_text_list_is_refused(tmp_path):
    listed = tmp_path / "list.txt"
    good = videos.write_numbered(tmp_path, "mjpeg", 5, "good")
    listed.write_text(f"{good} cat\n")
    with pytest.raises(UserError, match=r"label = 'cat' in .*line 1, expected int"):
        open_manifest(listed)
    listed.write_text("word\n")
    with pytest.raises(UserError, match='expected "path label"'):
        open_manifest(listed)
    with pytest.raises(UserError, match="found a file that isn't text, expected a manifest"):
        open_manifest(good)


def test_a_manifest_that_a_spreadsheet_saved(tmp_path):
    write_manifest(tmp_path / "m.csv", [ENTRY])
    data = (tmp_path / "m.csv").read_bytes()
    expected = read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    assert read_manifest(tmp_path / "m.csv") == expected


def test_facts_of_older_versions_are_unknown(tmp_path):
    write_manifest(tmp_path / "m.csv", [ENTRY])
    assert b"duration" not in (tmp_path / "m.csv").read_bytes()
    (entry,) = read_manifest(tmp_path / "m.csv")
    assert (entry.duration, entry.gop, entry.vfr, entry.offset) == (None, None, None, None)
    full = replace(entry, duration=1.5, gop=12, vfr=True)
    write_manifest(tmp_path / "m.csv", [full, replace(entry, path=entry.path + "b")])
    assert read_manifest(tmp_path / "m.csv") == [full, replace(entry, path=entry.path + "b")]


def test_a_text_list_may_go_up(tmp_path):
    path = videos.write_numbered(tmp_path, "vp9", 12, "a")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.txt").write_text(f"../{path.name} 4\n")
    (entry,) = open_manifest(tmp_path / "lists" / "list.txt")
    assert (entry.path, entry.labels) == (str(path), {"label": 4})
