"""Features of all videos of a manifest, or of one video, into a folder of shards."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vjepa_fast.data.bad_clips import MAX_BAD_FRACTION
from vjepa_fast.data.decode.backend import Backend
from vjepa_fast.data.loader import make_decoder
from vjepa_fast.data.manifest.entries import Entries
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.inference.clips import ClipList, check_length, inspect_video
from vjepa_fast.inference.draw import draw_components
from vjepa_fast.inference.encoder import VideoEncoder
from vjepa_fast.inference.feature_folder import FeatureFolder, require_space
from vjepa_fast.inference.shard_work import Extraction, ShardWork
from vjepa_fast.training.distributed.launcher import launch_environment

MANIFESTS = (".csv", ".parquet", ".txt")
_LESS = "choose another --output, or store less (--pool mean, --dtype fp16, fewer clips)"
log = logging.getLogger("vjepa_fast")


@dataclass(frozen=True)
class Extracted:
    """What a process has done.

    Attributes:
        folder: of the features.
        clips: all clips of the videos.
        done: shards that are complete, of all processes.
        pictures: files that this one drew.
    """

    folder: FeatureFolder
    clips: ClipList
    done: int
    pictures: tuple[Path, ...] = ()


def part_of_work(
    environment: Mapping[str, str], part: tuple[int, int] = (0, 1)
) -> tuple[int, int, int]:
    """Which shards are this process's: every n-th from the i-th on.

    Args:
        environment: with RANK and WORLD_SIZE, or of `srun`; the processes share this part.
        part: (i, n) of a job of several.

    Returns:
        i, n, and the process's number on its host.

    Raises:
        UserError: the variables contradict each other or are of an unsupported launcher.
    """
    found = dict(environment)
    if "RANK" in found or "WORLD_SIZE" in found:  # nobody is met, so these need not be there
        found = {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} | found
    found = launch_environment(found, devices=0)
    rank, world, local = (int(found[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    index, count = part
    return index * world + rank, count * world, local


def open_source(path: Path) -> Entries:
    """The videos of a manifest (by its ending), or a single one.

    Raises:
        UserError: see `open_manifest` and `inspect_video`.
    """
    if path.suffix.lower() in MANIFESTS:
        return open_manifest(path)
    return inspect_video(path)


def extract(
    source: Path,
    encoder: VideoEncoder,
    output: Path,
    extraction: Extraction,
    *,
    part: tuple[int, int] = (0, 1),
    num_workers: int | None = None,
    backend: Backend | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    picture: bool = False,
) -> Extracted:
    """Compute this process's shards that are not there yet.

    A video of a manifest that is shorter than a clip, or that cannot be decoded, is left out, with
    a warning and a row in the index.

    Args:
        source: a manifest or a video.
        encoder: on its device.
        output: the folder, see `feature_folder`.
        extraction: what is computed.
        part: (i, n): every n-th shard from the i-th on.
        num_workers: processes that decode; None: one for each core.
        backend: the decoder, see `make_loader`; None: "auto" on a GPU, else "pyav", with which
            `VideoEncoder` decodes.
        max_bad_fraction: largest fraction of the clips that may fail to decode.
        picture: the 0-th part also draws the features, see `draw_components`.

    Raises:
        UserError: no usable video; all shorter than a clip; too many that do not decode; an output
            folder of something else; too little disk; features that are not finite or that the
            dtype cannot hold.
    """
    clips = ClipList(
        open_source(source), encoder.sampling, extraction.clips, extraction.window_step
    )
    check_length(clips)
    planner = ClipPlanner.in_order(
        clips.entries, num_frames=encoder.num_frames, frame_step=1
    )  # for its digest, and for the decoder
    work = ShardWork(encoder, clips, extraction, max_bad_fraction)
    backend = backend or ("auto" if encoder.device.type == "cuda" else "pyav")
    settings = {"videos": planner.digest, **work.settings, "backend": backend}
    own = range(part[0], work.shards, part[1])
    if not output.exists():  # else the command that stores less would find other settings there
        require_space(output, sum(map(work.shard_bytes, own)), _LESS)
    folder = FeatureFolder.open(output, settings, work.shards, extraction.file_format)
    todo = [shard for shard in own if not folder.is_done(shard)]
    drawing = picture and part[0] == 0
    if todo:
        require_space(output, sum(map(work.shard_bytes, todo)), _LESS)
        if clips.short.any():
            log.warning(
                "%s: %d of %d videos are shorter than a clip (%s) and left out, such as %s",
                source,
                clips.short.sum(),
                len(clips.short),
                encoder.sampling.in_words,
                clips.entries[int(clips.short.argmax())].path,
            )
    pictures: list[Path] = []
    if todo or drawing:
        workers = num_workers or len(os.sched_getaffinity(0))
        decoder = make_decoder(planner, encoder.crop_size, backend, encoder.device, workers)
        with closing(decoder):
            work.run(folder, todo, decoder)
            if drawing:
                pictures = draw_components(clips, encoder, decoder, output)
    return Extracted(folder, clips, folder.finish(), tuple(pictures))
