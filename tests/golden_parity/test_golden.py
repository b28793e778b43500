"""The shipped code reproduces numbers of the published implementation (see check_golden.py)."""

from pathlib import Path

import numpy as np
import pytest

from tests import check_golden
from tests.helpers.paths import GOLDEN


@pytest.mark.parametrize(
    "name",
    [
        "multiblock_tiny",
        "clipped_nonuniform_tiny",
        "rope_tiny",
        "attentive_probe",
        "mask_statistics",
        "position_embedding",
    ],
)
def test_golden_file(name: str) -> None:
    items = check_golden.check(GOLDEN / f"{name}.npz")
    assert items
    assert [item for item in items if not item.ok] == []


@pytest.mark.parametrize(
    ("name", "array", "item"),
    [
        ("attentive_probe", "logits", "logits"),
        ("position_embedding", "D1024_grid14_depth8_uniform1/values", "D1024_grid14"),
        ("clipped_nonuniform_tiny", "final/predictor/backbone.mask_tokens.1", "final predictor"),
        ("clipped_nonuniform_tiny", "final/target_encoder/backbone.norm.bias", "final target"),
        ("clipped_nonuniform_tiny", "step0/grad/encoder/backbone.norm.weight", "gradients"),
        ("rope_tiny", "other/target_features", "target features at another size"),
        ("rope_tiny", "final/predictor/backbone.mask_tokens.0", "final predictor"),
    ],
)
def test_a_changed_number_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, array: str, item: str
) -> None:
    with np.load(GOLDEN / f"{name}.npz") as data:
        arrays = dict(data)
    arrays[array] = arrays[array] + 1e-3
    np.savez(tmp_path / "changed.npz", **arrays)
    assert check_golden.main([str(tmp_path / "changed.npz")]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert failed
    assert all(item in line for line in failed)


def test_a_nan_is_found(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with np.load(GOLDEN / "clipped_nonuniform_tiny.npz") as data:
        arrays = dict(data)
    name = "final/encoder/backbone.norm.bias"
    arrays[name] = np.full_like(arrays[name], np.nan)
    np.savez(tmp_path / "nan.npz", **arrays)
    assert check_golden.main([str(tmp_path / "nan.npz")]) == 1
    assert "nan" in capsys.readouterr().out


def test_other_files_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    whole = (GOLDEN / "attentive_probe.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:4000])
    with np.load(GOLDEN / "attentive_probe.npz") as data:
        np.savez(tmp_path / "part.npz", **{n: data[n] for n in data.files if n != "logits"})
    for name in ("other.npz", "text.npz", "missing.npz", "cut.npz", "part.npz"):
        assert check_golden.main([str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.count(name) == 1 or name == "missing.npz"
        assert "expected" in error
