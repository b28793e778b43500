"""Which backend decodes which videos."""

import sys
from dataclasses import replace

import pytest
import torch

from vjepa_fast.data.decode.backend import choose_backend, unsuited_to_dali
from vjepa_fast.data.manifest.entry import ManifestEntry, Seek
from vjepa_fast.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ENTRY = replace(
    ManifestEntry("/a.webm", 20, 25.0, 320, 240, "vp9", 1, 1, {}),
    seek=Seek.BY_STAMP,
    matrix=2,
    full_range=False,
)


@pytest.mark.parametrize(
    ("codecs", "device", "backend", "reason"),
    [
        (["vp9", "vp8", "mjpeg", "h264"], "cuda", "dali", "it decodes every video"),
        (["vp9", "prores"], "cuda", "dali", "PyAV decodes 1 of 2 videos: 1 prores, such as "),
        (
            ["vp9", "prores", "mpeg2video", "prores"],
            "cuda",
            "pyav",
            "DALI decodes only 1 of 4 videos on cuda, the others are 1 mpeg2video, 2 prores, such ",
        ),
        (["prores"], "cuda", "pyav", "DALI decodes none of the videos on cuda: 1 prores"),
        (["vp9", "vp8", "mjpeg"], "cpu", "pyav", "it takes less time than DALI on a CPU"),
        (["h264"], "cpu", "pyav", "it takes less time than DALI on a CPU"),
    ],
)
def test_auto_takes_dali_on_a_gpu_for_half_of_the_videos_or_more(codecs, device, backend, reason):
    entries = [replace(ENTRY, codec=codec) for codec in codecs]
    name, why = choose_backend("auto", entries, torch.device(device))
    assert name == backend and reason in why
    assert choose_backend("pyav", entries, torch.device(device)) == ("pyav", "as configured")


def test_pictures_too_small_for_the_gpus_decoder_go_to_pyav():
    small = replace(ENTRY, width=320, height=96)
    name, why = choose_backend("auto", [small], CUDA)
    assert name == "pyav" and "1 vp9 smaller than the 128 px" in why and small.path in why
    assert choose_backend("dali", [small], CPU)[0] == "dali"
    large = replace(small, height=128)
    assert choose_backend("auto", [large], CUDA)[0] == "dali"


def test_images_go_to_pyav():
    image = replace(ENTRY, codec="mjpeg", frames=1)
    name, why = choose_backend("auto", [image], CUDA)
    assert name == "pyav" and "1 images" in why
    assert choose_backend("auto", [replace(image, frames=2)], CUDA)[0] == "dali"


def test_without_dali_auto_takes_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # makes the import fail
    name, why = choose_backend("auto", [ENTRY], CUDA)
    assert name == "pyav" and "nvidia.dali cannot be imported" in why
    with pytest.raises(UserError, match=r"nvidia\.dali cannot be imported"):
        choose_backend("dali", [ENTRY], CPU)


def test_dali_is_rejected_where_it_can_decode_nothing():
    entries = [replace(ENTRY, codec="h264")]
    with pytest.raises(UserError, match=r"decodes none .* on cpu: 1 h264.*set data\.backend"):
        choose_backend("dali", entries, CPU)


@pytest.mark.parametrize(
    ("device", "colors", "kind"),
    [
        ("cpu", {"matrix": 5, "full_range": True}, ""),
        ("cpu", {"matrix": 6}, ""),
        ("cpu", {"matrix": 1}, "1 vp9 in other colors than BT.601's"),
        ("cpu", {"matrix": 0}, "1 vp9 in other colors than BT.601's"),
        ("cpu", {"matrix": None}, "1 with unknown colors (index their folder again)"),
        ("cuda", {"matrix": 1}, ""),
        ("cuda", {"matrix": 9, "codec": "hevc", "full_range": True}, ""),
        ("cuda", {"matrix": 9, "full_range": True}, "1 vp9 of full range"),
        ("cuda", {"codec": "h264", "full_range": None}, "1 h264 of full range"),
        ("cuda", {"matrix": 0, "codec": "hevc"}, "1 hevc in RGB or gray"),
        ("cuda", {"matrix": None}, "1 with unknown colors (index their folder again)"),
    ],
)
def test_what_dali_shows_in_wrong_colors_goes_to_pyav(device, colors, kind):
    entries = [ENTRY, replace(ENTRY, path="/b.webm", **colors), ENTRY]
    unsuited, why = unsuited_to_dali(entries, torch.device(device))
    assert unsuited.tolist() == [False, bool(kind), False]
    assert why == (f"{kind}, such as /b.webm" if kind else "")


def test_a_manifest_without_colors_is_pyavs():
    name, why = choose_backend("auto", [replace(ENTRY, matrix=None, full_range=None)] * 2, CUDA)
    assert name == "pyav" and "2 with unknown colors (index their folder again)" in why


def test_videos_whose_frames_dali_would_count_otherwise_go_to_pyav():
    """DALI numbers frames by time stamp, and takes a stream of its own choice."""
    entries = [ENTRY, *(replace(ENTRY, seek=seek) for seek in (None, Seek.NEVER, Seek.BY_ORDER))]
    unsuited, kinds = unsuited_to_dali([*entries, replace(ENTRY, stream=0)], CPU)
    assert unsuited.tolist() == [False, True, True, True, True]
    assert kinds.startswith("1 of several streams, 3 without usable time stamps, such as ")
