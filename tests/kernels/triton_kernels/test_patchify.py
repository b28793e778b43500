"""patchify's kernel against a reshape of the normalized video."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rounding.accuracy import ROUNDING
from vjepa_fast.kernels import patchify
from vjepa_fast.kernels.patchify import readable_as_words

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Roundings of scale (3), product, shift (3) and sum, of numbers up to 4.5 and 2.7.
NEAR = (4 * 4.5 + 4 * 2.7) * ROUNDING
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
SIZES = {  # B, T', H', W', tubelet, patch
    "one patch": (1, 1, 1, 1, 2, 16),
    "64 patches": (2, 2, 4, 4, 2, 16),
    "63 patches": (3, 3, 1, 7, 2, 16),
    "of 8": (2, 2, 3, 2, 3, 8),
    "odd": (3, 3, 2, 5, 3, 3),
    "of 14": (1, 2, 3, 2, 1, 14),
    "one pixel a patch": (1, 2, 3, 3, 2, 1),
}
sizes = pytest.mark.parametrize("size", list(SIZES.values()), ids=list(SIZES))
layouts = pytest.mark.parametrize("layout", ["last", "first", "every other", "offset", "flipped"])


def make(device, size):
    b, t, h, w, tubelet, patch = size
    generator = torch.Generator().manual_seed(0)
    shape = (b, t * tubelet, h * patch, w * patch, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def expected(video, size):
    """All patches in float64, channels last."""
    b, t, h, w, tubelet, patch = size
    mean, std = (torch.tensor(v, dtype=torch.float64, device=video.device) for v in (MEAN, STD))
    pixels = (video.double() / 255 - mean) / std
    pixels = pixels.view(b, t, tubelet, h, patch, w, patch, 3).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return pixels.flatten(0, 3).flatten(1)


def call(video, size, rows=None, dtype=torch.float32):
    return patchify(video, rows, tubelet_size=size[4], patch_size=size[5], dtype=dtype)


def check(found, exact):
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=NEAR)


@sizes
def test_values(device, size):
    video = make(device, size)
    every = expected(video, size)
    check(call(video, size), every)
    for index_dtype in (torch.int32, torch.int64):
        rows = torch.randint(0, len(every), (5,)).to(device, index_dtype)
        check(call(video, size, rows), every[rows.long()])


@dtypes
def test_half_precision_is_rounded_once(device, dtype):
    """Every pixel value in every channel."""
    video = torch.arange(256, dtype=torch.uint8, device=device).view(1, 1, 16, 16, 1)
    video = video.expand(1, 2, 16, 16, 3)
    out = patchify(video, dtype=dtype)
    assert out.dtype == dtype
    assert torch.equal(out, patchify(video).to(dtype))


@layouts
@pytest.mark.parametrize("size", [SIZES["odd"], SIZES["of 8"]], ids=["odd", "of 8"])
def test_layouts(device, layout, size):
    video = make(device, size)
    strided = {
        "last": video,
        "first": video.permute(0, 4, 1, 2, 3).contiguous(),
        "every other": torch.stack([video, 255 - video], 2).flatten(1, 2)[:, ::2],
        "offset": torch.cat([video[..., :1], video], -1)[..., 1:],
        "flipped": video.transpose(2, 3).contiguous().transpose(2, 3),
    }[layout]
    every = expected(video, size)
    rows = torch.arange(0, len(every), 7, device=device).repeat_interleave(2)[::2]
    check(call(strided, size), every)
    check(call(strided, size, rows), every[rows])


@pytest.mark.parametrize("shift", range(9))
def test_words_are_read_only_where_they_are_aligned(device, shift):
    size = SIZES["of 8"]
    video = make(device, size)
    memory = torch.zeros(video.numel() + 9, dtype=torch.uint8, device=device)
    shifted = memory[shift : shift + video.numel()].view_as(video).copy_(video)
    aligned = shifted.data_ptr() % 8 == 0
    assert readable_as_words(shifted, 8) == aligned
    rows = torch.tensor([0, 5, 23], device=device)
    check(call(shifted, size, rows), expected(video, size)[rows])


def test_a_still_clip_is_expanded(device):
    """Frames of stride 0."""
    size = (2, 2, 1, 1, 2, 16)
    video = make(device, size)[:, :1].expand(-1, 4, -1, -1, -1)
    check(call(video, size), expected(video.contiguous(), size))


@pytest.mark.parametrize("axis", range(5), ids=["clip", "frame", "line", "column", "channel"])
def test_strides_past_two_to_the_31st_byte(device, axis):
    """The offset of the last pixel along an axis exceeds 32 bits; its stride may not."""
    size = (3, 1, 1, 1, 3, 3)
    strides = [81, 27, 9, 3, 1]
    strides[axis] = 2**30 + 8
    far = torch.empty(0, dtype=torch.uint8, device=device)
    # never touched but for the pixels, so a CPU hands out no pages
    far.set_(torch.UntypedStorage(2**31 + 1024, device=device), 0, (3,) * 5, strides)
    video = make(device, size)
    check(call(far.copy_(video), size), expected(video, size))


def test_rows_outside_the_video_are_not_read(device):
    size = SIZES["of 14"]
    video = make(device, size)
    rows = torch.tensor([3, -1, 12, 11, 2**40, -(2**40)], device=device)
    found = call(video, size, rows)
    assert found.isnan().all(1).tolist() == [False, True, True, False, True, True]
    check(found[[0, 3]], expected(video, size)[[3, 11]])
    assert call(video[:0], size, rows).isnan().all()


def test_the_switch_makes_it_an_error(device, monkeypatch):
    monkeypatch.setenv("VJEPA_FAST_CHECK_INDEX", "1")
    size = SIZES["of 14"]
    with pytest.raises(ValueError, match=r"^rows: found entries 3 to 12, expected 0 to 11"):
        call(make(device, size), size, torch.tensor([3, 12], device=device))


def test_nothing_kept(device):
    size = SIZES["odd"]
    video = make(device, size)
    assert call(video, size, torch.empty(0, dtype=torch.int64, device=device)).shape == (0, 81)
    assert call(video[:0], size).shape == (0, 81)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.tuples(*(st.integers(1, 2) for _ in range(4)), st.integers(1, 3), st.integers(1, 9)),
    st.lists(st.integers(0, 10**6), max_size=6),
    st.booleans(),
)
def test_any_size(device, size, picks, first):
    video = make(device, size)
    every = expected(video, size)
    rows = torch.tensor([pick % len(every) for pick in picks], dtype=torch.int64, device=device)
    if first and video.shape[1] != 3 and video.shape[3] != 3:
        video = video.permute(0, 4, 1, 2, 3).contiguous()
    check(call(video, size, rows), every[rows])
