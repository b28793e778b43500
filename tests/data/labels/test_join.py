"""`vjepa-fast labels`: annotation files as they are distributed, joined to a manifest."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.manifest.test_files import ENTRY
from vjepa_fast.cli import main
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.prepare.labels.annotations import read_annotations
from vjepa_fast.data.prepare.labels.join import join_labels
from vjepa_fast.errors import UserError


@pytest.fixture
def joined(tmp_path):
    """Joins annotation files, given by their text, to videos: class by the path below /v."""

    def join(videos, *texts, label="class"):
        write_manifest(
            tmp_path / "all.csv", [replace(ENTRY, path=f"/v/{name}", labels={}) for name in videos]
        )
        files = [tmp_path / f"annotations{i}" for i in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text if isinstance(text, str) else json.dumps(text))
        join.report = join_labels(tmp_path / "all.csv", files, tmp_path / "out" / "m.csv", label)
        join.entries = read_manifest(tmp_path / "out" / "m.csv")
        names = join.entries.class_names.get(label)
        return {
            entry.path.removeprefix("/v/"): names[entry.labels[label]]
            if names
            else entry.labels[label]
            for entry in join.entries
        }

    return join


KINETICS_CSV = """label,youtube_id,time_start,time_end,split,is_cc
testifying,---QUuC4vJs,84,94,train,0
"massaging, head",--GkrdYZ9Tc,0,10,train,0
testifying,_-nQbRBEz2s,104,114,train,1
"""


def test_kinetics_csv(joined):
    videos = [
        "t/---QUuC4vJs_000084_000094.mp4",
        "--GkrdYZ9Tc.mkv",
        "x/_-nQbRBEz2s_000100_000110.mp4",
    ]
    assert joined(videos, KINETICS_CSV) == {
        "t/---QUuC4vJs_000084_000094.mp4": "testifying",
        "--GkrdYZ9Tc.mkv": "massaging, head",
    }
    assert [Path(path).name for path in joined.report.unlabeled] == [
        "_-nQbRBEz2s_000100_000110.mp4"
    ]
    assert [a.names[0] for a in joined.report.unused] == ["_-nQbRBEz2s_000104_000114"]
    assert joined.entries.class_names == {"class": ["massaging, head", "testifying"]}


def test_kinetics_json(joined):
    found = {
        "---0dWlqevI": {
            "annotations": {"label": "clay pottery making", "segment": [10.0, 20.0]},
            "duration": 10.0,
            "subset": "training",
            "url": "https://www.youtube.com/watch?v=---0dWlqevI",
        },
        "abc": {"annotations": {"segment": [0.0, 10.0]}, "duration": 10.0, "subset": "testing"},
        "def": {"annotations": None, "subset": "testing"},
        "ghi": {"annotations": [], "subset": "testing"},
    }
    video = "0.tar::train/---0dWlqevI_000010_000020.mp4.webm"  # a copy by `transcode`
    assert joined([video], found) == {video: "clay pottery making"}
    assert joined.report.files[0].unlabeled == 3


SOMETHING = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {"id": "42326", "label": "x", "template": "Approaching [something] with your camera"},
]
NUMBERS = {
    "Holding something next to something": "2",
    "Approaching something with your camera": "0",
    "Folding something": "1",
}


def test_something_something(joined):
    """The numbers are those of labels.json if it is given, also where a class has no video."""
    videos = ["78687.webm", "42326.webm", "7.webm"]
    assert joined(videos, SOMETHING) == {
        "78687.webm": "Holding something next to something",
        "42326.webm": "Approaching something with your camera",
    }
    numbered = joined(
        videos, "7;Folding something\n8;Folding something\n", NUMBERS, SOMETHING, label="v2"
    )
    assert numbered["7.webm"] == "Folding something"
    assert joined.entries.column("label_v2").tolist() == [2, 0, 1]
    assert joined.entries.class_names["v2"][0] == "Approaching something with your camera"
    assert joined.report.classes == 3 and not joined.report.unlabeled


def test_official_numbers_do_not_contradict_others(joined):
    joined(["78687.webm", "42326.webm"], SOMETHING)
    with pytest.raises(UserError, match=r"found 'Folding something' as class 1 of 'class', where"):
        joined(["78687.webm"], SOMETHING, NUMBERS)


def test_diving48(joined):
    found = [
        {"vid_name": "-mmq0PT-u8k_00155", "label": 26, "start_frame": 0, "end_frame": 100},
        {"vid_name": "b_1", "label": 0, "start_frame": 0, "end_frame": 9},
    ]
    assert joined(["rgb/-mmq0PT-u8k_00155.mp4"], found) == {"rgb/-mmq0PT-u8k_00155.mp4": 26}
    assert joined.entries.class_names == {}


@pytest.mark.parametrize(
    "text",
    [
        "x/1.avi 3\ny/1.avi 4\n",
        "/their/disk/x/1.avi 3\n/their/disk/y/1.avi 4\n",
        "path,label\nx/1.mp4,3\ny/1.mp4,4\n",
        "x/1\t3\n\ny/1\t4\n",
        "class,frames,video\n3,9,x/1\n4,9,y/1\n",
        "video label\nx/1 3\ny/1 4\n",
    ],
)
def test_lists_of_paths(joined, text):
    """Folders tell apart what has one name."""
    assert joined(["x/1.avi", "y/1.avi", "z/1.avi"], text) == {"x/1.avi": 3, "y/1.avi": 4}
    assert len(joined.report.unlabeled) == 1 and not joined.report.unused


def test_only_the_end_of_a_line_ends_it(joined):
    """Not what Unicode calls a line's end, as in texts pasted from elsewhere."""
    text = "video,label\r\n1.mp4,tea\u2028time\r\n2.mp4,b\x85c\r\n"
    assert joined(["1.mp4", "2.mp4"], text) == {"1.mp4": "tea\u2028time", "2.mp4": "b\x85c"}


def test_other_labels_and_values_stay(joined, tmp_path):
    joined(["a.mp4", "b.mp4"], "a cat\nb dog\n")
    first = tmp_path / "out" / "m.csv"
    (tmp_path / "numbers").write_text("a 7\n")
    join_labels(first, [tmp_path / "numbers"], tmp_path / "out" / "n.parquet", "n")
    (entry,) = read_manifest(tmp_path / "out" / "n.parquet")
    assert entry.labels == {"class": 0, "n": 7}
    with pytest.raises(UserError, match="found a column label_class already, expected none of"):
        join_labels(first, [tmp_path / "numbers"], tmp_path / "n.csv")
    with pytest.raises(UserError, match=r"--output: found .*l.csv, which is one of the annotation"):
        join_labels(first, [tmp_path / "all.csv", tmp_path / "l.csv"], tmp_path / "l.csv")
    with pytest.raises(UserError, match=r"found that .*numbers/m.csv cannot be written \(File exi"):
        join_labels(first, [tmp_path / "numbers"], tmp_path / "numbers" / "m.csv", "other")
    with pytest.raises(UserError, match=r"--output: found .*m.csv, the manifest itself"):
        join_labels(first, [tmp_path / "numbers"], tmp_path / "out" / ".." / "out" / "m.csv")
    with pytest.raises(
        UserError, match=r"--output: found .*m.txt, expected a name that ends in .csv"
    ):
        join_labels(first, [tmp_path / "numbers"], tmp_path / "m.txt")


@pytest.mark.parametrize(
    ("videos", "texts", "message"),
    [
        (
            ["a.mp4"],
            ["b 1\nc 2\n"],
            r"found none of its 1 videos \(the first: /v/a.mp4\) among 2 a",
        ),
        (["a.mp4"], ["a 1\n", "a 2\n"], "/v/a.mp4: found annotations of two classes, '1' and '2'"),
        (["x/a.mp4", "y/a.mp4"], ["a 1\n"], "found two videos, /v/x/a.mp4 and /v/y/a.mp4, for the"),
        (["a.mp4"], ["a 1\nb cat\n"], "annotations0: found the classes '1' and 'cat', expected"),
        (
            ["1.mp4"],
            [[{"id": "1"}]],
            "Something-Something JSON without any label, as that of a tes",
        ),
        (
            ["1.mp4"],
            ["youtube_id,time_start,time_end,split\n1,0,1,test\n"],
            "CSV without any label",
        ),
        (
            ["1.mp4"],
            ["label,youtube_id,time_start,time_end\na,1,x,1\n"],
            "found the times 'x' and '1'",
        ),
        (
            ["1.mp4"],
            ["label,youtube_id,time_start,time_end\na,1,inf,1\n"],
            "found the times 'inf' and '1'",
        ),
        (
            ["1.mp4"],
            [{"1": {"subset": "train", "annotations": {"label": "a", "segment": 5}}}],
            r"found the annotations \{'label': 'a', 'segment': 5\} of video 1, expected \{",
        ),
        (["1.mp4"], [{"a": True, "b": False}], "found a JSON object with the keys a, b, expected"),
        (["1.mp4"], ['1;"a\n2;b\n'], """a text whose first line is '1;"a', expected a Kinetics"""),
        (["1.mp4"], ["1;2\n" + '"' + 140_000 * "x"], "a text whose first line is '1;2', expected"),
        (
            ["1.mp4"],
            ['video,label\n1,"a\n2,b\n'],
            r"a file unreadable as CSV \(unexpected end of data\), expected a Kinetics",
        ),
        (
            ["1.mp4"],
            [[{"id": "1", "template": "a"}, 3]],
            "found no 'id' in entry 1, expected it in",
        ),
        (["1.mp4"], ["1 Holding\n", NUMBERS], "found no number for 1 classes of the annotations"),
        (
            ["1.mp4"],
            ["1 a\n", {"a": 1, "b": 3}],
            "found the numbers 1, 3 of classes, expected 0, 1",
        ),
        (
            ["1.mp4"],
            ["1 a\n", {"a": 0}, {"a": 0}],
            "found a second file of numbers of classes beside",
        ),
        (
            ["1.mp4"],
            ["[{]"],
            "annotations0: found a file unreadable as JSON .*, expected a Kinetics",
        ),
        (
            ["1.mp4"],
            [{"database": {}, "taxonomy": []}],
            "JSON object with the keys database, taxon",
        ),
        (
            ["1.mp4"],
            [[{"uid": 1, "z": 2}]],
            "found a JSON list of objects with the keys uid, z, exp",
        ),
        (["1.mp4"], ["one\ntwo\n"], "found a text whose first line is 'one', expected a Kinetics"),
        (
            ["1.mp4"],
            [""],
            "found an empty file, expected a Kinetics CSV or JSON file, a Something-",
        ),
        (["1.mp4"], [NUMBERS], "found only numbers of classes, expected annotations of videos"),
        (["1.mp4"], ["a\0 b"], "found a file that isn't text, expected a Kinetics"),
    ],
)
def test_what_does_not_fit_is_a_sentence(joined, tmp_path, videos, texts, message):
    with pytest.raises(UserError, match=message):
        joined(videos, *texts)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_did_not_match(tmp_path, capsys):
    write_manifest(
        tmp_path / "all.csv", [replace(ENTRY, path=f"{i}.mp4", labels={}) for i in range(5)]
    )
    (tmp_path / "list.txt").write_text("4.mp4 b\n9.mp4 a\n8.mp4 b\n")
    command = ["labels", str(tmp_path / "all.csv"), str(tmp_path / "list.txt")]
    command += ["--output", str(tmp_path / "train.csv"), "--name", "label_kind"]
    assert main(command) == 0
    assert capsys.readouterr().out.replace(f"{tmp_path}/", "").splitlines() == [
        "list.txt: lines path label, 3 annotations",
        "       4 videos without an annotation, left out: 0.mp4, 1.mp4, 2.mp4, ...",
        "       2 annotations without a video: 9, 8",
        "train.csv: 1 videos of 1 classes (label kind)",
    ]
    assert read_manifest(tmp_path / "train.csv").class_names == {"kind": ["a", "b"]}
    assert main([*command[:2], str(tmp_path / "nowhere"), *command[3:]]) == 2
    assert "nowhere: found no file, expected a Kinetics CSV" in capsys.readouterr().err
    assert main([*command[:2], str(tmp_path / "list.txt" / "x"), *command[3:]]) == 2
    assert "x: found no file, expected a Kinetics CSV" in capsys.readouterr().err


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    """Nobody's permissions stop root, under whom tests may run."""
    path = tmp_path / "list.txt"
    path.write_text("1.mp4 a\n")

    def denied(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(UserError, match=r"list\.txt: found a file that cannot be read \(Perm"):
        read_annotations(path)


def test_null_is_no_label(joined):
    """Neither in a list of Something-Something nor in the JSON of Kinetics."""
    found = joined(
        ["1.mp4", "2.mp4"], [{"id": "1", "template": "a"}, {"id": "2", "template": None}]
    )
    assert found == {"1.mp4": "a"}
    kinetics = {
        "b": {"subset": "train", "annotations": {"label": "run", "segment": [1, 11]}},
        "c": {"subset": "test", "annotations": None},
    }
    assert joined(["b.mp4", "c.mp4"], kinetics) == {"b.mp4": "run"}
