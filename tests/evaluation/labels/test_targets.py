"""Label columns of two manifests, as heads learn them."""

import logging
from pathlib import Path

import pytest
import torch

from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.labels.grid import Grid, make_heads
from vjepa_fast.evaluation.labels.targets import TEST, TRAIN, read_targets

HEADER = "path,frames,fps,width,height,codec,size_bytes,mtime_ns"


def manifest(path: Path, column: str, labels: list) -> Path:
    """A manifest whose files are there, but are no videos."""
    video = path.with_name("v.mp4")
    if not video.exists():
        video.touch()
    stat = video.stat()
    row = f"v.mp4,8,8.0,32,32,h264,{stat.st_size},{stat.st_mtime_ns}"
    lines = [f"{HEADER},{column}", *(f"{row},{label}" for label in labels)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def read(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)

    def of(train, test, column="label_a", test_column=None):
        paths = {
            TRAIN: manifest(tmp_path / "train.csv", column, train),
            TEST: manifest(tmp_path / "test.csv", test_column or column, test),
        }
        entries = {split: open_manifest(path) for split, path in paths.items()}
        (target,) = read_targets([column.partition("_")[2]], entries)
        return target

    return of


def test_any_integers_are_classes(read, caplog):
    """WordNet offsets and user ids; a test class that was never trained is -1, always wrong."""
    target = read([9_999_999_999, 7, 2_084_071, 7], [2_084_071, 3, 2**62, 7, 9_999_999_999])
    assert target.classes == (7, 2_084_071, 9_999_999_999)
    assert target.names == ("7", "2084071", "9999999999")
    assert target.truth[TRAIN].tolist() == [2, 0, 1, 0]
    assert target.truth[TEST].tolist() == [1, -1, -1, 0, 2]
    assert "found 2 of 5 videos of 2 classes of label_a that no training video has" in caplog.text
    assert target.chance == 1 / 5


def test_classes_by_name(read, caplog):
    target = read(["walk", "run", "jump", "run"], ["run", "walk", "walk"])
    assert set(target.names) == {"walk", "run", "jump"}
    train = [target.names[i] for i in target.truth[TRAIN].tolist()]
    test = [target.names[i] for i in target.truth[TEST].tolist()]
    assert train == ["walk", "run", "jump", "run"] and test == ["run", "walk", "walk"]
    assert "found no video of 1 of the 3 classes of label_a (jump); they do not" in caplog.text


def test_values_are_standardized_by_the_training_videos(read):
    target = read([1.0, 2.0, 3.0, 6.0], [3.0, 9.5], "value_ef")
    assert target.has_values and target.outputs == 1
    assert (target.mean, target.std) == (3.0, pytest.approx(3.5**0.5))
    learned = target.learned(TRAIN)
    assert learned.mean().abs() < 1e-6 and learned.square().mean() == pytest.approx(1)
    assert target.truth[TEST].tolist() == [3.0, 9.5]
    assert target.error_of_median == pytest.approx((1.0 + 7.5) / 2)


@pytest.mark.parametrize(
    ("train", "test", "columns", "sentence"),
    [
        ([4, 4], [4], ("label_a",), "found only the class 4 in label_a, expected two or more"),
        ([0, 1], [2, 3], ("label_a",), "found no class of .*train.csv in label_a but 2, 3, expec"),
        ([0, -1], [0], ("label_a",), "found 1 of 2 videos with a negative number in label_a"),
        ([0, 1], [0, -2], ("label_a",), r"test.csv: .* \(the lowest: -2\), expected 0 or more"),
        ([0, 1], [0, 1], ("label_a", "label_b"), "test.csv: found labels b, expected a; name labe"),
        ([0, 1], [0, 1], ("label_a", "value_a"), "test.csv: found value_a, expected label_a, whi"),
        ([2.5, 2.5], [1], ("value_a",), "found the same value_a 2.5 for all 2 videos, expected s"),
        (["x", "y"], [0, 1], ("label_a",), "found numbers in label_a, expected names of classes"),
        (["x", "y"], ["z"], ("label_a",), "found no class of .*train.csv in label_a but z, exp"),
    ],
)
def test_columns_that_do_not_fit(read, train, test, columns, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        read(train, test, *columns)
    assert "; " in str(refused.value) and "\n" not in str(refused.value)


def test_heads_are_all_combinations(read):
    target = read([0, 0, 0, 0, 1, 1, 1, 1], [0, 1])
    grid = Grid(shares=(0.5, 1.0), draws=2, lrs=(1e-3, 1e-2), weight_decays=(0.0, 0.1, 0.2))
    specs, labeled = make_heads([target], torch.arange(8), grid)
    assert len(specs) == len(labeled) == (2 + 1) * 6 and grid.choices == 6
    assert len(set(specs)) == len(specs)
    for spec, rows in zip(specs, labeled, strict=True):
        assert torch.bincount(target.truth[TRAIN][rows]).tolist() == [int(4 * spec.share)] * 2
    same = [rows for spec, rows in zip(specs, labeled, strict=True) if spec.share == 0.5]
    assert torch.equal(same[0], same[5]) and not torch.equal(same[0], same[6])


def test_held_out_videos_are_not_drawn(read):
    target = read([0, 1] * 6, [0, 1])
    rows = torch.tensor([1, 2, 5, 8, 10, 11])
    for balanced in (True, False):
        for drawn in make_heads([target], rows, Grid(shares=(0.5, 1.0), balanced=balanced))[1]:
            assert set(drawn.tolist()) <= set(rows.tolist())


def test_a_class_without_a_labeled_video_is_named(read, caplog):
    target = read([0] * 30 + [1], [0, 1])
    make_heads([target], torch.arange(31), Grid(shares=(0.1,), draws=1, balanced=False))
    assert (
        "label_a: found no labeled video of 1 of 2 classes in draw 0 of 10 % (1); no head can"
        in caplog.text
    )
