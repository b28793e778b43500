"""Labels that are names: numbered once in the folder's `classes.json`, for all of its manifests."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.manifest.test_files import ENTRY
from vjepa_fast.data.manifest.class_map import add_classes, read_classes
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.errors import UserError

NAMES = ["sitting", "archery", "sitting", "été, dehors"]


def write(path, names, label="action", **changes):
    """A manifest whose column holds these texts, as a user writes them."""
    entries = [
        replace(ENTRY, path=f"{i}.mp4", labels={label: i}, **changes) for i in range(len(names))
    ]
    write_manifest(path, entries)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        table, column = parquet.read_table(path), f"label_{label}"
        at = table.column_names.index(column)
        parquet.write_table(table.set_column(at, column, pyarrow.array(names)), path)
        return path
    header, *lines = path.read_text().splitlines()
    assert header.startswith("path,label_")
    cells = [line.split(",", 2) for line in lines]
    lines = [f'{cell[0]},"{name}",{cell[2]}' for cell, name in zip(cells, names, strict=True)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_are_numbered_once_for_a_folder(tmp_path, suffix):
    train = write(tmp_path / f"train.{suffix}", NAMES)
    entries = read_manifest(train)
    assert entries.class_names == {"action": ["archery", "sitting", "été, dehors"]}
    assert entries.column("label_action").tolist() == [1, 0, 1, 2]
    assert entries[3].labels == {"action": 2}
    written = (tmp_path / "classes.json").read_bytes()
    assert json.loads(written) == entries.class_names and "été" in written.decode()

    test = write(tmp_path / f"test.{suffix}", ["sitting", "  archery ", "aikido"])
    tested = read_manifest(test)
    assert tested.class_names == {"action": ["archery", "sitting", "été, dehors", "aikido"]}
    assert tested.column("label_action").tolist() == [1, 0, 3]
    assert read_manifest(train).column("label_action").tolist() == [1, 0, 1, 2]
    write(tmp_path / f"more.{suffix}", ["b", "a", "b"], label="verb")
    assert read_manifest(tmp_path / f"more.{suffix}").class_names == {"verb": ["a", "b"]}
    assert list(read_classes(tmp_path / "classes.json")) == ["action", "verb"]


def test_a_map_may_begin_with_the_mark_that_editors_write(tmp_path):
    (tmp_path / "classes.json").write_text('{"action": ["x", "archery"]}', encoding="utf-8-sig")
    assert read_classes(tmp_path / "classes.json") == {"action": ["x", "archery"]}


def test_a_map_that_is_there_is_not_written(tmp_path):
    (tmp_path / "classes.json").write_text('{"action": ["sitting", "été, dehors", "x", "archery"]}')
    (tmp_path / ".classes.json.lock").mkdir()  # nobody can write the map
    entries = read_manifest(write(tmp_path / "m.csv", NAMES))
    assert entries.column("label_action").tolist() == [0, 3, 0, 1]
    write(tmp_path / "m.csv", [*NAMES, "judo"])
    with pytest.raises(
        UserError,
        match=r"classes.json: found that the numbers of 1 classes of 'action' \(the first: 'judo'\)"
        r" have to be written there, and cannot be \(Is a directory\), expected a folder that can",
    ):
        read_manifest(tmp_path / "m.csv")


def test_integers_have_no_map(tmp_path):
    write_manifest(tmp_path / "m.csv", [replace(ENTRY, labels={"a": -7, "b": 12})])
    write(tmp_path / "p.parquet", [3, 1])
    write(tmp_path / "t.parquet", ["3", "-1"])
    entries = read_manifest(tmp_path / "m.csv")
    assert entries.class_names == {} and entries[0].labels == {"a": -7, "b": 12}
    assert read_manifest(tmp_path / "p.parquet").column("label_action").tolist() == [3, 1]
    assert read_manifest(tmp_path / "t.parquet").column("label_action").tolist() == [3, -1]
    assert not (tmp_path / "classes.json").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["3", "cat"], "line 3: found label_action = 'cat' after integers, expected a label's"),
        (["cat", "3"], "line 3: found label_action = '3' after names, expected a label's classes"),
        (["cat", ""], "line 3: found label_action = '', expected a label for every video"),
        (["cat", "2.5"], "line 3: found label_action = '2.5', expected an integer or a name"),
    ],
)
def test_names_and_integers_do_not_mix(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        read_manifest(write(tmp_path / "m.csv", names))
    assert not (tmp_path / "classes.json").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([1.0, 2.5], r"line 1: found label_action = 1.0, expected an integer or a name; correct"),
        ([1, None], "line 2: found label_action = '', expected a label for every video"),
        ([True, False], "line 1: found label_action = True, expected an integer or a name"),
        ([b"a", b"b"], "line 1: found label_action = b'a', expected an integer or a name"),
    ],
)
def test_what_a_parquet_file_may_hold_in_vain(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        read_manifest(write(tmp_path / "m.parquet", names))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "no JSON"),
        ("[1]", "a list"),
        ('{"action": {"archery": 0}}', "something other than a list of names for 'action'"),
        ('{"action": ["b", "a", "b"]}', "'b' more than once for 'action'"),
    ],
)
def test_a_malformed_map_is_a_sentence(tmp_path, text, found):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=rf"classes.json: found {found}.*, expected .*; correct"):
        read_manifest(write(tmp_path / "m.csv", NAMES))
    assert (tmp_path / "classes.json").read_text() == text


def test_a_written_manifest_keeps_the_names(tmp_path):
    """Also in another folder, and beside a map with other numbers."""
    entries = read_manifest(write(tmp_path / "m.csv", NAMES))
    for folder in ("new", "known"):
        (tmp_path / folder).mkdir()
    (tmp_path / "known" / "classes.json").write_text('{"action": ["sitting"]}')
    numbers = {"new": [1, 0, 1, 2], "known": [0, 1, 0, 2]}
    for folder, expected in numbers.items():
        write_manifest(tmp_path / folder / "m.csv", entries, entries.class_names)
        again = read_manifest(tmp_path / folder / "m.csv")
        assert again.column("label_action").tolist() == expected
        assert [again.class_names["action"][i] for i in expected] == NAMES


def test_processes_that_open_manifests_at_once_agree(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.csv", [f"class {i}", "shared", f"class {i + 1}"])
    program = "import sys; from vjepa_fast.data.manifest.files import read_manifest;"
    program += "print('ready', flush=True); sys.stdin.read();"
    program += "e = read_manifest(sys.argv[1]); print(e.column('label_action').tolist())"
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([*command, str(tmp_path / f"{i}.csv")], **pipes) for i in range(4)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.close()
    found = [json.loads(process.stdout.read()) for process in running]
    assert [process.wait() for process in running] == [0] * 4
    names = read_classes(tmp_path / "classes.json")["action"]
    assert sorted(names) == [*(f"class {i}" for i in range(5)), "shared"]
    for i, numbers in enumerate(found):
        assert [names[k] for k in numbers] == [f"class {i}", "shared", f"class {i + 1}"]
    assert not [p for p in Path(tmp_path).iterdir() if p.name.startswith(".classes.json.t")]


def test_joined_manifests_share_the_classes_of_one_name(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    for folder, names in {"a": NAMES, "b": ["tennis", "sitting"], "c": ["4", "5"]}.items():
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "m.csv", names)
    a, b, c = (read_manifest(tmp_path / folder / "m.csv") for folder in "abc")
    joined = Entries.joined([a, b])
    assert joined.class_names == {"action": ["archery", "sitting", "été, dehors", "tennis"]}
    assert joined.column("label_action").tolist() == [1, 0, 1, 2, 3, 1]
    assert joined.take([4]).class_names == joined.class_names
    assert b.column("label_action").tolist() == [1, 0]  # as before
    assert b.numbered_as("action", a.class_names["action"]).column("label_action").tolist() == [
        3,
        1,
    ]
    assert Entries.joined([c, c]).class_names == {} and not caplog.text
    mixed = Entries.joined([a, c])
    assert mixed.label_names == [] and mixed.class_names == {} and len(mixed) == 6
    assert "'action' is left out: found names of classes in" in caplog.text


def test_classes_are_added_in_the_given_order(tmp_path):
    assert add_classes(tmp_path, {"k": ["z", "a"]}) == {"k": ["z", "a"]}
    assert add_classes(tmp_path, {"k": ["m", "a", "m"]}) == {"k": ["z", "a", "m"]}
    assert add_classes(tmp_path, {}) == {}
