"""Text lists of the public trainers: each video is inspected once, in killable processes."""

import logging
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import damaged, videos
from vjepa_fast.data.manifest.files import write_manifest
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.prepare import text_list
from vjepa_fast.data.prepare.scan import scan
from vjepa_fast.data.prepare.scan_journal import (
    ScannedFile,
    ScanResult,
    read_rejected,
    rejected_path,
    write_rejected,
)
from vjepa_fast.errors import UserError
from vjepa_fast.locks import sole_writer


def test_crashes_and_hangs_are_left_out_and_remembered(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    for name in ("a", "b", "crash", "hang"):
        videos.write_numbered(tmp_path, "mjpeg", 5, name)
    listed = tmp_path / "list.txt"
    listed.write_text("b.avi 0\na.avi 1\ncrash.avi 2\nhang.avi 3\n")
    probe = {"probe": damaged.crash_or_probe, "seconds": 3, "modules": (damaged.__name__,)}
    monkeypatch.setattr(text_list, "scan", partial(scan, **probe))
    entries = list(open_manifest(listed))
    assert [Path(entry.path).stem for entry in entries] == ["b", "a"]
    assert [entry.labels for entry in entries] == [{"label": 0}, {"label": 1}]
    assert re.search(r"2 unusable .*crash.avi: damaged \(FFmpeg crashes or hangs\)", caplog.text)
    monkeypatch.setattr(text_list, "scan", None)  # a second call probes nothing
    assert list(open_manifest(listed)) == entries


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


def test_what_an_older_version_rejected_is_probed_again(tmp_path):
    """It rejected sound files, such as films behind a cover picture."""
    for name in "ab":
        videos.write_numbered(tmp_path, "mjpeg", 5, name)
    listed, cache = tmp_path / "list.txt", tmp_path / "list.txt.indexed.csv"
    listed.write_text("a.avi 3\nb.avi 4\n")
    known = replace(open_manifest(listed)[0], labels={}, seek=None)
    write_manifest(cache, [known])
    status = (tmp_path / "b.avi").stat()
    file = ScannedFile(str(tmp_path / "b.avi"), status.st_size, status.st_mtime_ns)
    write_rejected(rejected_path(listed), [ScanResult(file, reason="only 1 frame")])
    assert [entry.labels["label"] for entry in open_manifest(listed)] == [3, 4]
    assert not read_rejected(rejected_path(listed))


def test_processes_do_not_probe_a_text_list_at_once(tmp_path):
    good = videos.write_numbered(tmp_path, "mjpeg", 5, "good")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{good} 3\n")
    program = "import sys; from vjepa_fast.data.open_manifest import open_manifest;"
    program += "print('begin', flush=True); print(open_manifest(sys.argv[1])[0].frames)"
    with sole_writer(listed):
        command = [sys.executable, "-c", program, str(listed)]
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert waiting.stdout.readline() == "begin\n"
        time.sleep(2)  # far more than it takes to probe; what it sees must be what comes now
        videos.write_numbered(tmp_path, "mjpeg", 7, "good")
    assert waiting.communicate(timeout=600)[0] == "7\n"


def test_a_bad_text_list_is_rejected(tmp_path):
    listed = tmp_path / "list.txt"
    good = videos.write_numbered(tmp_path, "mjpeg", 5, "good")
    listed.write_text(f"{good} 3\n{good} cat\n")
    with pytest.raises(UserError, match=r"line 2: found label = 'cat' after integers, expected a"):
        open_manifest(listed)
    assert not (tmp_path / "classes.json").exists()
    listed.write_text("word\n")
    with pytest.raises(UserError, match='expected "path label"'):
        open_manifest(listed)
    with pytest.raises(UserError, match="found a file that isn't text, expected a manifest"):
        open_manifest(good)


def test_lines_as_pandas_and_people_write_them(tmp_path, monkeypatch):
    """Names with spaces in quotes or not, tabs, `~`, `$NAME`; a file of that very name is first."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLIPS", str(tmp_path / "sub"))
    (tmp_path / "sub").mkdir()
    written = [
        ('"b c.avi" 4', "b c"),
        ("b c.avi\t5", "b c"),
        ('"say ""hi"" 7.avi" "6"', 'say "hi" 7'),
        ("~/b c.avi 7", "b c"),
        ("$CLIPS/d.avi 8", "sub/d"),
        ('"${CLIPS}/d.avi"   -9', "sub/d"),
        ("$CLIPS.avi 10", "$CLIPS"),
        ("~.avi 11", "~"),
    ]
    for name in {name for _, name in written}:
        videos.write_numbered(tmp_path, "mjpeg", 5, name)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(line for line, _ in written))
    found = [(entry.path, entry.labels["label"]) for entry in open_manifest(listed)]
    labels = [4, 5, 6, 7, 8, -9, 10, 11]
    files = [str(tmp_path / f"{name}.avi") for _, name in written]
    assert found == list(zip(files, labels, strict=True))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("folder_of_frames 100 3", "more columns than two in 'folder_of_frames 100', expected"),
        ("a.avi 100 3", "more columns than two in 'a.avi 100', expected"),
        ("elsewhere/b.mp4 100 3", "more columns than two in 'elsewhere/b.mp4 100', expected"),
        ("0 a.avi 3", "more columns than two in '0 a.avi', expected"),
        ('"a.avi" 100 3', "more columns than two in '\"a.avi\" 100 3', expected"),
        ("$NOWHERE/a.avi 3", "$NOWHERE/a.avi, whose variable $NOWHERE is not set, expected a path"),
        (
            "a.avi 99999999999999999999",
            "label = '99999999999999999999', expected an integer",
        ),
        ('"a.avi"', '\'"a.avi"\', expected "path label"'),
        ("my a.avi", "'my a.avi', expected \"path label\""),
        ("a.avi riding a bike", "more columns than two in 'a.avi riding a', expected"),
    ],
)
def test_a_line_of_another_form_is_a_sentence(tmp_path, line, found):
    videos.write_numbered(tmp_path, "mjpeg", 5, "a")
    (tmp_path / "folder_of_frames").mkdir()
    listed = tmp_path / "list.txt"
    listed.write_text(f"a.avi 1\n{line}\n")
    with pytest.raises(UserError, match=f"list.txt, line 2: found {re.escape(found)}.*; "):
        open_manifest(listed)


def test_labels_of_a_text_list_may_be_names(tmp_path):
    for name in ("a", "b c"):
        videos.write_numbered(tmp_path, "mjpeg", 5, name)
    listed = tmp_path / "list.txt"
    listed.write_text('a.avi "riding a bike"\nb c.avi cat\n"b c.avi" "cat"\na.avi\tlate bird\n')
    entries = open_manifest(listed)
    assert entries.class_names == {"label": ["cat", "late bird", "riding a bike"]}
    assert entries.column("label_label").tolist() == [2, 0, 0, 1]
    listed.write_text("b c.avi ant\n")
    assert open_manifest(listed).class_names["label"][3] == "ant"
    assert open_manifest(listed)[0].labels == {"label": 3}


def test_a_text_list_may_go_up(tmp_path):
    path = videos.write_numbered(tmp_path, "vp9", 12, "a")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.txt").write_text(f"../{path.name} 4\n")
    (entry,) = open_manifest(tmp_path / "lists" / "list.txt")
    assert (entry.path, entry.labels) == (str(path), {"label": 4})
