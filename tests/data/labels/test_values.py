"""Columns `value_<name>`: numbers to predict by regression."""

from dataclasses import replace

import numpy as np
import pytest

from tests.data.manifest.test_files import ENTRY
from vjepa_fast.data.manifest.entries import Entries, entries_of
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.errors import UserError

VIDEOS = [
    replace(ENTRY, path=f"/{i}.mp4", values={"ef": value, "angle": -i})
    for i, value in enumerate([0.1, 1e-300, 55.25])
]


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_values_are_written_and_read_exactly(tmp_path, name):
    write_manifest(tmp_path / name, VIDEOS)
    entries = read_manifest(tmp_path / name)
    assert entries == VIDEOS and entries.value_names == ["ef", "angle"]
    assert entries.label_names == ["digit"]
    column = entries.column("value_ef")
    assert column.dtype == np.float64 and column.tolist() == [0.1, 1e-300, 55.25]
    assert entries.take([2])[0].values == {"ef": 55.25, "angle": -2}


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), ""])
def test_values_are_finite_numbers(tmp_path, name, value):
    if name == "m.parquet" and value == "":
        value = None  # a missing one
    write_manifest(tmp_path / name, [*VIDEOS, replace(VIDEOS[0], values={"ef": value, "angle": 0})])
    line = 5 if name == "m.csv" else 4
    with pytest.raises(UserError, match=f"line {line}: found value_ef = .*, expected a finite"):
        read_manifest(tmp_path / name)


def test_a_truth_is_no_number(tmp_path):
    write_manifest(tmp_path / "m.parquet", [replace(v, values={"ef": True}) for v in VIDEOS])
    with pytest.raises(UserError, match="line 1: found value_ef = True, expected a finite number"):
        read_manifest(tmp_path / "m.parquet")


def test_every_video_has_the_same_values(tmp_path):
    with pytest.raises(UserError, match=r"found values \[\], expected \['angle', 'ef'\] as in the"):
        write_manifest(tmp_path / "m.csv", [*VIDEOS, ENTRY])


def test_joined_entries_have_the_values_that_all_have():
    more = [replace(ENTRY, values={"x": 1.0, "angle": 2.0})]
    joined = Entries.joined([entries_of(VIDEOS), entries_of(more)])
    assert joined.value_names == ["angle"]
    assert joined.column("value_angle").tolist() == [0, -1, -2, 2]
