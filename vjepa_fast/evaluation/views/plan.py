"""Which views of a video an evaluation sees: temporal segments x spatial crops, or random ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.plan.crops import (
    Augment,
    center_view,
    largest_centered,
    random_crops,
    random_flips,
)
from vjepa_fast.data.plan.planner import frames_of_ids
from vjepa_fast.errors import UserError
from vjepa_fast.inference.clips import Sampling

_EPOCHS, _ROWS = 2**16, 2**40  # of which no two (epoch, row, segment) share an id


@dataclass(frozen=True)
class ViewPlan:
    """The clips of each video: `segments` in time, each seen in `views` parts of the picture.

    The positions where a clip fits are divided into `segments` equal parts. To test, clip s starts
    in the middle of part s. To train, with `augment`, it starts anywhere in part s and shows a
    random resized crop, which other segments do not share, and there is one view. An image repeats
    in all frames and in all segments; a video shorter than a clip repeats its last frame.

    Attributes:
        sampling: frames and size of a clip.
        segments: S (V-JEPA, appendix D: 8 for Kinetics, 2 for Something-Something).
        crops: squares as large as the shorter side, evenly spread along the longer one: with 3 both
            ends and the middle, with 1 the middle. One crop of an image is the published models'
            `center_view`, as in their evaluation of images.
        augment: random crops and flips. A flip changes labels such as directions.
        seed: of all random choices.

    Raises:
        UserError: sizes that make no view, or augmented views with several crops.
    """

    sampling: Sampling
    segments: int = 1
    crops: int = 1
    augment: Augment | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, found in (("segments", self.segments), ("crops", self.crops)):
            if not 1 <= found < 100:
                raise UserError(f"{name}: found {found}, expected 1 to 99; choose e.g. 1")
        if self.augment and self.crops > 1:
            raise UserError(
                f"crops: found {self.crops} with random crops, expected 1; leave one of them out"
            )

    @property
    def settings(self) -> dict:
        """All that the views of given videos depend on, as JSON data."""
        sampling = self.sampling
        return {
            "num_frames": sampling.num_frames,
            "frame_step": None if sampling.fps else sampling.frame_step,
            "fps": sampling.fps,
            "crop_size": sampling.crop_size,
            "segments": self.segments,
            "crops": self.crops,
            "augment": None if self.augment is None else asdict(self.augment),
            "seed": None if self.augment is None else self.seed,
        }

    def plans(self, entries: Entries, rows: np.ndarray, epoch: int = 0) -> list[ClipPlan]:
        """The clips of some videos: a pure function of (seed, epoch, row, segment).

        Args:
            entries: the videos.
            rows: numbers of videos, int64 [n].
            epoch: changes random views only.

        Returns:
            n x crops x segments plans, segments fastest. The crops of a segment share its frames.
        """
        rows = np.asarray(rows, dtype=np.int64)
        video = np.repeat(rows, self.segments)
        segment = np.tile(np.arange(self.segments), len(rows))
        ids = (epoch % _EPOCHS * _ROWS // self.segments + video) * self.segments + segment
        counts, heights, widths = (
            entries.column(name)[video].astype(np.int64) for name in ("frames", "height", "width")
        )
        seed = None if self.augment is None else self.seed
        shown = {row: entries[row] for row in rows.tolist()}
        windows = self.sampling.windows(self.segments)
        of_videos = [shown[i] for i in video.tolist()]
        frames = list(frames_of_ids(windows, ids, counts, of_videos, seed))
        images = np.array([entry.is_image for entry in of_videos], dtype=bool)
        boxes = self._boxes(ids, heights, widths, images)
        sizes = np.stack([heights, widths, heights, widths], axis=1)
        flips = random_flips(self.seed, ids, self.augment)
        return [
            ClipPlan(
                sample_id=int(video[i]),
                path=shown[int(video[i])].path,
                video=int(video[i]),
                frames=frames[i],
                crop=tuple((box[i] / sizes[i]).tolist()),
                flip=bool(flips[i]),
                labels={},
            )
            for first in range(0, len(ids), self.segments)
            for box in boxes
            for i in range(first, first + self.segments)
        ]

    def _boxes(
        self, ids: np.ndarray, heights: np.ndarray, widths: np.ndarray, images: np.ndarray
    ) -> list[np.ndarray]:
        """(top, left, height, width) in pixels, int64 [n, 4], for each crop."""
        if self.augment is not None:
            return [random_crops(self.seed, ids, heights, widths, self.augment)]
        if self.crops == 1:
            center = center_view(heights, widths, self.sampling.crop_size)
            return [np.where(images[:, None], center, largest_centered(heights, widths))]
        return [side_view(heights, widths, number, self.crops) for number in range(self.crops)]


def side_view(heights: np.ndarray, widths: np.ndarray, number: int, crops: int) -> np.ndarray:
    """The number-th of `crops` squares along the longer side of pictures (V-JEPA, appendix D).

    Their side is the shorter side of the picture, so resizing them to the crop size makes that
    side's length the crop size. They are spread in steps of whole pixels, as in the public code.

    Args:
        heights, widths: of the pictures, in pixels, int64 [n].
        number: 0 .. crops - 1, from the left, or from the top.
        crops: at least 2.

    Returns:
        (top, left, height, width) in pixels, int64 [n, 4].
    """
    side = np.minimum(heights, widths)
    start = number * ((np.maximum(heights, widths) - side) // (crops - 1))
    tall = heights > widths
    return np.stack([np.where(tall, start, 0), np.where(tall, 0, start), side, side], axis=1)
