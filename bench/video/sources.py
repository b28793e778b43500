"""Videos with the texture of photographs, a camera's motion and its noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch

SIZE = 480, 640  # height and width
FPS, FRAMES = 30, 150
NOISE = 4.0  # standard deviation, gray levels
# As a video from the web: compressed, with B-frames and few key frames.
_OPTIONS = {"preset": "medium", "crf": "23"}


def write_sources(folder: Path, count: int = 3) -> list[Path]:
    """Write `count` videos of `FRAMES` frames, H.264, and return their paths.

    Each shows one of three photographs by a camera that pans, turns, zooms and shakes, and part of
    another one on a disc that moves by itself. The light changes slowly.
    The photographs are scikit-learn's two samples and matplotlib's.
    """
    photographs = _photographs()
    paths = []
    for i in range(count):
        path = folder / f"{i}.mp4"
        behind, before = photographs[i % 3], photographs[(i + 1) % 3]
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options=_OPTIONS)
            stream.height, stream.width = SIZE
            stream.pix_fmt = "yuv420p"
            for frame in _frames(behind, before, np.random.default_rng(i)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        paths.append(path)
    return paths


def _photographs() -> list[torch.Tensor]:
    """float32 [1, 3, H, W] each, in gray levels."""
    import matplotlib
    from matplotlib.image import imread
    from sklearn.datasets import load_sample_images

    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    pictures = [*load_sample_images().images, imread(portrait)]
    return [torch.tensor(picture).permute(2, 0, 1)[None].float() for picture in pictures]


def _frames(
    behind: torch.Tensor, before: torch.Tensor, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] each."""
    height, width = SIZE
    phase = random.uniform(0, 2 * np.pi, 8)
    noise = random.normal(0, NOISE, (2 * height, 2 * width, 3)).astype(np.float32)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for i in range(FRAMES):
        s = i / FPS
        sway = np.sin(np.array([0.45, 0.37, 0.5, 0.6, 1.1, 0.8, 9, 11]) * s + phase)
        place = 0.3 * sway[:2] + 0.008 * sway[6:]
        shown = _view(behind, place, 0.62 + 0.12 * sway[2], 0.05 * sway[3])
        on_disc = _view(before, np.array([0.1 * np.sin(s), 0.1]), 0.7, 0.3 * sway[3])
        distance = np.hypot(
            columns - width * (0.5 + 0.35 * sway[4]), rows - height * (0.5 + 0.3 * sway[5])
        )
        edge = (0.22 * height - distance).clip(-1, 1).astype(np.float32)
        frame = (
            torch.lerp(shown, on_disc, torch.from_numpy(edge / 2 + 0.5))[0].permute(1, 2, 0).numpy()
        )
        top, left = random.integers(0, (height, width))
        frame = (1 + 0.06 * sway[2]) * frame + noise[top : top + height, left : left + width]
        yield frame.clip(0, 255).astype(np.uint8)


def _view(picture: torch.Tensor, place: np.ndarray, zoom: float, angle: float) -> torch.Tensor:
    """What a camera sees of a picture: float32 [1, 3, H, W].

    Args:
        picture: float32 [1, 3, h, w].
        place: (x, y) of the view's middle, from -1 to 1 over the picture.
        zoom: width of the view as a share of the picture's.
        angle: turn in radians.
    """
    height, width = SIZE
    shape = picture.shape[3] / picture.shape[2] * height / width
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.concatenate([zoom * turn * np.array([1, shape]), place[:, None]], axis=1)
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(matrix[None]).float(), (1, 3, height, width), align_corners=False
    )
    return torch.nn.functional.grid_sample(
        picture, grid, padding_mode="reflection", align_corners=False
    )
