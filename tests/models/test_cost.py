"""Costs by formula against the real modules, against PyTorch's own counter, and by hand."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.paths import REPOSITORY
from vjepa_fast import cli
from vjepa_fast.commands.cost_of_config import clip_flops, count_tokens, mean_clip_flops
from vjepa_fast.commands.info import info_text
from vjepa_fast.config import Config, load_config, parse_config
from vjepa_fast.config.networks import ENCODER_PRESETS
from vjepa_fast.models.cost import (
    activation_memory,
    encoder_parameters,
    predictor_parameters,
    state_memory,
    step_flops,
    transformer_flops,
)
from vjepa_fast.models.jepa import build_vjepa, encode_clips
from vjepa_fast.models.sequences import pack_masks

CONFIGS = REPOSITORY / "configs"
PAPER = {"patch_size": 16, "tubelet_size": 2}


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", list(ENCODER_PRESETS))
def test_parameters_of_the_real_modules(name: str) -> None:
    shape = ENCODER_PRESETS[name]
    predictor = {"width": 384, "depth": 12, "heads": 12}
    with torch.device("meta"):
        model = build_vjepa(
            encoder=dict(vars(shape)),
            predictor=predictor,
            grid=(8, 14, 14),
            num_mask_tokens=2,
            seed=None,
            **PAPER,
        )
    assert model.encoder.norm.weight.is_meta
    expected = encoder_parameters(
        width=shape.width, depth=shape.depth, mlp_ratio=shape.mlp_ratio, **PAPER
    )
    assert _count(model.encoder) == expected
    assert _count(model.predictor) == predictor_parameters(
        encoder_width=shape.width, width=384, depth=12, num_mask_tokens=2
    )


def test_parameters_of_an_odd_shape() -> None:
    """Everything that can vary differs from the paper's models."""
    model = build_vjepa(
        encoder={"width": 48, "depth": 2, "heads": 4, "mlp_ratio": 3.0},
        predictor={"width": 24, "depth": 3, "heads": 4, "mlp_ratio": 2.0},
        grid=(1, 2, 2),
        num_mask_tokens=3,
        patch_size=8,
        tubelet_size=4,
    )
    assert _count(model.encoder) == encoder_parameters(
        width=48, depth=2, patch_size=8, tubelet_size=4, mlp_ratio=3.0
    )
    assert _count(model.predictor) == predictor_parameters(
        encoder_width=48, width=24, depth=3, num_mask_tokens=3, mlp_ratio=2.0
    )


def test_parameters_of_the_papers_models() -> None:
    """ViT-L/16 and ViT-H/16 without a class token, and a predictor of 22 million."""
    sizes = {
        name: encoder_parameters(
            width=ENCODER_PRESETS[name].width, depth=ENCODER_PRESETS[name].depth, **PAPER
        )
        for name in ("vit_large", "vit_huge")
    }
    assert round(sizes["vit_large"] / 1e6) == 304
    assert round(sizes["vit_huge"] / 1e6) == 632
    predictor = predictor_parameters(encoder_width=1280, width=384, depth=12, num_mask_tokens=2)
    assert round(predictor / 1e6) == 22


def test_flops_of_the_design_table() -> None:
    """ViT-H/16, 224 px, 16 frames, mean token counts: the design's 2.37, 1.85 and 0.46 TFLOP.

    Its figures are rounded and leave out the patch embedding (0.006): hence 2 %.
    """
    flops = step_flops(
        num_tokens=1568,
        context=[365, 104],
        target=[751, 1102],
        encoder_width=1280,
        encoder_depth=32,
        predictor_width=384,
        predictor_depth=12,
        **PAPER,
    )
    assert flops.target_encoder / 1e12 == pytest.approx(2.37, rel=0.02)
    assert flops.encoder / 1e12 == pytest.approx(1.85, rel=0.02)
    assert flops.predictor / 1e12 == pytest.approx(0.46, rel=0.02)
    assert flops.total / 1e12 == pytest.approx(4.7, rel=0.02)


@pytest.mark.parametrize("positions", ["sincos", "rope_tiled"])
def test_flops_as_pytorch_counts_them(positions: str) -> None:
    """A real step of an odd model, forward and backward, FLOP by FLOP.

    One exception: the mask tokens' gradient may be a small GEMM, which the formula leaves out.
    Rotations are no GEMMs, and count no more than norms do.
    """
    grid, context, target = (2, 3, 3), [5, 3], [11, 9]
    encoder = {"width": 32, "depth": 2, "heads": 4, "mlp_ratio": 3.0}
    predictor = {"width": 16, "depth": 3, "heads": 2, "mlp_ratio": 2.0}
    patch = {"patch_size": 4, "tubelet_size": 2}
    networks = {"encoder": encoder, "predictor": predictor, "positions": positions}
    model = build_vjepa(**networks, grid=grid, num_mask_tokens=2, **patch)
    clips = 2
    masks = pack_masks(
        torch.cat([torch.arange(n) for n in context for _ in range(clips)]),
        torch.tensor([[n] * clips for n in context]),
        torch.cat([torch.arange(n) for n in target for _ in range(clips)]),
        torch.tensor([[n] * clips for n in target]),
        18,
    )
    video = torch.randint(0, 256, (clips, 4, 12, 12, 3), dtype=torch.uint8)
    expected = step_flops(
        num_tokens=18,
        context=context,
        target=target,
        encoder_width=32,
        encoder_depth=2,
        predictor_width=16,
        predictor_depth=3,
        mlp_ratio=3.0,
        predictor_mlp_ratio=2.0,
        **patch,
    )

    def counted(run) -> float:
        # The math backend computes attention by GEMMs, which the counter knows.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / clips

    with torch.no_grad():
        assert counted(lambda: encode_clips(model.encoder, video)) == expected.target_encoder
    assert counted(lambda: model.context(video, masks).sum().backward()) == expected.encoder
    features = model.context(video, masks).detach().requires_grad_()
    run = counted(lambda: model.predictor(features, masks).sum().backward())
    mask_tokens = 2 * 2 * (sum(context) + sum(target)) * 16
    assert run in (expected.predictor, expected.predictor + mask_tokens)


def test_flops_grow_with_the_square_of_the_length_only_in_attention() -> None:
    shape = {"width": 64, "depth": 1}
    one, two = transformer_flops([10], **shape), transformer_flops([20], **shape)
    assert two - 2 * one == 4 * (20**2 - 2 * 10**2) * 64
    assert transformer_flops([10, 20], **shape) == one + two


@pytest.mark.parametrize(
    ("precision", "stage", "accumulates", "expected"),
    [
        # 10 trained parameters, 6 of them the encoder's, on 2 devices:
        # weights, gradients, master weights + moments, teacher + its fp32 EMA
        ("bf16", 0, False, (20, 20, 120, 12 + 24)),
        ("bf16", 0, True, (20, 40, 120, 12 + 24)),
        ("bf16", 1, True, (20, 40 + 20, 60, 12 + 12)),
        ("bf16", 1, False, (20, 40 + 20, 60, 12 + 12)),
        ("bf16", 2, True, (20, 20, 60, 12 + 12)),
        ("bf16", 2, False, (20, 20, 60, 12 + 12)),
        ("bf16", 3, True, (10, 20, 60, 24 + 12)),
        ("fp32", 0, True, (40, 40, 80, 24)),
        ("fp32", 1, True, (40, 40 + 20, 60, 24 + 12)),
    ],
)
def test_memory_by_hand(precision, stage, accumulates, expected) -> None:
    memory = state_memory(
        encoder_parameters=6,
        predictor_parameters=4,
        precision=precision,
        stage=stage,
        world_size=2,
        accumulates=accumulates,
        activations=1000,
    )
    found = (memory.weights, memory.gradients, memory.optimizer, memory.teacher)
    assert found == expected
    assert memory.total == sum(expected) + 1000


def test_one_process_in_fp32_has_nothing_to_shard() -> None:
    sizes = {"encoder_parameters": 6, "predictor_parameters": 4, "accumulates": True}
    alone = [
        state_memory(**sizes, precision="fp32", stage=stage, world_size=1) for stage in range(4)
    ]
    assert alone == [alone[0]] * 4


def test_activations_scale_with_the_micro_batch() -> None:
    shape = {
        "num_tokens": 1568,
        "context_tokens": 469,
        "predictor_tokens": 2322,
        "encoder_width": 1280,
        "encoder_depth": 32,
        "predictor_width": 384,
        "predictor_depth": 12,
        "precision": "bf16",
    }
    one = activation_memory(micro_batch=1, **shape)
    assert activation_memory(micro_batch=24, **shape) == 24 * one
    # everything saved for the backward pass, and a block of the target encoder
    by_hand = 2 * (469 * 1280 * 32 * 16 + 2322 * 384 * 12 * 16 + 1568 * 1280 * 16)
    assert one == by_hand


@pytest.fixture(scope="module")
def vith16() -> Config:
    return load_config(CONFIGS / "vith16.json")


def test_sampled_tokens_are_the_recorded_ones(vith16: Config) -> None:
    """Means over 400 block sizes; the long range's spread over steps is wide."""
    context, target = count_tokens(vith16)
    assert len(context) == len(target) == 400 * 24
    short, long = (sum(column) / len(context) for column in zip(*context, strict=True))
    assert short == pytest.approx(365, rel=0.03)
    assert long == pytest.approx(104, rel=0.10)
    short, long = (sum(column) / len(target) for column in zip(*target, strict=True))
    assert short == pytest.approx(751, rel=0.03)
    assert long == pytest.approx(1102, rel=0.03)


def test_clip_flops_is_the_mean_over_clips(vith16: Config) -> None:
    """Attention is quadratic, so the mean over clips is not the cost of the mean clip."""
    first, second = (
        clip_flops(vith16, [counts], [[700, 1100]]) for counts in ([300, 50], [400, 150])
    )
    both = clip_flops(vith16, [[300, 50], [400, 150]], [[700, 1100]] * 2)
    assert both.total == pytest.approx((first.total + second.total) / 2, rel=1e-12)
    assert both.encoder > clip_flops(vith16, [[350, 100]], [[700, 1100]]).encoder


def test_info_of_vith16(vith16: Config) -> None:
    text = info_text(vith16)
    assert "8 x 14 x 14 = 1568 tokens" in text
    assert "631,648,000" in text
    assert "22,279,808" in text
    assert "(positions sincos, 2 mask tokens)" in text
    second = info_text(load_config(CONFIGS / "v2_vith16.json"))
    assert "(positions rope_tiled, 1 mask token)" in second
    flops = {
        name: float(row.split()[-1])
        for row in text.splitlines()
        for name in ("target encoder", "encoder, ", "predictor, ", "all ")
        if row.startswith(name)
    }
    assert flops["target encoder"] == 2.38
    assert flops["encoder, "] == pytest.approx(1.85, rel=0.05)
    assert flops["predictor, "] == pytest.approx(0.46, rel=0.03)
    assert flops["all "] == pytest.approx(sum(list(flops.values())[:3]), abs=0.02)
    assert "128 x 1 x 24 = 3072" in text
    assert all(len(row) <= 100 for row in text.splitlines())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda p: p.stem)
def test_info_of_every_shipped_config(path: Path) -> None:
    config = load_config(path)
    assert f"= {config.optim.global_batch}" in info_text(config)


def test_info_shows_the_stages_that_the_engine_takes(vith16: Config) -> None:
    assert "stage 0" not in info_text(vith16)  # bf16
    assert "stage 0" in info_text(vith16.model_copy(update={"precision": "fp32"}))


def test_info_without_truncation(vith16: Config) -> None:
    """Then the clips' counts differ, and more tokens are left."""
    data = vith16.model_dump(mode="json")
    data["masks"]["truncate"] = "none"
    config = parse_config(data)
    context, _ = count_tokens(config)
    assert len({tuple(row) for row in context[:24]}) > 1
    assert sum(row[0] for row in context) / len(context) == pytest.approx(585, rel=0.03)
    assert "tokens per clip" in info_text(config)


def test_clips_of_several_lengths_cost_their_weighted_mean() -> None:
    def config(manifests: list, num_frames: int, **data: object) -> Config:
        data |= {"manifests": manifests, "num_frames": num_frames, "crop_size": 64}
        return parse_config({"output": "x", "data": data, "model": {"encoder": "vit_tiny"}})

    long, short = (mean_clip_flops(config(["a.csv"], frames)) for frames in (16, 4))
    assert long > 4 * short  # attention
    images = {"path": "b.csv", "num_frames": 4}
    mixed = config(["a.csv", images], 16, weights=[3.0, 1.0])
    assert mean_clip_flops(mixed) == pytest.approx((3 * long + short) / 4, rel=1e-12)
    assert mean_clip_flops(config(["a.csv", images], 16)) == pytest.approx((long + short) / 2)
    text = info_text(mixed)
    assert [line.split()[:3] for line in text.splitlines()[1:4]] == [
        ["4", "25.0%", "32"],
        ["16", "75.0%", "128"],
        ["mean", "104", f"{mean_clip_flops(mixed) / 1e12:.2f}"],
    ]
    assert "clip: 16 frames, one in 4, 64 px = 8 x 4 x 4 = 128 tokens" in text
    assert "as if all manifests were equally large" in info_text(config(["a.csv", images], 16))


def test_stages_of_one_training(capsys: pytest.CaptureFixture) -> None:
    """Each stage costs steps x clips x FLOPs per clip; the last line has all clips at its size."""
    paths = [str(CONFIGS / f"{name}.json") for name in ("vith16", "vith16_384")]
    assert cli.main(["info", "--config", *paths, "--set", "optim.steps=20000"]) == 0
    *rows, ratio = capsys.readouterr().out.splitlines()
    cells = {row[:20].strip(): row[20:].split() for row in rows}
    per_clip = []
    for path, size, clips in zip(paths, (["16", "224"], ["16", "384"]), (3072, 2400), strict=True):
        config = load_config(path)
        per_clip.append(clip_flops(config, *count_tokens(config)).total)
        exa = f"{20_000 * clips * per_clip[-1] / 1e18:,.0f}"
        tera = f"{per_clip[-1] / 1e12:.2f}"
        assert cells[config.output] == [*size, "20,000", f"{clips:,}", tera, exa]
    small, large = per_clip
    spent, full = 2e4 * (3072 * small + 2400 * large), 2e4 * (3072 + 2400) * large
    assert cells["all stages"] == ["40,000", f"{spent / 1e18:,.0f}"]
    assert cells["all at the last size"] == [*size, "40,000", tera, f"{full / 1e18:,.0f}"]
    assert ratio == f"({full / spent:.1f} times as much as the stages)"
    assert full > 1.5 * spent
