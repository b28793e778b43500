"""The second generation's networks: rotary positions, and features as `transformers` has them."""

import pytest
import torch

from tests.models.test_jepa import make_masks, pack
from vjepa_fast.config.networks import ENCODER_PRESETS
from vjepa_fast.models.activation_checkpointing import run_blocks
from vjepa_fast.models.cost import encoder_parameters, predictor_parameters
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.models.jepa import build_vjepa, encode_clips
from vjepa_fast.models.positions import Rotary, rotate
from vjepa_fast.models.predictor import Predictor
from vjepa_fast.models.sequences import pack_masks

IMAGENET_MEAN = torch.tensor((0.485, 0.456, 0.406))
IMAGENET_STD = torch.tensor((0.229, 0.224, 0.225))


def randomized(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.empty_like(p).normal_(std=0.1, generator=generator))
    return module


def make_encoder(positions, *, grid=(2, 3, 4), width=48, heads=2, dtype=torch.float32):
    torch.manual_seed(0)
    encoder = VisionTransformer(
        width=width,
        depth=2,
        heads=heads,
        grid=grid,
        patch_size=4,
        tubelet_size=2,
        positions=positions,
    )
    return randomized(encoder).to(dtype)


def make_video(grid, clips=1, patch=4, seed=0):
    t, h, w = grid
    generator = torch.Generator().manual_seed(seed)
    shape = (clips, 2 * t, patch * h, patch * w, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def as_transformers(state, width):
    """Our encoder's weights in the names of `transformers`."""
    theirs = {}
    for name, value in state.items():
        name = name.replace("patch_embed.", "embeddings.patch_embeddings.")
        name = name.replace("blocks.", "layer.").replace("attn.", "attention.")
        name = f"layernorm{name[4:]}" if name.startswith("norm.") else name
        if ".qkv." in name:
            for part, third in zip(("query", "key", "value"), value.split(width), strict=True):
                theirs[f"encoder.{name.replace('qkv', part)}"] = third
        else:
            theirs[f"encoder.{name}"] = value
    return theirs


@pytest.mark.parametrize("positions", ["rope_tiled", "rope"])
def test_without_gradients_positions_rotate_in_place_to_the_same_bits(positions):
    qkv = torch.randn(24, 3, 2, 24, generator=torch.Generator().manual_seed(0))
    rotary = Rotary(torch.arange(24), (2, 3, 4), positions)
    own = qkv.clone()
    recorded = rotate(own, rotary)
    assert torch.equal(own, qkv)
    with torch.no_grad():
        assert rotate(own, rotary) is own
    assert torch.equal(own, recorded)
    encoder, video = make_encoder(positions), make_video((2, 3, 4), clips=2)
    with torch.no_grad():
        features = encode_clips(encoder, video)
    assert torch.equal(features, encode_clips(encoder, video).detach())


@pytest.mark.parametrize(
    ("width", "heads", "depth", "side", "frames", "mlp_ratio"),
    [
        (128, 2, 2, 5, 3, 4.0),  # heads of 64, 4 of them unrotated
        (160, 2, 1, 3, 4, 3.0),  # heads of 80, 2 unrotated
        (88, 2, 3, 4, 2, 48 / 11),  # heads of 44, 2 unrotated; ViT-g's MLP
    ],
)
def test_features_are_those_of_transformers(width, heads, depth, side, frames, mlp_ratio):
    """Ours in fp32 are at most twice as far from those in fp64 as those of `transformers` are."""
    from transformers import VJEPA2Config, VJEPA2Model

    ours = randomized(
        VisionTransformer(
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            grid=(frames, side, side),
            patch_size=8,
            tubelet_size=2,
            positions="rope_tiled",
        ),
        seed=width,
    )
    theirs = VJEPA2Model(
        VJEPA2Config(
            patch_size=8,
            crop_size=8 * side,
            frames_per_clip=2 * frames,
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=depth,
            mlp_ratio=mlp_ratio,
            pred_num_hidden_layers=1,
        )
    ).eval()
    missing, unexpected = theirs.load_state_dict(
        as_transformers(ours.state_dict(), width), strict=False
    )
    assert not unexpected and all(name.startswith("predictor.") for name in missing)
    video = make_video((frames, side, side), clips=2, patch=8)
    pixels = ((video / 255 - IMAGENET_MEAN) / IMAGENET_STD).movedim(-1, 2)
    with torch.no_grad():
        found = encode_clips(ours, video)
        expected = theirs(pixels, skip_predictor=True).last_hidden_state.flatten(0, 1)
        exact = theirs.double()(pixels.double(), skip_predictor=True).last_hidden_state
    exact = exact.flatten(0, 1)
    assert exact.std() > 0.1
    error, plain = (found - exact).abs().max(), (expected - exact).abs().max()
    assert error <= 2 * plain + 1e-6, f"{error:.2e} against {plain:.2e}"


@pytest.mark.parametrize(("positions", "same"), [("rope", True), ("rope_tiled", False)])
def test_only_the_true_rotation_does_not_see_a_shift(positions, same):
    """Encoder and predictor on tokens that are moved by (1, 2, 1) in a grid that is not square."""
    grid, moved_by = (4, 6, 5), (1 * 6 + 2) * 5 + 1
    encoder = make_encoder(positions, grid=grid, dtype=torch.float64)
    predictor = randomized(
        Predictor(
            encoder_width=48,
            width=24,
            depth=2,
            heads=2,
            grid=grid,
            num_mask_tokens=1,
            positions=positions,
        )
    ).double()
    places = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(4))
    tokens = (places[:, 0] * 6 + places[:, 1]) * 5 + places[:, 2]
    context, target = tokens[::2], tokens[1::2]
    x = torch.randn(len(context), 48, dtype=torch.float64)
    outputs = []
    for shift in (0, moved_by):
        seqlens = torch.tensor([[len(context)]]), torch.tensor([[len(target)]])
        masks = pack_masks(context + shift, seqlens[0], target + shift, seqlens[1], 120)
        rotary = Rotary(masks.context_tokens, grid, encoder.rotary_form)
        with torch.no_grad():
            blocks = run_blocks(encoder.blocks, x, masks.context_layout, "none", rotary)
            outputs.append((blocks, predictor(x, masks)))
    for first, second in zip(*outputs, strict=True):
        assert torch.allclose(first, second, rtol=0, atol=1e-5) == same


@pytest.mark.parametrize("positions", ["rope", "rope_tiled"])
def test_rotary_positions_take_clips_of_any_size(positions):
    """An encoder built for another grid gives the same features, to the last bit."""
    video = make_video((3, 2, 5), clips=2)
    fitting = make_encoder(positions, grid=(3, 2, 5))
    other = make_encoder(positions, grid=(1, 7, 7))
    with torch.no_grad():
        assert torch.equal(encode_clips(fitting, video), encode_clips(other, video))


def test_a_position_table_takes_shorter_clips_only():
    encoder = make_encoder("sincos", grid=(3, 2, 5))
    fitting = make_encoder("sincos", grid=(2, 2, 5))
    with torch.no_grad():
        video = make_video((2, 2, 5))
        assert torch.equal(encode_clips(encoder, video), encode_clips(fitting, video))
    for grid in ((4, 2, 5), (3, 5, 2), (3, 2, 6)):
        size = r" x ".join(map(str, grid))
        with pytest.raises(ValueError, match=f"^video: found clips of {size} tokens, expected 3 x"):
            encode_clips(encoder, make_video(grid))


def test_all_specs_share_the_mask_token_of_the_length():
    masks = make_masks([[(5, 9), (3, 20)], [(2, 14), (7, 7)]])
    flat, lengths = [], []
    for kind in (0, 1):
        sequences = [clip[kind] for spec in masks for clip in spec]
        flat.append(torch.cat(sequences))
        lengths.append(torch.tensor([len(s) for s in sequences]).view(2, 2))
    arguments = (flat[0], lengths[0], flat[1], lengths[1], 24)
    own, shared = pack(masks), pack_masks(*arguments, mask_token=3)
    is_mask = own.predictor_source >= len(flat[0])
    assert set(own.predictor_source[is_mask].tolist()) == {17, 18}
    assert set(shared.predictor_source[is_mask].tolist()) == {17 + 3}
    assert torch.equal(own.predictor_source[~is_mask], shared.predictor_source[~is_mask])


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        # counted by `transformers` for the published shapes, without its nine unused mask tokens
        ("vit_large", 303_885_312),
        ("vit_huge", 631_648_000),
        ("vit_giant", 1_012_173_952),
        ("vit_gigantic", 1_843_923_840),
    ],
)
def test_parameters_of_the_published_models(name, encoder):
    from transformers import VJEPA2Config, VJEPA2Model

    shape = ENCODER_PRESETS[name]
    with torch.device("meta"):
        theirs = VJEPA2Model(
            VJEPA2Config(
                hidden_size=shape.width,
                num_hidden_layers=shape.depth,
                num_attention_heads=shape.heads,
                mlp_ratio=shape.mlp_ratio,
                crop_size=256,
            )
        )
        ours = build_vjepa(
            encoder=dict(vars(shape)),
            predictor={"width": 384, "depth": 12, "heads": 12},
            grid=(8, 16, 16),
            patch_size=16,
            tubelet_size=2,
            num_mask_tokens=1,
            positions="rope_tiled",
            seed=None,
        )

    def count(module):
        return sum(p.numel() for p in module.parameters())

    patch = {"patch_size": 16, "tubelet_size": 2}
    assert count(ours.encoder) == count(theirs.encoder) == encoder
    assert encoder == encoder_parameters(
        width=shape.width, depth=shape.depth, mlp_ratio=shape.mlp_ratio, **patch
    )
    assert count(ours.predictor) == count(theirs.predictor) - 9 * 384
    assert count(ours.predictor) == predictor_parameters(
        encoder_width=shape.width, width=384, depth=12, num_mask_tokens=1
    )
    assert 21.9e6 < count(ours.predictor) < 23.1e6  # "22M" for every encoder


@pytest.mark.parametrize("positions", ["rope", "rope_tiled"])
def test_predictions_of_any_size_are_those_of_a_model_of_that_size(positions):
    """Encoder and predictor: clips of another height, width and length than the model's."""
    grid = (2, 3, 4)
    models = []
    for built in (grid, (2, 5, 5), (6, 1, 2)):
        model = build_vjepa(
            encoder={"width": 24, "depth": 1, "heads": 2},
            predictor={"width": 12, "depth": 1, "heads": 2},
            grid=built,
            patch_size=4,
            tubelet_size=2,
            num_mask_tokens=2,
            positions=positions,
        )
        models.append(randomized(model))
    masks = pack(make_masks([[(5, 9), (3, 20)], [(2, 14), (7, 7)]]))
    with torch.no_grad():
        fitting, *others = (model(make_video(grid, clips=2), masks) for model in models)
    for other in others:
        assert torch.equal(fitting, other)
