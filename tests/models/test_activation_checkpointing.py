"""Activation checkpointing: the same gradients, and the memory that `info` predicts."""

from __future__ import annotations

import weakref
from functools import lru_cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.trainers import GRID, micro_batch
from vjepa_fast.models import activation_checkpointing, attention
from vjepa_fast.models.cost import activation_memory
from vjepa_fast.models.jepa import VJEPA, build_vjepa, encode_clips, feature_loss

MODES = ("none", "selective", "full")
SHAPES = {"encoder_width": 96, "encoder_depth": 6, "predictor_width": 48, "predictor_depth": 4}


def make(mode: str, positions: str = "sincos") -> VJEPA:
    return build_vjepa(
        encoder={"width": 96, "depth": 6, "heads": 2},
        predictor={"width": 48, "depth": 4, "heads": 2},
        grid=GRID,
        patch_size=8,
        tubelet_size=2,
        num_mask_tokens=2,
        positions=positions,
        activation_checkpointing=mode,
    )


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are still there; `peak` is the most
    at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: set[int] = set()

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if is_t(t)}
        for tensor in filter(is_t, tree_leaves(out)):
            storage = tensor.untyped_storage()
            key, size = storage.data_ptr(), storage.nbytes()
            if key in inputs or key in self._seen or not size:
                continue
            self._seen.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._gone, key, size)
        return out


def is_t(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def step(mode: str, positions: str) -> tuple[dict[str, torch.Tensor], int, int]:
    """Gradients by name, the most bytes alive in forward and backward beside what is there before
    and the gradients, and the bytes alive between the two."""
    model = make(mode, positions)
    video, masks = micro_batch(0)
    with torch.no_grad():
        features = encode_clips(model.make_target_encoder(), video)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Live() as live:
        loss = feature_loss(model(video, masks), features, masks)
        kept = live.bytes
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, live.peak, kept


@pytest.fixture(scope="module", params=["sincos", "rope_tiled"])
def steps(request: pytest.FixtureRequest) -> dict[str, tuple]:
    return {mode: step(mode, request.param) for mode in MODES}


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_gradients_are_those_without(steps: dict[str, tuple], mode: str) -> None:
    without, found = steps["none"][0], steps[mode][0]
    assert all(found[name].equal(gradient) for name, gradient in without.items())
    assert all(gradient.abs().max() > 0 for name, gradient in without.items() if "proj" in name)


def test_memory_falls_as_info_says(steps: dict[str, tuple]) -> None:
    """What waits for the backward pass, against the formula at these shapes. The formula counts
    widths only: scores, norms' statistics and the ends of the networks are in the measurement."""
    _, masks = micro_batch(0)
    measured = {mode: steps[mode][2] for mode in MODES}
    computed = {
        mode: activation_memory(
            num_tokens=18,
            context_tokens=masks.context_layout.rows / 4,
            predictor_tokens=masks.predictor_layout.rows / 4,
            micro_batch=4,
            precision="fp32",
            activation_checkpointing=mode,
            **SHAPES,
        )
        for mode in MODES
    }
    assert measured["full"] < 0.5 * measured["selective"] < 0.5 * measured["none"]
    assert steps["full"][1] < steps["selective"][1] < steps["none"][1]
    for mode in ("none", "selective"):
        assert measured[mode] == pytest.approx(computed[mode], rel=0.2), mode


def test_nothing_is_kept_for_a_teacher() -> None:
    """Without gradients there is nothing to compute again."""
    teacher = make("full").make_target_encoder()
    video, _ = micro_batch(0)
    with torch.no_grad():
        assert encode_clips(teacher, video).equal(encode_clips(make("none").encoder, video))


def test_choosing_a_backend_is_no_part_of_a_block(monkeypatch) -> None:
    """Its trial, which runs a backward pass, would be missing when the block is computed again."""

    @lru_cache
    def tried(dtype: torch.dtype, device: torch.device, head_dim: int):
        assert attention._error(attention.sdpa, dtype, device, head_dim) is None
        return attention.sdpa

    for module in (attention, activation_checkpointing):
        monkeypatch.setattr(module, "choose_backend", tried)
    gradients = []
    for mode in MODES:
        tried.cache_clear()
        model, (video, masks) = make(mode), micro_batch(0)
        features = encode_clips(model.make_target_encoder(), video)
        feature_loss(model(video, masks), features, masks).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert tried.cache_info().currsize
    for others in gradients[1:]:
        assert all(map(torch.equal, others, gradients[0]))


@pytest.mark.parametrize("mode", MODES)
def test_every_level_is_handed_out(mode: str) -> None:
    """Outputs of all blocks, each with its gradient; the last is what the encoder norms."""
    encoder = make(mode).encoder
    video, _ = micro_batch(0)
    tokens, layout = encoder.all_tokens(video)
    x = encoder.patch_embed(video, None).view(-1, encoder.width) + encoder.positions[tokens]
    levels = list(activation_checkpointing.block_outputs(encoder.blocks, x, layout, mode))
    assert len(levels) == len(encoder.blocks) == 6
    assert torch.equal(encoder.norm(levels[-1]), encode_clips(encoder, video))
    expected = [x]
    for block, level in zip(encoder.blocks, levels, strict=True):
        expected.append(block(expected[-1], layout))
        assert torch.equal(level, expected[-1])
    weight = encoder.blocks[0].mlp.fc1.weight
    found, alone = (
        torch.autograd.grad(sum(level.square().sum() for level in outputs), weight)[0]
        for outputs in (levels, expected[1:])
    )
    assert alone.abs().max() > 0
    assert torch.equal(found, alone)
