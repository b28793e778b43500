"""`vjepa-fast index --label-from-folders`: the folder below the given one is the class."""

import json
import re
import tarfile
from dataclasses import replace

import pytest

from tests.helpers import videos
from vjepa_fast.cli import main
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.prepare.index import index_listing, list_videos
from vjepa_fast.data.prepare.inspect import probe_video
from vjepa_fast.data.prepare.labels.folders import FolderLabel
from vjepa_fast.data.prepare.transcode import transcode_manifest
from vjepa_fast.errors import UserError


def add(folder, name="a"):
    """A video in a folder, whose own name says nothing of its class."""
    folder.mkdir(parents=True, exist_ok=True)
    return videos.write_numbered(folder, "mjpeg", 5, name)


def index(directory, output, label="class", classes=None):
    """The entries of the written manifest, and the names of their classes in order."""
    index_listing(
        list_videos(directory, output),
        output,
        1,
        folder_label=FolderLabel(label, directory, classes),
    )
    entries = read_manifest(output)
    numbers = entries.column(f"label_{label}").tolist()
    names = entries.class_names.get(label)
    return entries, [names[number] for number in numbers] if names else numbers


def test_folders_are_classes(tmp_path, capsys):
    train, test = tmp_path / "train", tmp_path / "test"
    for name in ("tennis", "aikido/2024/deep", "aikido/b"):
        add(train / name)
    command = ["index", str(train), "--output", str(tmp_path / "m" / "train.csv"), "--workers", "1"]
    assert main([*command, "--label-from-folders"]) == 0
    assert "label class: 2 classes, by folder" in capsys.readouterr().out
    entries = read_manifest(tmp_path / "m" / "train.csv")
    assert entries.class_names == {"class": ["aikido", "tennis"]}
    assert entries.column("label_class").tolist() == [0, 0, 1]
    assert ",tennis," in (tmp_path / "m" / "train.csv").read_text()

    for name in ("tennis", "boxing"):  # beside it: the numbers stay
        add(test / name)
    entries, names = index(test, tmp_path / "m" / "test.parquet")
    assert names == ["boxing", "tennis"] and entries.column("label_class").tolist() == [2, 1]


def test_a_grown_folder_keeps_its_numbers(tmp_path):
    for name in ("b", "d"):
        add(tmp_path / "v" / name)
    output = tmp_path / "m.csv"
    index(tmp_path / "v", output)
    before = output.stat().st_mtime_ns
    for name in ("a", "b"):
        add(tmp_path / "v" / name, "new")
    with pytest.raises(UserError, match=r"2 videos without labels.*give --label-from-f"):
        index_listing(list_videos(tmp_path / "v", output), output, 1)
    assert output.stat().st_mtime_ns == before
    entries, names = index(tmp_path / "v", output)
    assert names == ["a", "b", "b", "d"]
    assert entries.class_names == {"class": ["b", "d", "a"]}


def test_other_columns_stay(tmp_path):
    add(tmp_path / "v" / "b")
    output = tmp_path / "m.csv"
    index(tmp_path / "v", output, "kind")
    head, row = output.read_text().splitlines()
    output.write_text(f"{head},label_n,value_x\n{row},7,0.5\n")
    for label in ("kind", "class"):
        entries, names = index(tmp_path / "v", output, label)
        assert names == ["b"] and entries[0].labels["n"] == 7 and entries[0].values == {"x": 0.5}
    assert sorted(entries.label_names) == ["class", "kind", "n"]
    assert entries.class_names == {"kind": ["b"], "class": ["b"]}


@pytest.mark.parametrize("inside", ["", "./"])
def test_folders_in_tar_archives_count(tmp_path, inside):
    path = add(tmp_path / "elsewhere")
    (tmp_path / "v" / "c").mkdir(parents=True)
    for archive in ("0.tar", "c/1.tar"):
        with tarfile.open(tmp_path / "v" / archive, "w") as tar:
            tar.add(path, f"{inside}a b/x/1.avi")
    entries, names = index(tmp_path / "v", tmp_path / "m.csv")
    found = [(e.path.partition("/v/")[2], name) for e, name in zip(entries, names, strict=True)]
    assert found == [(f"0.tar::{inside}a b/x/1.avi", "a b"), (f"c/1.tar::{inside}a b/x/1.avi", "c")]


def test_images_and_integers(tmp_path):
    from PIL import Image

    for folder in ("10", "9"):
        (tmp_path / "v" / folder).mkdir(parents=True)
        Image.new("RGB", (32, 32), int(folder)).save(tmp_path / "v" / folder / "i.png")
    assert index(tmp_path / "v", tmp_path / "m.csv")[1] == [10, 9]
    assert not (tmp_path / "classes.json").exists()
    (tmp_path / "c.json").write_text('{"class": ["a"]}')
    with pytest.raises(UserError, match="beside folders that are named by integers"):
        index(tmp_path / "v", tmp_path / "m.csv", classes=tmp_path / "c.json")


def test_numbers_of_another_map(tmp_path):
    for name in ("a", "c"):
        add(tmp_path / "v" / name)
    given = tmp_path / "train" / "classes.json"
    given.parent.mkdir()
    given.write_text(json.dumps({"class": ["z", "c"], "other": ["q"]}))
    entries, names = index(tmp_path / "v", tmp_path / "m" / "m.csv", classes=given)
    assert names == ["a", "c"] and entries.class_names == {"class": ["z", "c", "a"]}
    given.write_text(json.dumps({"class": ["z", "b"]}))
    with pytest.raises(
        UserError, match=r"found 'b' as class 1 of 'class', where \S+/m/classes.json has 'c', exp"
    ):
        index(tmp_path / "v", tmp_path / "m" / "m.csv", classes=given)
    with pytest.raises(UserError, match=r"found no classes of 'kind' in .*train/classes.json"):
        index(tmp_path / "v", tmp_path / "m" / "m.csv", "kind", given)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["a", "."], r"--label-from-folders: found \S+/v/v\.avi outside of the folders of classes"),
        (["1", "a"], r"/v, its folders: found the classes '1' and 'a', expected classes that are"),
        (["1", "01"], "found one number written in several ways, 01 and 1, expected classes"),
        (["2", "7", "1", "007"], "found one number written in several ways, 007 and 7, expected"),
        (["a", "1.5"], "'1.5', expected classes that are all integers of 64 bits or all names; re"),
        (["1", "9" * 19], "found a class '9999999999999999999', expected classes that are all"),
        (["1", "9" * 200], "found a class '9999999999999999999.*', expected classes that are all"),
    ],
)
def test_folders_that_are_no_classes_are_a_sentence(tmp_path, folders, message):
    for folder in folders:
        add(tmp_path / "v" / folder, "v")
    with pytest.raises(UserError, match=message):
        index(tmp_path / "v", tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists() and not (tmp_path / "classes.json").exists()


def test_copies_keep_names_and_values(tmp_path):
    path = add(tmp_path / "v" / "c")
    entry = replace(probe_video(path), labels={"k": 1}, values={"x": 0.5})
    write_manifest(tmp_path / "m.csv", [entry], {"k": ["z", "c"]})
    target, rejected = transcode_manifest(tmp_path / "m.csv", tmp_path / "copies", workers=1)
    (copy,) = copies = read_manifest(target)
    assert (copy.labels, copy.values, rejected) == ({"k": 1}, {"x": 0.5}, [])
    assert copies.class_names == {"k": ["z", "c"]}


def test_a_map_without_folders_is_a_sentence(tmp_path, capsys):
    command = ["index", str(tmp_path), "--output", str(tmp_path / "m.csv"), "--classes", "c.json"]
    assert main(command) == 2
    assert re.search("--classes: found it without --label-from-folders", capsys.readouterr().err)


def test_a_name_that_no_probe_could_choose_is_refused(tmp_path, capsys):
    command = ["index", str(tmp_path), "--output", str(tmp_path / "m.csv")]
    with pytest.raises(SystemExit):
        main([*command, "--label-from-folders", "kind,verb"])
    assert "found 'kind,verb', expected a name without commas" in capsys.readouterr().err
