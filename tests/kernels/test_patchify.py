"""patchify against loops, and the patch embedding against a Conv3d."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.helpers.paths import REPOSITORY
from tests.rounding.accuracy import ROUNDING, assert_accurate
from vjepa_fast.kernels import PatchEmbed, patchify
from vjepa_fast.kernels.patchify import patchify_reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Roundings of scale (3), product, shift (3), sum and expectation, of numbers up to 4.4 and 2.6.
NEAR = (4 * 4.4 + 5 * 2.6) * ROUNDING

SIZES = {  # B, T', H', W', tubelet, patch
    "one patch": (1, 1, 1, 1, 2, 16),
    "odd": (3, 3, 2, 5, 3, 3),
    "one frame a tubelet": (2, 5, 1, 2, 1, 7),
    "one pixel a patch": (1, 2, 3, 3, 2, 1),
}
sizes = pytest.mark.parametrize("size", list(SIZES.values()), ids=list(SIZES))


def make(size, seed=0):
    b, t, h, w, tubelet, patch = size
    generator = torch.Generator().manual_seed(seed)
    shape = (b, t * tubelet, h * patch, w * patch, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def patches(video, tubelet, patch, mean=MEAN, std=STD):
    """One patch at a time, float64: [B · N, 3 · tubelet · patch²]."""
    channels = [torch.tensor(v, dtype=torch.float64)[:, None, None, None] for v in (mean, std)]
    rows = []
    for clip in video.double() / 255:
        for t in range(0, clip.shape[0], tubelet):
            for y in range(0, clip.shape[1], patch):
                for x in range(0, clip.shape[2], patch):
                    tube = clip[t : t + tubelet, y : y + patch, x : x + patch]
                    tube = tube.permute(3, 0, 1, 2)  # channel, frame, line, column
                    rows.append(((tube - channels[0]) / channels[1]).reshape(-1))
    return torch.stack(rows)


@sizes
def test_all_tokens(size):
    video, (tubelet, patch) = make(size), size[4:]
    out = patchify(video, patch_size=patch, tubelet_size=tubelet)
    assert out.dtype == torch.float32
    expected = patches(video, tubelet, patch).float()
    torch.testing.assert_close(out, expected, rtol=0, atol=NEAR)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@sizes
def test_kept_tokens(size, index_dtype):
    video, (tubelet, patch) = make(size), size[4:]
    every = patches(video, tubelet, patch).float()
    rows = torch.randint(0, len(every), (2 * len(every) + 1,)).to(index_dtype)  # with duplicates
    out = patchify(video, rows, patch_size=patch, tubelet_size=tubelet)
    torch.testing.assert_close(out, every[rows.long()], rtol=0, atol=NEAR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype):
    """Every pixel value in every channel: the nearest number, but for ties at fp32's precision."""
    video = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(1, 2, 16, 16, 3)
    out = patchify(video, dtype=dtype)
    assert out.dtype == dtype
    full = patchify(video)
    assert torch.equal(out, full.to(dtype))


def test_published_pixel_statistics():
    """Black and white by hand; channels are red, green, blue."""
    video = torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8)
    video[..., 1] = 255
    red, green, blue = patchify(video).view(3, -1)
    for found, expected in (
        (red, -0.485 / 0.229),
        (green, (1 - 0.456) / 0.224),
        (blue, -0.406 / 0.225),
    ):
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=NEAR)


def test_own_pixel_statistics():
    size = SIZES["odd"]
    mean, std = (0.1, 0.2, 0.3), (1.0, 0.5, 2.0)
    out = patchify(make(size), tubelet_size=3, patch_size=3, mean=mean, std=std)
    expected = patches(make(size), 3, 3, mean, std).float()
    torch.testing.assert_close(out, expected, rtol=0, atol=NEAR)


def test_embedding_of_kept_tokens_is_a_conv3d():
    conv, video = published(11, patch=8), make((2, 2, 3, 2, 2, 8))
    kept = torch.tensor([0, 5, 11, 12, 23, 7])
    rows = patchify(video, kept, patch_size=8, tubelet_size=2)
    ours = F.linear(rows, conv.weight.flatten(1), conv.bias)
    plain, exact = (embed(c, video).flatten(0, 1)[kept] for c in (conv, wide(conv)))
    assert_accurate(ours, plain, exact)


def test_strided_arguments():
    size = SIZES["odd"]
    video = make(size)
    channels_first = video.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    every_other = torch.stack([video, 255 - video], 2).flatten(1, 2)[:, ::2]
    rows = torch.arange(40)[::7]
    expected = patches(video, 3, 3).float()
    for strided in (channels_first, every_other):
        assert not strided.is_contiguous()
        out = patchify(strided, rows, patch_size=3, tubelet_size=3)
        torch.testing.assert_close(out, expected[rows], rtol=0, atol=NEAR)
        out = patchify(strided, patch_size=3, tubelet_size=3)
        torch.testing.assert_close(out, expected, rtol=0, atol=NEAR)


def test_channels_first():
    """[B, 3, T, H, W] is taken as it is; a shape that could be both has its channels last."""
    video = make(SIZES["odd"])
    first = video.permute(0, 4, 1, 2, 3).contiguous()
    expected = patchify(video, patch_size=3, tubelet_size=3)
    assert torch.equal(patchify(first, patch_size=3, tubelet_size=3), expected)
    both = make((2, 1, 2, 1, 3, 3))
    assert both.shape == (2, 3, 6, 3, 3)
    out = patchify(both, patch_size=3, tubelet_size=3)
    torch.testing.assert_close(out, patches(both, 3, 3).float(), rtol=0, atol=NEAR)


def test_nothing_kept():
    video = make(SIZES["odd"])
    out = patchify(video, torch.empty(0, dtype=torch.int64), patch_size=3, tubelet_size=3)
    assert out.shape == (0, 81)
    assert patchify(video[:0], patch_size=3, tubelet_size=3).shape == (0, 81)


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(*(st.integers(1, 3) for _ in range(6))),
    st.lists(st.integers(0, 10**6), max_size=6),
)
def test_any_size(size, picks):
    video, (tubelet, patch) = make(size), size[4:]
    every = patches(video, tubelet, patch).float()
    rows = torch.tensor([pick % len(every) for pick in picks], dtype=torch.int64)
    out = patchify(video, rows, patch_size=patch, tubelet_size=tubelet)
    torch.testing.assert_close(out, every[rows], rtol=0, atol=NEAR)


VIDEO = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
ROWS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: patchify(VIDEO.float()),
            "video: found dtype torch.float32, expected uint8",
        ),
        (
            lambda: patchify(VIDEO[0]),
            r"video: found shape \(4, 32, 32, 3\), expected \[B, T, H, W, 3\] or "
            r"\[B, 3, T, H, W\]",
        ),
        (
            lambda: patchify(VIDEO.permute(0, 1, 4, 2, 3)),
            r"video: found shape \(1, 4, 3, 32, 32\), expected \[B, T, H, W, 3\] or ",
        ),
        (
            lambda: patchify(VIDEO[:, :3]),
            "video: found 3 frames of 32x32, expected multiples of 2 frames and 16 pixels",
        ),
        (
            lambda: patchify(VIDEO[:, :, :, :20]),
            "video: found 4 frames of 32x20, expected multiples of 2 frames and 16 pixels",
        ),
        (
            lambda: patchify(VIDEO, patch_size=12, tubelet_size=4),
            "video: found 4 frames of 32x32, expected multiples of 4 frames and 12 pixels",
        ),
        (
            lambda: patchify(VIDEO, mean=(0.5,)),
            "mean, std: found 1 and 3 values, expected 3 each",
        ),
        (
            lambda: patchify(VIDEO, std=(0.2, 0.0, 0.2)),
            r"std: found \[0.2, 0.0, 0.2\], expected positive values",
        ),
        (lambda: patchify(VIDEO, std=(0.2, float("nan"), 0.2)), r"std: found \[0.2, nan, 0.2\]"),
        (
            lambda: patchify(VIDEO, dtype=torch.uint8),
            "dtype: found torch.uint8, expected float64, float32, bfloat16 or float16",
        ),
        (
            lambda: patchify(VIDEO, patch_size=0),
            "patch_size, tubelet_size: found 0 and 2, expected positive numbers",
        ),
        (lambda: patchify(VIDEO, tubelet_size=-2), "patch_size, tubelet_size: found 16 and -2, "),
        (lambda: patchify(VIDEO, ROWS[None]), r"rows: found shape \(1, 2\), expected \[R\]"),
        (lambda: patchify(VIDEO, ROWS.float()), "rows: found dtype torch.float32, expected int32"),
        (lambda: patchify(VIDEO, ROWS + 8), "rows: found entries 8 to 8, expected 0 to 7"),
        (lambda: patchify(VIDEO, ROWS - 1), "rows: found entries -1 to -1, expected 0 to 7"),
    ],
)
def test_rejected_arguments(call, message):
    with pytest.raises(ValueError, match="^" + message):
        call()


@pytest.mark.parametrize("row", [-1, -8, 8])
def test_the_reference_reads_no_other_row_where_nobody_looked(row):
    """As on a GPU; there PyTorch's refusal is an assertion of the device."""
    with pytest.raises(IndexError, match="out of"):
        patchify_reference(VIDEO, torch.tensor([0, row]), 16, 2, MEAN, STD, torch.float32)


def published(width, patch=16, tubelet=2):
    return nn.Conv3d(3, width, kernel_size=(tubelet, patch, patch), stride=(tubelet, patch, patch))


def wide(conv):
    """The convolution in float64."""
    return copy.deepcopy(conv).double()


def embed(conv, video, mean=MEAN, std=STD):
    """The convolution over a normalized video, in its dtype: [B, N, D]."""
    mean, std = (torch.tensor(v, dtype=conv.weight.dtype) for v in (mean, std))
    pixels = (video.to(conv.weight.dtype) / 255 - mean) / std
    return conv(pixels.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2)


def ours_of(conv, *arguments, **options):
    embed = PatchEmbed(conv.out_channels, *arguments, **options)
    embed.load_state_dict({f"proj.{name}": value for name, value in conv.state_dict().items()})
    return embed


def test_patch_embed_takes_a_published_weight():
    conv = published(24)
    ours = ours_of(conv)
    assert list(ours.state_dict()) == ["proj.weight", "proj.bias"]
    video = make((2, 2, 3, 2, 2, 16))
    plain, exact = embed(conv, video), embed(wide(conv), video)  # [B, N, D]
    assert_accurate(ours(video), plain, exact)
    assert_accurate(ours(video.permute(0, 4, 1, 2, 3)), plain, exact)
    rows = torch.tensor([23, 0, 7, 7])
    assert_accurate(ours(video, rows), plain.flatten(0, 1)[rows], exact.flatten(0, 1)[rows])


def test_patch_embed_trains_as_the_convolution():
    conv = published(5, patch=4, tubelet=1)
    exact = wide(conv)
    ours = ours_of(conv, patch_size=4, tubelet_size=1)
    video = make((2, 2, 2, 2, 1, 4))
    ours(video).square().sum().backward()
    assert ours.proj.weight.grad.shape == (5, 3, 1, 4, 4)
    for convolution in (conv, exact):
        embed(convolution, video).square().sum().backward()
    assert_accurate(ours.proj.weight.grad, conv.weight.grad, exact.weight.grad, factor=3)
    assert_accurate(ours.proj.bias.grad, conv.bias.grad, exact.bias.grad, factor=3)


def test_patch_embed_dtype():
    video = make(SIZES["one patch"])
    assert PatchEmbed(8).bfloat16()(video).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert PatchEmbed(8)(video).dtype == torch.bfloat16


def test_patch_embed_of_other_pixel_statistics():
    conv, video = published(8), make(SIZES["one patch"])
    own = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
    found = ours_of(conv, **own)(video)
    assert_accurate(found, embed(conv, video, **own), embed(wide(conv), video, **own))
    assert (found - embed(conv, video)).abs().max() > 1


OPS = torch.ops.vjepa_fast
CALL = (16, 2, list(MEAN), list(STD))


@pytest.mark.parametrize("rows", [None, torch.tensor([3, 0, 3])], ids=["all", "kept"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(rows, dtype):
    video = make((2, 1, 2, 1, 2, 16))
    for layout in (video, video.transpose(1, 3).contiguous().transpose(1, 3)):
        torch.library.opcheck(OPS.patchify, (layout, rows, *CALL, dtype))


LOADS_AND_STORES = """
import re
from tests.helpers.compile_kernels import compiled_instead_of_launched, declared

for layout in "last", "first":
    with compiled_instead_of_launched(90) as kernels:
        declared("VARIANTS")[f"patchify: channels {layout}, bfloat16"]()
    accesses = re.findall(r"(?:ld|st)\\.global\\S*?\\.((?:v\\d\\.)?b\\d+)", kernels[0].asm["ptx"])
    print(*sorted(accesses))
"""


def test_pixels_are_not_read_byte_by_byte():
    """An index; 24 bytes of pixels in three loads; 48 bytes of bfloat16 in three stores."""
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LOADS_AND_STORES],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last, first = done.stdout.splitlines()
    assert last.split() == ["b64"] * 4 + ["v4.b32"] * 3
    assert first.split() == ["b64"] + ["v2.b32"] * 3 + ["v4.b32"] * 3


def test_compiles_as_one_graph():
    """In one graph, for several numbers of rows."""
    embed = PatchEmbed(8)
    compiled = torch.compile(embed, backend="aot_eager", fullgraph=True)
    video = make((2, 1, 2, 1, 2, 16))
    for rows in (None, torch.tensor([3, 0]), torch.tensor([1, 2, 0]), torch.tensor([0] * 7)):
        torch.testing.assert_close(compiled(video, rows), embed(video, rows))
