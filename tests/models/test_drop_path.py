"""Drop path on the flat token axis, against a block that runs one clip at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.rounding.accuracy import assert_accurate
from vjepa_fast.models.activation_checkpointing import ActivationCheckpointing
from vjepa_fast.models.attention import sdpa
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import encode_clips
from vjepa_fast.models.positions import rotary_of, rotate
from vjepa_fast.models.sequences import SeqLayout, drop_path_factors

GRID, CLIPS, DEPTH = (2, 3, 3), 5, 3
# Of three blocks: nothing is dropped in the first; then all of a clip, one branch, or neither.
FACTORS = torch.ones(DEPTH, 2, CLIPS)
FACTORS[1] = torch.tensor([[0.0, 1.25, 0.0, 1.25, 1.25], [0.0, 0.0, 1.25, 1.25, 1.25]])
FACTORS[2] = torch.tensor([[2.0, 0.0, 0.0, 0.0, 2.0], [2.0, 0.0, 2.0, 0.0, 2.0]])


def make(positions: str, mode: ActivationCheckpointing = "none") -> VisionTransformer:
    torch.manual_seed(0)
    encoder = VisionTransformer(
        width=24,
        depth=DEPTH,
        heads=2,
        grid=GRID,
        patch_size=8,
        tubelet_size=2,
        positions=positions,
        activation_checkpointing=mode,
    )
    for block in encoder.blocks:  # branches that matter beside the stream
        block.attn.proj.weight.data.mul_(20)
        block.mlp.fc2.weight.data.mul_(20)
    return encoder


def clips() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (CLIPS, 4, 24, 24, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def plain(encoder: VisionTransformer, video: Tensor, dtype: torch.dtype) -> Tensor:
    """One clip after another; a dropped branch is not computed at all."""
    encoder = encoder.to(dtype)
    found = []
    for i, clip in enumerate(video):
        tokens, layout = encoder.all_tokens(clip[None])
        x = encoder.patch_embed(clip[None], None).view(-1, encoder.width)
        if encoder.rotary_form is None:
            x = x + encoder.positions.to(dtype)[tokens]
        rotary = rotary_of(tokens, GRID, GRID, encoder.rotary_form)
        for block, (attention, mlp) in zip(encoder.blocks, FACTORS[:, :, i].tolist(), strict=True):
            if attention:
                qkv = block.attn.split(block.norm1(x))
                qkv = qkv if rotary is None else rotate(qkv, rotary)
                x = x + attention * block.attn.merge(sdpa(qkv, layout))
            if mlp:
                x = x + mlp * block.mlp(block.norm2(x))
        found.append(encoder.norm(x))
    return torch.cat(found)


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_it_equals_a_block_that_runs_one_clip_at_a_time(positions: str) -> None:
    video = clips()
    found = encode_clips(make(positions), video, FACTORS)
    own = plain(make(positions), video, torch.float32)
    exact = plain(make(positions), video, torch.float64)
    assert (found - encode_clips(make(positions), video)).abs().max() > 0.1  # it does something
    assert_accurate(found, own, exact)


def gradients(mode: ActivationCheckpointing) -> list[Tensor]:
    encoder = make("rope_tiled", mode)
    encode_clips(encoder, clips(), FACTORS).square().mean().backward()
    return [parameter.grad for parameter in encoder.parameters()]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputed_blocks_drop_the_same(mode: ActivationCheckpointing) -> None:
    for found, expected in zip(gradients(mode), gradients("none"), strict=True):
        assert torch.equal(found, expected)


def test_ones_change_nothing_and_a_dropped_clip_passes_through() -> None:
    encoder, video = make("sincos"), clips()
    assert torch.equal(
        encode_clips(encoder, video, torch.ones(DEPTH, 2, CLIPS)), encode_clips(encoder, video)
    )
    block, layout = encoder.blocks[0], SeqLayout.of([3, 4])
    x = torch.randn(7, 24)
    factors = layout.per_row(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    found = block(x, layout, None, factors)
    assert torch.equal(found[:3], x[:3])
    assert not torch.equal(found[3:], x[3:])
    assert block.bfloat16()(x.bfloat16(), layout, None, factors).dtype == torch.bfloat16


def test_per_row() -> None:
    values = torch.arange(6.0).view(2, 3)
    assert SeqLayout.of([2, 2, 2]).per_row(values)[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert SeqLayout.of([1, 3, 2]).per_row(values)[1].tolist() == [3, 4, 4, 4, 5, 5]


def test_the_rate_rises_over_the_blocks_and_the_mean_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(5, 2, 20_000, generator=generator)
    factors = drop_path_factors(uniform, 0.4)
    assert factors.dtype == torch.float32
    for block, rate in enumerate((0.0, 0.1, 0.2, 0.3, 0.4)):
        kept = torch.tensor(1 / (1 - rate)).item()
        assert set(factors[block].unique().tolist()) <= {0.0, kept}
        share = (factors[block] == 0).double().mean().item()
        assert abs(share - rate) <= 5 * (rate * (1 - rate) / 40_000) ** 0.5
    assert torch.equal(drop_path_factors(uniform, 0.0), torch.ones_like(uniform))


@pytest.mark.slow
def test_compiled_blocks_drop_the_same() -> None:
    torch._dynamo.reset()
    plainly, compiled = make("rope_tiled"), make("rope_tiled")
    for block in compiled.blocks:
        block.compile(dynamic=True)
    exact = encode_clips(make("rope_tiled").double(), clips(), FACTORS.double())
    found = encode_clips(compiled, clips(), FACTORS)
    assert_accurate(found, encode_clips(plainly, clips(), FACTORS), exact)
