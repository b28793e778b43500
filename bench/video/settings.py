"""The settings that bench/video/transcode.py compares: encoders, their options, GOPs."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vjepa_fast.data.prepare.encode import CODECS

os.environ["SVT_LOG"] = "1"  # of SVT-AV1: errors only
_ENCODER, _SUFFIX, _SHIPPED, _MUXING = CODECS["h264"]


@dataclass(frozen=True)
class Setting:
    """One way to encode a copy.

    Attributes:
        name: in the table.
        encoder, suffix, options, muxing: as in `encode.CODECS`.
        gop: frames from one key frame to the next.
    """

    name: str
    encoder: str
    suffix: str
    options: dict[str, str]
    muxing: dict[str, str]
    gop: int = 12


def _like_shipped(name: str, crf: float, gop: int = 12, **changes: str) -> Setting:
    options = _SHIPPED | {"crf": str(crf)} | changes
    return Setting(name, _ENCODER, _SUFFIX, options, _MUXING, gop)


def _plain(name: str, crf: float, gop: int = 12, params: str = "", **changes: str) -> Setting:
    """H.264 with CABAC and deblocking, without B-frames, unless `changes` say otherwise."""
    options = {"preset": "veryfast", "bf": "0", "sc_threshold": "0", "crf": str(crf)} | changes
    if params:
        options["x264-params"] = params
    return Setting(name, _ENCODER, _SUFFIX, options, _MUXING, gop)


# The quality of each (crf, qmin) is the one that gives about 40.5 dB with `sources.py`.
LOSSLESS = _plain("lossless", 0)
SETTINGS = [
    Setting("H.264, as shipped", *CODECS["h264"]),
    _like_shipped("same, GOP 8", 18.57, 8),
    _like_shipped("same, GOP 24", 18.37, 24),
    _like_shipped("same, GOP 48", 18.19, 48),
    _like_shipped("same, 7 B-frames, GOP 16", 17.56, 16, bf="7"),
    _like_shipped("same, preset medium", 20.17, preset="medium"),
    _plain("H.264, plain: no B-frames, CABAC, deblocking", 20),
    _plain("plain, GOP 1", 14.45, 1),
    _plain("plain, GOP 150", 19.47, 150),
    _plain("plain, no deblocking", 19.8, params="no-deblock=1"),
    _plain("plain, CAVLC", 20, coder="cavlc"),
    _plain("plain, neither (tune fastdecode)", 19.8, tune="fastdecode"),
    _plain("plain, up to 3 B-frames, some referred to", 18.79, bf="3"),
    _plain("plain, 3 B-frames, none referred to", 18.8, bf="3", params=_SHIPPED["x264-params"]),
    Setting("VP9", *CODECS["vp9"][:2], CODECS["vp9"][2] | {"crf": "32"}, {}),
    Setting("AV1", "libsvtav1", ".mp4", {"preset": "8", "crf": "30"}, _MUXING),
    Setting(
        "MJPEG", "mjpeg", ".mp4", {"strict": "unofficial", "qmin": "4", "qmax": "4"}, _MUXING, 1
    ),
]
