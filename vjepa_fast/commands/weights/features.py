"""`vjepa-fast features`: the features of videos from a trained encoder, into files."""

from __future__ import annotations

import argparse
import os

from vjepa_fast.commands.terminal import path_argument, positive_int
from vjepa_fast.errors import UserError

HELP = "compute features of videos with a trained encoder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "videos",
        type=path_argument,
        metavar="MANIFEST_OR_VIDEO",
        help="manifest (.csv, .parquet or .txt) or a video file",
    )
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        help="run or checkpoint folder, export, or published file",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        required=True,
        help="folder for the features; the same command continues where it was stopped",
    )
    parser.add_argument(
        "--pool",
        choices=["tokens", "mean"],
        default="tokens",
        help="store the features of all tokens of a clip, or their mean (default: tokens)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--clips",
        type=positive_int,
        default=1,
        help="clips of each video, spread evenly over it (default: 1, from its middle)",
    )
    which.add_argument(
        "--window-step",
        type=positive_int,
        metavar="FRAMES",
        help="instead, a clip starts at every FRAMES-th frame of the video (sliding windows)",
    )
    parser.add_argument(
        "--format",
        choices=["safetensors", "npz"],
        default="safetensors",
        help="format of the shards (default: safetensors)",
    )
    parser.add_argument(
        "--dtype",
        choices=["fp16", "bf16", "fp32"],
        default="fp16",
        help="type of the stored features (default: fp16, half the bytes of fp32, rounded to 1 "
        "part in 2048)",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=16, help="clips encoded at once (default: 16)"
    )
    parser.add_argument(
        "--workers", type=positive_int, help="decoding workers (default: one per core)"
    )
    parser.add_argument(
        "--backend",
        choices=["auto", "dali", "pyav"],
        help="decoder (default: auto on a GPU; pyav on a CPU, as load_encoder decodes)",
    )
    parser.add_argument(
        "--shard",
        type=_part,
        default=(0, 1),
        metavar="I/N",
        help="compute the I-th of N parts, I = 0 … N-1, e.g. in a job array; further processes of "
        "a launcher share that part",
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=_fraction,
        default=0.05,
        help="largest fraction of clips that may fail to decode (default: 0.05)",
    )
    parser.add_argument(
        "--picture",
        action="store_true",
        help="also draw the first three principal components of the features over the frames: "
        "components.png and components.mp4",
    )
    parser.add_argument(
        "--heads", type=positive_int, help="attention heads, if a file does not tell"
    )
    parser.add_argument(
        "--crop-size", type=positive_int, help="side of a clip in pixels, if other than in training"
    )
    parser.add_argument(
        "--num-frames", type=positive_int, help="frames of a clip, if other than in training"
    )
    parser.add_argument(
        "--generation",
        type=int,
        choices=[1, 2],
        help="for a published file that does not show it: 1 is V-JEPA, 2 is V-JEPA 2",
    )


def _part(text: str) -> tuple[int, int]:
    """Parse I/N for argparse."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected I/N with I from 0 to N-1")
    return int(index), int(count)


def _fraction(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0 to 1")
    return fraction


def run(options: argparse.Namespace) -> int:
    """Compute this process's part of the features and say what is there.

    Raises:
        UserError: see `load_encoder` and `extract`.
    """
    if options.format == "npz" and options.dtype == "bf16":
        raise UserError(
            "--dtype: found bf16 beside --format npz, expected fp16 or fp32, since NumPy has no "
            "bf16; change one of them"
        )
    import torch

    from vjepa_fast.inference.extract import extract, part_of_work
    from vjepa_fast.inference.load import load_encoder
    from vjepa_fast.inference.shard_work import Extraction

    index, count, local = part_of_work(os.environ, options.shard)
    devices = torch.cuda.device_count()
    encoder = load_encoder(
        options.checkpoint,
        device=f"cuda:{local % devices}" if devices else "cpu",
        heads=options.heads,
        crop_size=options.crop_size,
        num_frames=options.num_frames,
        generation=options.generation,
    )
    extraction = Extraction(
        clips=options.clips,
        window_step=options.window_step,
        pool=options.pool,
        dtype=options.dtype,
        file_format=options.format,
        batch_size=options.batch_size,
    )
    found = extract(
        options.videos,
        encoder,
        options.output,
        extraction,
        part=(index, count),
        num_workers=options.workers,
        backend=options.backend,
        max_bad_fraction=options.max_bad_fraction,
        picture=options.picture,
    )
    for picture in found.pictures:
        print(picture)
    folder = found.folder
    if found.done < folder.shards:
        print(
            f"{folder.path}: part {index} of {count} is done, {found.done} of {folder.shards} "
            "shards are there; index.csv is written with the last one"
        )
        return 0
    left_out = len(folder.left_out())
    tokens = " x ".join(map(str, encoder.grid)) + " tokens of " if options.pool == "tokens" else ""
    print(
        f"{folder.path}: index.csv and {folder.shards} shard{'s' * (folder.shards > 1)}, "
        f"{len(found.clips) - left_out} clips of {tokens}{encoder.width} features in "
        f"{options.dtype}" + (f"; {left_out} clips left out, see index.csv" if left_out else "")
    )
    return 0
