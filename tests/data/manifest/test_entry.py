"""Entries in columns: equal to a list of entries, in about 100 bytes each."""

import gc
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tests.data.manifest.test_files import ENTRY
from vjepa_fast.data.manifest import files as manifest
from vjepa_fast.data.manifest.entries import Entries, entries_of
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.errors import UserError

FULL = replace(ENTRY, path="/b/c.mp4", codec="h264", duration=1.5, gop=12, vfr=True, offset=0)
VIDEOS = [
    replace(ENTRY, path="/a/\udcff é.webm"),
    FULL,
    replace(FULL, path="/b/0.tar::d.mp4", labels={"digit": -1}, vfr=False, rotation=90, gop=None),
    replace(ENTRY, path="/e.webm", frames=7, mtime_ns=2**62),
]


def test_it_is_the_list_that_it_was_made_of():
    entries = entries_of(VIDEOS)
    assert entries == VIDEOS and list(entries) == VIDEOS and len(entries) == 4
    assert entries != VIDEOS[:3] and entries != VIDEOS[::-1]
    assert (
        entries[-1] == VIDEOS[-1]
        and entries[1:3] == VIDEOS[1:3]
        and entries[::-2]
        == [
            VIDEOS[3],
            VIDEOS[1],
        ]
    )
    with pytest.raises(IndexError):
        entries[4]
    assert entries.take(np.array([True, False, False, True])) == [VIDEOS[0], VIDEOS[3]]
    assert [entries.codecs[kind] for kind in entries.column("codec")] == [e.codec for e in VIDEOS]
    assert entries.column("frames").tolist() == [30, 30, 30, 7]
    assert entries.column("label_digit").tolist() == [3, 3, -1, 3]
    assert next(iter(entries.file_names())) == b"\xff \xc3\xa9.webm"
    with pytest.raises(ValueError, match="read-only"):
        entries.column("frames")[0] = 1


def test_joined_entries_have_the_labels_that_all_have():
    more = [replace(FULL, path="/z.mp4", codec="av1", labels={"x": 1, "digit": 9})]
    plain = [replace(ENTRY, path="/p.webm")]
    parts = [entries_of(VIDEOS), entries_of(more), entries_of(plain)]
    joined = Entries.joined(parts)
    assert joined == [*VIDEOS, replace(more[0], labels={"digit": 9}), *plain]
    assert joined.label_names == ["digit"]
    unlabelled = entries_of([replace(ENTRY, labels={})])
    assert Entries.joined([unlabelled, *parts]).label_names == []


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_manifest_is_read_in_blocks(tmp_path, monkeypatch, name):
    rows = [replace(VIDEOS[i % 3 + 1], path=f"/v{i}\n.mp4", frames=i + 1) for i in range(7)]
    write_manifest(tmp_path / name, rows)
    monkeypatch.setattr(manifest, "_ROWS", 3)
    assert read_manifest(tmp_path / name) == rows
    rows[5] = replace(rows[5], frames=0)
    write_manifest(tmp_path / name, rows)
    line = 13 if name == "m.csv" else 6  # in a text file each path takes two lines
    with pytest.raises(UserError, match=f"{name}, line {line}: found no frames or no size,"):
        read_manifest(tmp_path / name)
    rows[5] = replace(rows[5], frames=2**40)
    write_manifest(tmp_path / name, rows)
    with pytest.raises(UserError, match=r"number out of range .* index the videos again"):
        read_manifest(tmp_path / name)


def test_manifests_in_several_folders_are_one_list(tmp_path):
    paths = []
    for name in "ab":
        entry = replace(ENTRY, path=f"sub/{name}.webm")
        write_manifest(tmp_path / name / "m.csv", [entry])
        paths.append(tmp_path / name / "m.csv")
    planner = ClipPlanner(list(map(read_manifest, paths)), num_frames=2, frame_step=1, augment=None)
    expected = [str(tmp_path / name / "sub" / f"{name}.webm") for name in "ab"]
    assert [entry.path for entry in planner.entries] == expected
    assert sorted(plan.path for plan in planner.plan([0, 1])) == expected


def test_an_entry_takes_a_hundred_bytes(tmp_path):
    """Of which the names here take 32, and the class and the value 16."""
    count = 20_000
    rows = (
        replace(FULL, path=f"part0001/video_{i:012d}.mp4", labels={"k": i % 2}, values={"v": i / 3})
        for i in range(count)
    )
    write_manifest(tmp_path / "m.csv", rows, {"k": ["a long name of a class " * 5, "another one"]})
    read_manifest(tmp_path / "m.csv")  # whatever is imported and kept
    gc.collect()
    tracemalloc.start()
    try:
        planner = ClipPlanner(
            [read_manifest(tmp_path / "m.csv")], num_frames=16, frame_step=4, augment=None
        )
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(planner) == count
    assert held / count < 138
