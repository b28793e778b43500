"""The manifest as a CSV file."""

from dataclasses import replace

import pytest

from vjepa_fast.data.manifest.entry import ManifestEntry
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
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
        ("path,", "file,", "found no column path"),
        ("30,", "thirty,", "line 2: found frames = 'thirty', expected int"),
        ("vp9,1234", "vp9", "line 2: found too few or too many columns"),
        (",3,", ",,", "line 2: found label_digit = '', expected a label for every video"),
        (",3,", ",3.0,", "line 2: found label_digit = '3.0', expected an integer or a name"),
        (",3,", ",nan,", "line 2: found label_digit = 'nan', expected an integer or a name"),
        (",0.5,", ",inf,", "line 2: found value_ef = 'inf', expected a finite number"),
        (",0.5,", ",,", "line 2: found value_ef = '', expected a finite number"),
        (",30,", ",0,", "found no frames or no size"),
    ],
)
def test_a_malformed_manifest_is_rejected(tmp_path, old, new, message):
    path = tmp_path / "m.csv"
    write_manifest(path, [replace(ENTRY, values={"ef": 0.5})])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_manifest(path)


def test_a_missing_or_empty_manifest_is_rejected(tmp_path):
    with pytest.raises(UserError, match="found no manifest"):
        read_manifest(tmp_path / "m.csv")
    write_manifest(tmp_path / "m.csv", [])
    with pytest.raises(UserError, match="found no video, expected"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_bytes(b"")
    with pytest.raises(UserError, match="found no video, expected"):
        read_manifest(tmp_path / "m.csv")


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
