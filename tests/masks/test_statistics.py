"""The sampler against the masks that the published implementation drew."""

import json

import numpy as np
import pytest

from tests.golden_parity.masks import check_mask_statistics
from tests.helpers.paths import GOLDEN

RECORDED = GOLDEN / "mask_statistics.npz"


def test_recorded_statistics():
    checks = check_mask_statistics(RECORDED)
    assert len(checks) == 3 * 8
    assert {item: error for item, error, tolerance in checks if not error <= tolerance} == {}


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"num_blocks": 7}, "mean of keep_per_clip"),
        ({"max_temporal_keep": 0.9}, "visible_probability"),
        ({"aspect_ratio": [0.75, 2.0]}, "block sizes"),
    ],
    ids=str,
)
def test_another_recipe_fails(tmp_path, change, failing):
    """The check can fail: the same recording under a config that is slightly off."""
    with np.load(RECORDED) as arrays:
        file = {name: arrays[name] for name in arrays.files if name.startswith("short_range/")}
    config = json.loads(str(file["short_range/config"]))
    file["short_range/config"] = np.array(json.dumps(config | change))
    np.savez(tmp_path / "other.npz", **file)
    checks = check_mask_statistics(tmp_path / "other.npz")
    assert any(error > tolerance for item, error, tolerance in checks if failing in item)


def test_a_file_of_another_form_is_rejected(tmp_path):
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    with pytest.raises(ValueError, match="expected mask statistics"):
        check_mask_statistics(tmp_path / "other.npz")
