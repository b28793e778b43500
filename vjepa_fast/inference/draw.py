"""Draws clips and the first three principal components of their features: a PNG and a video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import ColorRange
from PIL import Image, ImageDraw
from torch import Tensor

from vjepa_fast.data.decode.backend import Decoder
from vjepa_fast.data.decode.color import BT601
from vjepa_fast.data.manifest.replaced import replaced_atomically
from vjepa_fast.errors import UserError
from vjepa_fast.inference.clips import ClipList, decode_ahead
from vjepa_fast.inference.encoder import VideoEncoder
from vjepa_fast.pictures import GAP, PrincipalColors, font_of, titled

PNG, MP4 = "components.png", "components.mp4"
CLIPS, BYTES = 32, 2**29  # at most, of which the components are computed; all are in the video
ROWS, COLUMNS = 5, 8  # clips and frames of the PNG, at most
WIDTH, SIDE = 1040, 256  # pixels of the PNG, and of a frame in it, at most
MOVIE_SIDE = 256  # in the video, at least
BAND = 20  # pixels of text above a clip
_NETWORKS = {"target_encoder": "the target encoder", "encoder": "the encoder"}


@dataclass(frozen=True)
class _Drawn:
    """A clip to draw.

    Attributes:
        name: of its file, and its place in it.
        video: uint8 [T, S, S, 3].
        tokens: [T', H', W', D], on the host.
    """

    name: str
    video: Tensor
    tokens: Tensor


def draw_components(
    clips: ClipList, encoder: VideoEncoder, decoder: Decoder, folder: Path
) -> list[Path]:
    """Write components.png and components.mp4 about a sample of the clips, evenly spaced.

    All clips have one basis, so that a color means the same in each. In the video, each clip is
    beside its components.

    Args:
        clips: to draw from; those of short videos are passed over.
        encoder: on its device.
        decoder: of the clips.
        folder: for the files.

    Returns:
        the files.

    Raises:
        UserError: none of the sample can be decoded.
    """
    sample = list(_sample(clips, encoder, decoder))
    if not sample:
        raise UserError(
            f"{folder}: found no clip to draw that decodes, expected one; leave out --picture"
        )
    colors = PrincipalColors.of(torch.cat([clip.tokens.flatten(0, 2) for clip in sample]))
    source = encoder.source.resolve().name
    title = f"Features of {_NETWORKS[encoder.network]} of {source}"
    explained = (
        f"Below each clip, the first three principal components as red, green and blue "
        f"({colors.variance:.0%} of the variance)"
    )
    pages = [_page_rows(clip, colors) for clip in _spread(sample, ROWS)]
    pixels = titled(np.concatenate(pages), f"{title}\n{explained}")
    with replaced_atomically(folder / PNG, binary=True) as file:
        Image.fromarray(pixels).convert("RGB").save(file, "PNG")
    _write_movie(folder / MP4, sample, colors, _rate(clips, encoder))
    return [folder / PNG, folder / MP4]


def _spread(items: list, count: int) -> list:
    """At most `count` of the items, evenly spaced."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def _sample(clips: ClipList, encoder: VideoEncoder, decoder: Decoder) -> Iterator[_Drawn]:
    """Decode and encode the clips to draw, one at a time."""
    tokens, height, width = encoder.grid
    size = 4 * tokens * height * width * encoder.width
    size += 3 * encoder.num_frames * encoder.crop_size**2
    usable = np.flatnonzero(~clips.short[clips.video_of]).tolist()
    chosen = _spread(usable, max(1, min(CLIPS, BYTES // size)))
    plans = ([clips.plan(clip)] for clip in chosen)
    for (plan,), video, failures in decode_ahead(plans, decoder):
        if failures:
            continue
        name = os.fsencode(os.path.basename(plan.path)).decode(errors="replace")
        several = len(clips) > len(clips.entries)
        name += f", clip {clips.number[plan.sample_id]}" if several else ""
        found = encoder.encode(video)
        yield _Drawn(name, video[0].cpu(), found.maps[0].cpu())


def _rate(clips: ClipList, encoder: VideoEncoder) -> Fraction:
    """Frames per second at which the clips show time as it passed, within 2 … 30."""
    sampling = encoder.sampling
    video_rate = float(np.median(clips.entries.column("fps"))) or 8.0
    rate = sampling.fps or video_rate / sampling.frame_step
    return Fraction(min(max(rate, 2.0), 30.0)).limit_denominator(1000)


def _resized(pictures: Tensor, side: int) -> Tensor:
    """uint8 [n, H, W, 3] to [n, side, side, 3]."""
    whole = side % pictures.shape[1] == 0
    mode = {"mode": "nearest"} if whole else {"mode": "bilinear", "antialias": True}
    small = F.interpolate(pictures.permute(0, 3, 1, 2).float(), (side, side), **mode)
    return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _components(clip: _Drawn, colors: PrincipalColors, side: int) -> Tensor:
    """The components of each tubelet at the size of a frame: uint8 [T', side, side, 3]."""
    values = torch.from_numpy(colors(clip.tokens)).permute(0, 3, 1, 2)
    smooth = F.interpolate(values, (side, side), mode="bilinear")
    return (255 * smooth).round().to(torch.uint8).permute(0, 2, 3, 1)


def _page_rows(clip: _Drawn, colors: PrincipalColors) -> np.ndarray:
    """A clip's name, frames, and components below them: uint8 RGBA [height, width, 4]."""
    count = clip.tokens.shape[0]
    times = _spread(list(range(count)), COLUMNS)
    side, own = min(SIDE, WIDTH // len(times) - GAP), clip.video.shape[1]
    side = max(side // own, 1) * own if own <= side else side  # whole multiples stay sharp
    tubelet = len(clip.video) // count
    frames = _resized(clip.video[[t * tubelet for t in times]], side)
    shown = _components(clip, colors, side)[times]
    width = len(times) * (side + GAP) - GAP
    page = np.full((BAND + 2 * (side + GAP), width, 4), 255, np.uint8)
    page[:BAND, :, :3] = _text(clip.name, width, BAND)
    for i in range(len(times)):
        left = i * (side + GAP)
        page[BAND : BAND + side, left : left + side, :3] = frames[i]
        page[BAND + side : BAND + 2 * side, left : left + side, :3] = shown[i]
    return page


def _text(text: str, width: int, height: int) -> np.ndarray:
    """A line of text, black on white, cut at its end: uint8 [height, width, 3]."""
    font = font_of(height * 0.65)
    band = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(band).text((GAP, height / 2), text, "black", font, anchor="lm")
    return np.asarray(band)


def _write_movie(path: Path, sample: list[_Drawn], colors: PrincipalColors, rate: Fraction) -> None:
    hidden = path.with_name(f".{path.name}")
    try:
        with av.open(str(hidden), "w", "mp4", options={"movflags": "faststart"}) as container:
            stream = None
            for clip in sample:
                for picture in _movie_frames(clip, colors):
                    if stream is None:
                        stream = container.add_stream(
                            "libx264", rate, options={"crf": "16", "preset": "veryfast"}
                        )
                        stream.pix_fmt = "yuv420p"
                        stream.height, stream.width = picture.shape[:2]
                        stream.codec_context.colorspace = BT601
                        stream.codec_context.color_range = ColorRange.MPEG
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def _movie_frames(clip: _Drawn, colors: PrincipalColors) -> Iterator[np.ndarray]:
    """Frames beside their components below the clip's name: uint8 [even, even, 3]."""
    side = clip.video.shape[1] * max(1, -(-MOVIE_SIDE // clip.video.shape[1]))
    side += side % 2
    frames, shown = _resized(clip.video, side), _components(clip, colors, side)
    tubelet, band = len(clip.video) // len(shown), 2 * round(side / 20)
    for t, frame in enumerate(frames):
        text = _text(f"{clip.name}, frame {t + 1} of {len(frames)}", 2 * side, band)
        both = np.concatenate([frame.numpy(), shown[t // tubelet].numpy()], axis=1)
        yield np.concatenate([text, both])
