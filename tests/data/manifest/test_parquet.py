"""A manifest as a Parquet file."""

import sys
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.manifest.test_files import ENTRY
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.errors import UserError

OTHER_FACTS = ["fps", "width", "height", "codec", "size_bytes", "mtime_ns"]


def test_parquet_holds_what_csv_holds(tmp_path):
    inside = replace(ENTRY, path=str(tmp_path / "é, a.webm"), duration=1.5, gop=12, vfr=True)
    archived = replace(ENTRY, path="/elsewhere/0.tar::b.webm", labels={"digit": -1}, offset=0)
    for name in ("m.csv", "m.parquet"):
        write_manifest(tmp_path / name, [inside, archived])
    assert (tmp_path / "m.parquet").read_bytes()[:4] == b"PAR1"
    assert read_manifest(tmp_path / "m.parquet") == [inside, archived]
    assert read_manifest(tmp_path / "m.csv") == [inside, archived]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "m.parquet"]


def test_a_parquet_row_without_a_fact_is_rejected(tmp_path):
    table = pyarrow.table({"path": ["a"], "frames": [None]} | {name: [1] for name in OTHER_FACTS})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(UserError, match=r"m\.parquet, line 1: found frames = ''"):
        read_manifest(tmp_path / "m.parquet")


def test_bad_parquet_is_rejected(tmp_path):
    odd = replace(ENTRY, path="/a\udcff.webm")
    with pytest.raises(UserError, match="found a file name that is not UTF-8"):
        write_manifest(tmp_path / "m.parquet", [odd])
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="unreadable as Parquet"):
        read_manifest(tmp_path / "m.parquet")
    write_manifest(tmp_path / "m.parquet", [])
    with pytest.raises(UserError, match="found no video, expected"):
        read_manifest(tmp_path / "m.parquet")


def test_without_pyarrow_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"found that pyarrow cannot be imported .* a \.csv"):
        write_manifest(tmp_path / "m.parquet", [ENTRY])
    assert not list(tmp_path.iterdir())
