"""Encoder, predictor and loss: packed equals one by one; dropped tokens have no influence."""

import copy

import pytest
import torch
from torch.func import functional_call

from tests.rounding.accuracy import assert_accurate
from vjepa_fast.models.jepa import build_vjepa, encode_clips, feature_loss
from vjepa_fast.models.sequences import pack_masks

GRID, PATCH, TUBELET = (2, 3, 4), 4, 2
N = 24


def make_model(num_mask_tokens=2, predictor_heads=3, **options):
    """A tiny model whose biases, norms and mask tokens are away from where they start."""
    model = build_vjepa(
        encoder={"width": 24, "depth": 2, "heads": 2},
        predictor={"width": 12, "depth": 2, "heads": predictor_heads},
        grid=GRID,
        patch_size=PATCH,
        tubelet_size=TUBELET,
        num_mask_tokens=num_mask_tokens,
        **options,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.empty_like(p).normal_(std=0.2, generator=generator))
    return model


def make_video(clips, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (clips, GRID[0] * TUBELET, GRID[1] * PATCH, GRID[2] * PATCH, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def make_masks(lengths, seed=0):
    """Random masks [spec][clip] of (context, target) with these (context, target) lengths."""
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for spec in lengths:
        orders = [torch.randperm(N, generator=generator) for _ in spec]
        masks.append(
            [
                (order[:c].sort().values, order[c : c + t].sort().values)
                for order, (c, t) in zip(orders, spec, strict=True)
            ]
        )
    return masks


def pack(masks):
    flat = []
    for kind in (0, 1):
        sequences = [clip[kind] for spec in masks for clip in spec]
        flat.append(torch.cat(sequences))
        flat.append(torch.tensor([len(s) for s in sequences]).view(len(masks), -1))
    return pack_masks(*flat, N)


LENGTHS = {
    "equal": [[(5, 9)] * 3, [(2, 14)] * 3],
    "equal in a spec": [[(6, 18)] * 2, [(3, 21)] * 2, [(1, 1)] * 2],
    "ragged": [[(5, 9), (1, 20), (7, 3)], [(2, 14), (2, 14), (11, 13)]],
    "one clip": [[(4, 7)], [(9, 2)]],
}


def loss_one_by_one(model, video, features, masks, exponent):
    """Loss and gradients of clips and specs alone. Float64 weights make them exact but for what
    the model computes in fp32: positions and the loss."""
    specs, clips = len(masks), len(masks[0])
    parameters = dict(model.named_parameters())
    total = 0.0
    for m in range(specs):
        mask_token = parameters["predictor.mask_tokens"][m : m + 1]
        for b in range(clips):
            own = pack([[masks[m][b]]])
            arguments = (video[b : b + 1], own)
            one = functional_call(model, {"predictor.mask_tokens": mask_token}, arguments)
            loss = feature_loss(one, features[b * N : (b + 1) * N], own, exponent)
            total = total + loss / (specs * clips)
    return total.detach(), torch.autograd.grad(total, parameters.values())


@pytest.mark.parametrize(
    ("exponent", "positions"), [(1.0, "sincos"), (2.0, "sincos"), (1.0, "rope_tiled")]
)
@pytest.mark.parametrize("lengths", list(LENGTHS.values()), ids=list(LENGTHS))
def test_packed_loss_is_that_of_one_clip_and_spec_at_a_time(lengths, exponent, positions):
    """Loss and every gradient; each clip alone sees its own rows, features and mask token."""
    specs, clips = len(lengths), len(lengths[0])
    heads = 3 if positions == "sincos" else 2  # rotary positions need six channels of a head
    model = make_model(specs, positions=positions, predictor_heads=heads)
    video, masks = make_video(clips), make_masks(lengths)
    features = torch.randn(clips * N, 24, generator=torch.Generator().manual_seed(3))
    loss = feature_loss(model(video, pack(masks)), features, pack(masks), exponent)
    gradients = torch.autograd.grad(loss, model.parameters())
    plain = loss_one_by_one(model, video, features, masks, exponent)
    exact = loss_one_by_one(copy.deepcopy(model).double(), video, features, masks, exponent)
    assert_accurate(loss.detach(), plain[0], exact[0])
    for found, alone, wide in zip(gradients, plain[1], exact[1], strict=True):
        assert alone.abs().max() > 0
        assert_accurate(found, alone, wide, factor=3)


def test_encoder_ignores_dropped_tokens():
    """Whatever the pixels of the dropped tokens are: the same context, to the last bit."""
    model, video = make_model(), make_video(2)
    masks = make_masks([[(5, 9), (3, 20)], [(2, 14), (7, 7)]])
    packed = pack(masks)
    other = make_video(2, seed=9)
    for b in range(2):
        for token in torch.cat([spec[b][0] for spec in masks]).tolist():
            t, h, w = token // 12, token // 4 % 3, token % 4
            kept = (
                b,
                slice(t * TUBELET, (t + 1) * TUBELET),
                slice(h * PATCH, (h + 1) * PATCH),
                slice(w * PATCH, (w + 1) * PATCH),
            )
            other[kept] = video[kept]
    assert not torch.equal(video, other)
    assert torch.equal(model.context(video, packed), model.context(other, packed))
    other[kept] = 255 - other[kept]  # the last clip's last kept token, one of the second spec's
    same = (model.context(video, packed) == model.context(other, packed)).all(1)
    first, second = same[:8], same[8:]
    assert second[:2].all() and not second[2:].any()
    assert first[:5].all()


def test_encoder_on_all_tokens_is_the_encoder_of_whole_clips():
    """Each clip alone, and the rows in the raster's order."""
    model, video = make_model(), make_video(2)
    whole = encode_clips(model.encoder, video)
    assert whole.shape == (2 * N, 24)
    everything = torch.arange(N)
    masks = pack([[(everything, everything[:1])] * 2])
    exact = encode_clips(copy.deepcopy(model.encoder).double(), video)
    assert_accurate(model.context(video, masks), whole, exact)
    assert_accurate(encode_clips(model.encoder, video[1:]), whole[N:], exact[N:])


def test_the_prediction_depends_on_its_position_and_its_spec():
    model = make_model()
    context = torch.randn(5, 24)
    tokens = torch.arange(5)

    def predict(targets, spec):
        masks = pack([[(tokens, targets)]])
        token = model.predictor.mask_tokens[spec : spec + 1]
        return functional_call(model.predictor, {"mask_tokens": token}, (context, masks))

    here, there = torch.tensor([9]), torch.tensor([17])
    assert not torch.allclose(predict(here, 0), predict(there, 0), atol=1e-3)
    assert not torch.allclose(predict(here, 0), predict(here, 1), atol=1e-3)


def test_target_encoder_is_a_frozen_copy():
    model = make_model()
    teacher = model.make_target_encoder()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    own = dict(model.encoder.named_parameters())
    for name, p in teacher.named_parameters():
        assert torch.equal(p, own[name]) and p.data_ptr() != own[name].data_ptr()
    assert all(p.requires_grad for p in own.values()) and model.encoder.training


def bfloat16_parameters(model):
    """As an engine leaves it: parameters in bfloat16, the position tables in fp32."""
    for p in model.parameters():
        p.data = p.data.bfloat16()
    return model


def test_bfloat16_residual_stream_with_fp32_positions():
    exact, model = make_model(), bfloat16_parameters(make_model())
    assert model.encoder.positions.dtype == torch.float32
    dtypes, entering = [], []
    for block in (*model.encoder.blocks, *model.predictor.blocks):
        block.register_forward_hook(
            lambda _, inputs, out: dtypes.append((inputs[0].dtype, out.dtype))
        )
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    embedded = []
    model.encoder.patch_embed.register_forward_hook(lambda _, __, out: embedded.append(out))

    lengths = LENGTHS["ragged"]
    video, masks = make_video(3), pack(make_masks(lengths))
    features = torch.randn(3 * N, 24)
    loss = feature_loss(model(video, masks), features.bfloat16(), masks)
    assert dtypes == [(torch.bfloat16, torch.bfloat16)] * 4
    # added in fp32 and rounded once
    positions = model.encoder.positions[masks.context_tokens]
    assert torch.equal(entering[0], (embedded[0].float() + positions).bfloat16())

    assert loss.dtype == torch.float32
    exact_loss = feature_loss(exact(video, masks), features, masks)
    assert loss.item() == pytest.approx(exact_loss.item(), rel=0.02)
    loss.backward()
    exact_loss.backward()
    found, expected = (
        torch.cat([p.grad.flatten().float() for p in m.parameters()]) for m in (model, exact)
    )
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
    assert torch.cosine_similarity(found, expected, dim=0) > 0.99


def test_bfloat16_positions_work_as_well():
    """`module.to(torch.bfloat16)` casts buffers too."""
    model = make_model().to(torch.bfloat16)
    out = encode_clips(model.encoder, make_video(1))
    assert out.dtype == torch.bfloat16
    exact = encode_clips(make_model().encoder, make_video(1))
    assert torch.cosine_similarity(out.float(), exact, dim=1).min() > 0.99


def test_heads_must_divide_the_width():
    shape = {"width": 24, "depth": 1, "heads": 5}
    with pytest.raises(ValueError, match=r"^heads: found 5, expected a divisor of the width 24; "):
        build_vjepa(
            encoder=shape,
            predictor=shape,
            grid=GRID,
            patch_size=4,
            tubelet_size=2,
            num_mask_tokens=1,
        )
