"""The picture and the video of the features' principal components."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import videos
from tests.inference.folders import features, read
from vjepa_fast import load_encoder
from vjepa_fast.inference import draw
from vjepa_fast.pictures import PrincipalColors, font_of


def test_components_hold_the_largest_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 40, 6, generator=generator) @ torch.randn(6, 12, generator=generator)
    colors = PrincipalColors.of(tokens)
    rows = torch.nn.functional.layer_norm(tokens, (12,)).flatten(0, 1).double().numpy()
    _, singular, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    held = (singular[:3] ** 2).sum() / (singular**2).sum()
    assert colors.variance == pytest.approx(held, rel=1e-5) and 0.5 < held < 1
    cosines = np.abs(directions[:3] @ colors.directions.double().numpy())
    np.testing.assert_allclose(cosines, np.eye(3), atol=1e-4)
    shown = colors(tokens)
    assert shown.shape == (3, 40, 3) and shown.min() == 0 and shown.max() == 1
    np.testing.assert_array_equal(colors(tokens[1]), shown[1])  # one basis for all clips


def test_the_picture_shows_the_components_of_all_clips(
    runs: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = videos.write_numbered(tmp_path, "vp9", 40)
    arguments = ["--window-step", "8", "--dtype", "fp32", "--picture"]
    assert features(path, runs[1], tmp_path / "f", *arguments) == 0
    printed = capsys.readouterr().out
    png, mp4 = tmp_path / "f" / "components.png", tmp_path / "f" / "components.mp4"
    assert str(png) in printed and str(mp4) in printed

    _, tokens = read(tmp_path / "f")
    colors = PrincipalColors.of(tokens)(tokens).reshape(5, 2, 4, 4, 3)
    clips = [load_encoder(runs[1]).read_clip(path)]  # the middle one is the third of five
    page = np.asarray(Image.open(png)).astype(int)
    side, pitch = 252, draw.BAND + 2 * 256  # 28 pixels nine times
    assert page.shape[1] == 2 * side + 4
    title = page.shape[0] - 5 * pitch
    assert title > 20 and (page[:title].min(), page[:title].max()) == (0, 255)
    for clip, t in ((0, 0), (2, 1), (4, 1)):
        top, left = title + clip * pitch + draw.BAND, t * (side + 4)
        if clip == 2:
            frame = page[top : top + side : 9, left : left + side : 9]
            np.testing.assert_array_equal(frame, clips[0][2 * t].numpy())
        shown = page[top + side : top + 2 * side, left : left + side]
        centers = (np.arange(4) * 2 + 1) * side // 8
        middle = [shown[centers + i][:, centers + j] for i in (-1, 0) for j in (-1, 0)]
        np.testing.assert_allclose(np.mean(middle, axis=0), 255 * colors[clip, t], atol=6)

    with av.open(str(mp4)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12.5  # 25 frames a second, every second one
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 5 * 4
    height, width = frames[0].shape[:2]
    assert width == 2 * 280 and height == 280 + 28
    right = frames[4 * 2 + 3][28:, 280:].astype(float)  # the last frame of the third clip
    blocks = right.reshape(4, 70, 4, 70, 3)[:, 33:37, :, 33:37].mean((1, 3))
    np.testing.assert_allclose(blocks, 255 * colors[2, 1], atol=12)


def test_many_clips_are_drawn_from_a_bounded_sample(
    runs: dict, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = 4 * 32 * 24 + 3 * 4 * 28**2
    monkeypatch.setattr(draw, "BYTES", 3 * clip)
    shown = []
    original = draw._page_rows

    def noted(clip: draw._Drawn, colors: PrincipalColors) -> np.ndarray:
        shown.append(clip.name)
        return original(clip, colors)

    monkeypatch.setattr(draw, "_page_rows", noted)
    assert features(demo / "test.csv", runs[2], tmp_path / "f", "--picture", "--shard", "1/2") == 0
    assert not shown  # another part draws
    assert features(demo / "test.csv", runs[2], tmp_path / "f", "--picture", "--shard", "0/2") == 0
    assert [int(Path(name).stem) for name in shown] == [0, 8, 15]
    pictures = {p.name for p in (tmp_path / "f").glob("components.*")}
    assert pictures == {"components.png", "components.mp4"}
    before = (tmp_path / "f" / "index.csv").read_bytes()
    assert features(demo / "test.csv", runs[2], tmp_path / "f", "--picture") == 0
    assert (tmp_path / "f" / "index.csv").read_bytes() == before


@pytest.mark.parametrize("letter", "éßΩЖ")
def test_the_font_has_letters_beyond_ascii(letter: str) -> None:
    font, absent = font_of(12), "\U0010fffe"
    assert bytes(font.getmask(letter)) != bytes(font.getmask(absent))
