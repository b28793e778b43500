"""Non-finite steps change nothing on any rank, and are counted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import make_trainer, micro_batch, run_steps
from vjepa_fast.training.trainer import Trainer
from vjepa_fast.training.zero.optimizers import MOMENTS, adam_moments

HOST = {"offload_optimizer": True}
ENGINES = [
    (0, False, {}),
    (1, True, {}),
    (2, True, {}),
    (3, True, {}),
    (1, False, HOST),
    (2, True, HOST),
    (3, False, HOST),
]


def state_of(trainer: Trainer) -> list[torch.Tensor]:
    """Copies of all state that a step may change."""
    trainer.optimizer.wait_for_weights()
    tensors = [*trainer.model.parameters(), *trainer.teacher.network().parameters()]
    for shard in trainer.shards:
        tensors += shard.masters
        for moment in MOMENTS:
            tensors += adam_moments(trainer.optimizer, shard, moment)
    for ema in trainer.teacher.ema.values():
        tensors += ema
    tensors += [entry["step"] for entry in trainer.optimizer.torch.state.values()]
    return [t.detach().clone() for t in tensors]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def non_finite_step(trainer: Trainer, kind: str, step: int) -> None:
    """A step with a NaN in the target encoder's features, in a gradient, or in the loss alone."""
    features = trainer.target_features
    if kind == "features":
        trainer.target_features = lambda video: features(video) * float("nan")
    hook = None
    if kind == "gradient":
        parameter = next(trainer.model.predictor.parameters())
        hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
    loss, *seen = trainer.backward([micro_batch(step)])
    trainer.update(loss * float("nan") if kind == "loss" else loss, *seen)
    trainer.target_features = features
    if hook:
        hook.remove()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("features", marks=pytest.mark.slow),
        "gradient",
        pytest.param("loss", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("stage", "bf16", "offload"), ENGINES)
def test_a_non_finite_step_changes_nothing(
    stage: int, bf16: bool, offload: dict, kind: str
) -> None:
    trainer, spared = (make_trainer(stage, bf16, **offload) for _ in range(2))
    for other in (trainer, spared):
        run_steps(other, 0, 2)
    before = state_of(trainer)
    non_finite_step(trainer, kind, 2)
    assert same(state_of(trainer), before)
    bad = trainer.guard.counts()
    assert (bad.total, bad.in_a_row, bad.last) == (1, 1, 2) and trainer.step_number == 3
    expected = {"features": "loss", "gradient": "grad_norm_predictor", "loss": "loss"}
    assert expected[kind] in bad.what
    assert kind != "loss" or bad.what == ("loss",)

    spared.step_number = 3  # one that never ran step 2 continues the same way
    for other in (trainer, spared):
        run_steps(other, 3, 5)
    assert same(state_of(trainer), state_of(spared))
    bad = trainer.guard.counts()
    assert (bad.total, bad.in_a_row, bad.last) == (1, 0, 2)


def test_torchs_own_loss_hides_a_broken_target_encoder() -> None:
    """Why the loss is checked, and why our loss has NaN in its gradient as well."""
    prediction = torch.zeros(3, requires_grad=True)
    F.l1_loss(prediction, torch.full((3,), float("nan"))).backward()
    assert prediction.grad.isfinite().all()
    trainer = make_trainer()
    run_steps(trainer, 0, 1)
    for parameter in trainer.teacher.network().parameters():
        parameter.data.fill_(float("nan"))
    run_steps(trainer, 1, 2)
    assert set(trainer.guard.counts().what) == {"loss", "grad_norm_encoder", "grad_norm_predictor"}


MANY = """
import json, sys
import torch
import torch.distributed as dist
from tests.training.test_nonfinite import non_finite_step, same, state_of
from tests.helpers.trainers import make_trainer, run_steps
from vjepa_fast.training.distributed.launch import end_process_group

found = {}
host = {"offload_optimizer": True}
cases = [(0, False, {}), (1, False, {}), (2, False, {}), (3, False, {}), (1, True, {})]
for stage, bf16, offload in [*cases, (2, False, host)]:
    # At this width partitions have padding; clipping must not leave 0 times NaN in it.
    trainer = make_trainer(stage, bf16, clip_grad=0.05, encoder_width=26, **offload)
    run_steps(trainer, 0, 1)
    before = state_of(trainer)
    what = []
    for step, kind in [(1, "loss"), (2, "features")]:
        if dist.get_rank() == dist.get_world_size() - 1:  # only on this rank
            non_finite_step(trainer, kind, step)
        else:
            run_steps(trainer, step, step + 1)
        what.append(trainer.guard.counts().what)
    unchanged = same(state_of(trainer), before)
    run_steps(trainer, 3, 4)
    changed = not same(state_of(trainer), before)
    bad = trainer.guard.counts()
    found[f"{stage} {bf16} {offload}"] = [unchanged, changed, bad.total, bad.in_a_row, what]
print("FOUND" + json.dumps(found), flush=True)
end_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_skip_a_step_that_is_non_finite_on_one(world: int) -> None:
    for found in run_ranks(["-c", MANY], world, seconds=900):
        all_three = ["loss", "grad_norm_encoder", "grad_norm_predictor"]
        assert len(found) == 6
        for case, value in found.items():
            assert value == [True, True, 2, 0, [["loss"], all_three]], case
