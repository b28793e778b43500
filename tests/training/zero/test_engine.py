"""Masters, gradients, clipping and the teacher, with every optimizer class of DeepSpeed."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.zero import GatheredParameters

from tests.helpers.trainers import SCHEDULES, make_model, make_trainer, micro_batch, run_steps
from tests.rounding.accuracy import ROUNDING
from vjepa_fast.errors import UserError
from vjepa_fast.models.jepa import feature_loss
from vjepa_fast.training.zero.optimizers import adapt, clip_gradients
from vjepa_fast.training.zero.shards import GroupShard

HOST = {"offload_optimizer": True}
BOTH = {"offload_optimizer": True, "offload_parameters": True}
ENGINES = [
    pytest.param(0, False, {}, "AdamW", id="stage0-fp32"),
    pytest.param(1, False, {}, "AdamW", id="stage1-fp32-alone"),
    pytest.param(3, False, {}, "AdamW", id="stage3-fp32-alone"),
    pytest.param(1, True, {}, "AdamW", id="stage1-bf16"),
    pytest.param(2, True, {}, "AdamW", id="stage2-bf16"),
    pytest.param(3, True, {}, "DeepSpeedZeroOptimizer_Stage3", id="stage3-bf16"),
    pytest.param(1, False, HOST, "DeepSpeedZeroOptimizer", id="stage1-fp32-offload"),
    pytest.param(2, True, HOST, "DeepSpeedZeroOptimizer", id="stage2-bf16-offload"),
    pytest.param(3, False, BOTH, "DeepSpeedZeroOptimizer_Stage3", id="stage3-fp32-offload"),
    pytest.param(3, True, BOTH, "DeepSpeedZeroOptimizer_Stage3", id="stage3-bf16-offload"),
]


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.detach().float().reshape(-1) for t in tensors])


def student(shard: GroupShard) -> torch.Tensor:
    """The shard's parameters as the model uses them, unsharded and flat."""
    with GatheredParameters(list(shard.parameters)):  # does nothing below stage 3
        return flat(list(shard.parameters))


def assert_norm(norm: torch.Tensor, vector: torch.Tensor) -> None:
    """As accurate as torch's own in fp32."""
    plain, exact = vector.norm().item(), vector.double().norm().item()
    assert abs(norm.item() - exact) <= 2 * abs(plain - exact) + 16 * ROUNDING * exact


@pytest.mark.parametrize(("stage", "bf16", "offload", "kind"), ENGINES)
def test_masters_are_the_models_weights(stage: int, bf16: bool, offload: dict, kind: str) -> None:
    trainer = make_trainer(stage, bf16, **offload)
    assert type(trainer.engine.optimizer).__name__ == kind
    for steps in (0, 2):
        run_steps(trainer, 0, steps)
        for shard in trainer.optimizer.shards:
            assert all(m.dtype == torch.float32 for m in shard.masters)
            masters, weights = shard.read(shard.masters), student(shard)
            if bf16:
                masters = masters.bfloat16().float()
            assert torch.equal(masters, weights)
    counted = sum(shard.size for shard in trainer.shards)
    assert counted == sum(p.numel() for p in make_model().parameters())


@pytest.mark.parametrize(("stage", "bf16", "offload", "kind"), ENGINES)
def test_gradients_and_clipping(stage: int, bf16: bool, offload: dict, kind: str) -> None:
    trainer = make_trainer(stage, bf16, **offload)
    plain = make_model().to(torch.bfloat16 if bf16 else torch.float32)
    video, masks = micro_batch(0)
    features = trainer.target_features(video)
    feature_loss(plain(video, masks), features, masks).backward()
    trainer.backward([(video, masks)])

    def gradient(part: str) -> torch.Tensor:
        shards = zip(trainer.shards, trainer.optimizer.gradients(), strict=True)
        return flat([g for shard, own in shards if shard.part == part for g in own])

    before = {part: gradient(part) for part in ("encoder", "predictor")}
    limit = 0.5 * before["encoder"].norm().item()
    norms = clip_gradients(trainer.optimizer, limit, trainer.device)
    for part, norm in norms.items():
        own = before[part].double().norm().item()
        expected = flat([p.grad for p in getattr(plain, part).parameters()]).double().norm().item()
        # in bf16 each element is rounded once more, on either side
        assert own == pytest.approx(expected, rel=2 * 2**-9 if bf16 else 16 * ROUNDING)
        assert_norm(norm, before[part])
        # as torch's own clip_grad_norm_ has it, with 1e-6 added to the norm
        reached = own * min(1.0, limit / (norm.item() + 1e-6))
        found = gradient(part).double().norm().item()
        assert found == pytest.approx(reached, rel=16 * ROUNDING)


@pytest.mark.parametrize(("stage", "bf16", "offload", "kind"), ENGINES)
def test_teacher_is_the_fp32_ema_of_the_masters(
    stage: int, bf16: bool, offload: dict, kind: str
) -> None:
    trainer = make_trainer(stage, bf16, **offload)
    emas = [flat(s.masters).double() for s in trainer.teacher.shards]
    for step in range(6):
        trainer.step([micro_batch(step)])
        momentum = SCHEDULES.momentum(step)
        for i, shard in enumerate(trainer.teacher.shards):
            emas[i] = momentum * emas[i] + (1 - momentum) * flat(shard.masters).double()
    names = {id(p): n for n, p in trainer.model.encoder.named_parameters()}
    own = dict(trainer.teacher.network().named_parameters())
    for shard, ema in zip(trainer.teacher.shards, emas, strict=True):
        ours = flat(trainer.teacher.ema[shard.name]).double()
        # six updates of three roundings each, of weights up to 2
        torch.testing.assert_close(ours, ema, rtol=0, atol=18 * ROUNDING)
        network = [own[names[id(p)]] for p in shard.parameters]
        assert all(p.dtype == (torch.bfloat16 if bf16 else torch.float32) for p in network)
        cast = shard.read(trainer.teacher.ema[shard.name]).to(network[0].dtype)
        assert torch.equal(flat(network), cast.float())
        assert not torch.equal(flat(network), student(shard))


def test_accumulation_equals_one_large_batch() -> None:
    """Two micro-batches give the mean of their losses and gradients."""
    whole, halves = make_trainer(), make_trainer(accumulation=2)
    batches = [micro_batch(0), micro_batch(1)]
    gradients = []
    for video, masks in batches:
        model = copy.deepcopy(whole.model)
        features = whole.target_features(video)
        feature_loss(model(video, masks), features, masks).backward()
        gradients.append(flat([p.grad for p in model.encoder.parameters()]))
    loss, *_ = halves.backward(batches)
    norms = clip_gradients(halves.optimizer, None, halves.device)
    assert_norm(norms["encoder"], torch.stack(gradients).mean(0))
    assert loss.isfinite()
    with pytest.raises(ValueError, match="found 1, expected 2"):
        halves.backward(batches[:1])


def test_only_matrices_and_mask_tokens_decay() -> None:
    trainer = make_trainer()
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    for shard in trainer.shards:
        for parameter in shard.parameters:
            name = names[id(parameter)]
            decays = name.endswith("mask_tokens") or parameter.ndim > 1
            assert shard.name.endswith(".decay") == decays, name
    trainer.step([micro_batch(0)])
    decay = {g["name"]: g["weight_decay"] for g in trainer.optimizer.torch.param_groups}
    assert decay["encoder.decay"] == SCHEDULES.weight_decay(0)
    assert decay["encoder.no_decay"] == 0.0


def test_stage_0_in_bf16_is_rejected() -> None:
    with pytest.raises(UserError, match=r"zero\.stage: found 0 with precision bf16.*set zero"):
        make_trainer(stage=0, bf16=True)


def test_an_unknown_optimizer_class_is_rejected() -> None:
    class Wrapper:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)

    with pytest.raises(TypeError, match="found Wrapper, expected"):
        adapt(SimpleNamespace(optimizer=Wrapper()), 1, False)


def test_bf16_gradients_are_freed_as_they_are_accumulated() -> None:
    trainer = make_trainer(bf16=True)
    trainer.backward([micro_batch(0)])
    assert all(p.grad is None for p in trainer.model.parameters())
    assert all(gradient.any() for (gradient,) in trainer.optimizer.gradients())


@pytest.mark.parametrize(("stage", "bf16"), [(0, False), (1, True), (2, True), (3, True)])
def test_predictions_are_freed_before_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch, stage: int, bf16: bool
) -> None:
    """The loss saves its gradient and not its inputs, which lowers the peak by [Rt, D]."""
    trainer, alive = make_trainer(stage, bf16), []
    predictions: list[weakref.ref] = []
    trainer.engine.register_forward_hook(lambda *io: predictions.append(weakref.ref(io[-1])))
    backward = trainer.engine.backward

    def look(loss: torch.Tensor) -> torch.Tensor:
        alive.append(predictions[-1]() is not None)
        return backward(loss)

    monkeypatch.setattr(trainer.engine, "backward", look)
    gc.disable()
    try:
        trainer.step([micro_batch(0)])
    finally:
        gc.enable()
    assert alive == [False]


def test_positions_of_both_encoders_stay_in_fp32() -> None:
    trainer = make_trainer(bf16=True)
    own, target = trainer.model.encoder.positions, trainer.teacher.network().positions
    assert target.dtype == torch.float32 and torch.equal(own, target)
    assert {p.dtype for p in trainer.teacher.network().parameters()} == {torch.bfloat16}
