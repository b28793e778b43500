"""Planners and loaders that several data tests use."""

from dataclasses import replace

import numpy as np
import torch

from vjepa_fast.data.bad_clips import BadClips
from vjepa_fast.data.decode.dali import DaliDecoder
from vjepa_fast.data.decode.pyav import PyavDecoder
from vjepa_fast.data.loader import ClipLoader, make_loader
from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner

BACKENDS = ["dali", "pyav"]
DECODERS = {"dali": DaliDecoder, "pyav": PyavDecoder}
CPU = torch.device("cpu")


class Fixed(ClipPlanner):
    """Plans frames, crop and flip as given; sample id i is video i."""

    def __init__(self, manifest, frames, crop=(0.0, 0.0, 1.0, 1.0), flip=False):
        super().__init__(
            [read_manifest(manifest)], num_frames=len(frames), frame_step=1, augment=None
        )
        self._order = None
        self._fixed = {"frames": np.array(frames), "crop": crop, "flip": flip}

    def plan(self, sample_ids):
        return [replace(plan, **self._fixed) for plan in super().plan(sample_ids)]


def training(manifest, **changes):
    settings = {"num_frames": 6, "frame_step": 2, "augment": Augment(), "seed": 1}
    return ClipPlanner([read_manifest(manifest)], **settings | changes)


def one(planner, backend, size=48, sample_id=0):
    with make_loader(planner, [[sample_id]], size, backend) as batches:
        return next(batches).video[0].numpy()


def planned(manifest, fps=None):
    """Whole pictures of training clips, so that the numbers can be read."""
    augment = Augment(area=(1.0, 1.0), aspect_ratio=(64 / 48, 64 / 48), flip=False)
    return ClipPlanner(
        [read_manifest(manifest)], num_frames=4, frame_step=2, augment=augment, seed=3, fps=fps
    )


def load(planner, backend, batches, log=None, seconds=60.0, max_fraction=0.05):
    """The batches. `seconds` is the limit of a clip: few where one is to hang, yet many times what
    the others take on a slow machine."""
    decoder = DECODERS[backend](planner.entries, 48, CPU, 2, seconds)
    with ClipLoader(planner, batches, decoder, 2, BadClips(log, max_fraction)) as loader:
        return list(loader)
