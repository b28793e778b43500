"""Heads that are trained together end where each would alone."""

import pytest
import torch
from safetensors.torch import load, save

from tests.evaluation.heads.plain import train_plainly
from tests.helpers.ranks import run_ranks
from tests.rounding.accuracy import assert_accurate
from vjepa_fast.evaluation.heads.spec import HeadSpec, ProbeForm, ProbeRecipe
from vjepa_fast.evaluation.heads.stack import HeadStack
from vjepa_fast.evaluation.heads.train import HeadTrainer

VIDEOS, BATCH, WIDTH = 24, 6, 16
ONE = ProbeForm("attentive", WIDTH, 2)
FOUR = ProbeForm("attentive", WIDTH, 2, blocks=4, norm_eps=1e-6)
LINEAR = ProbeForm("linear", WIDTH)
FORMS = pytest.mark.parametrize("form", [ONE, FOUR, LINEAR], ids=["one", "four", "linear"])
SPECS = [
    HeadSpec("digit", 5, 0, 1.0, 3e-3, 0.01),
    HeadSpec("motion", 3, 0, 0.5, 1e-3, 0.4),
    HeadSpec("digit", 5, 1, 0.5, 3e-4, 0.0),
    HeadSpec("digit", 5, 1, 0.2, 1e-2, 0.01),
    HeadSpec("speed", 1, 0, 1.0, 3e-3, 0.01),
]
RECIPE = ProbeRecipe(epochs=4, batch=BATCH, seed=7)
WARM = ProbeRecipe(epochs=4, batch=BATCH, warmup_epochs=1.5, clip_grad=0.5, seed=7)
ALL = [0, 1, 2, 3, 4]


def make_data(dtype=torch.float32):
    """Features [VIDEOS, 5, WIDTH], targets, and which videos each head counts."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(VIDEOS, 5, WIDTH, generator=generator).to(dtype)
    targets = {
        "digit": torch.randint(5, (VIDEOS,), generator=generator),
        "motion": torch.randint(3, (VIDEOS,), generator=generator),
        "speed": torch.randn(VIDEOS, generator=generator),
    }
    counted = [torch.rand(VIDEOS, generator=generator) < spec.share for spec in SPECS]
    return tokens, targets, torch.stack(counted)


def make_batches(epochs, size=BATCH):
    generator = torch.Generator().manual_seed(2)
    for _ in range(epochs):
        yield from torch.randperm(VIDEOS, generator=generator).split(size)


def make_trainer(form, heads, counted, recipe=RECIPE):
    stack = HeadStack(form, [SPECS[i] for i in heads], recipe.seed)
    return HeadTrainer(stack, recipe, counted[heads].sum(1))


def run(trainer, heads, data, rows):
    """Pass batches of rows to a trainer of these heads."""
    tokens, targets, counted = data
    for picked in rows:
        wanted = {name: target[picked] for name, target in targets.items()}
        trainer.step(tokens[picked], wanted, counted[heads][:, picked])
    return trainer


def train(form, heads, data, recipe=RECIPE):
    trainer = make_trainer(form, heads, data[2], recipe)
    return run(trainer, heads, data, make_batches(recipe.epochs))


def same(state, other):
    """Whether two states are equal bit for bit."""
    if isinstance(state, dict):
        return state.keys() == other.keys() and all(same(state[k], other[k]) for k in state)
    if isinstance(state, list):
        return len(state) == len(other) and all(map(same, state, other))
    if isinstance(state, torch.Tensor):
        return torch.allclose(state, other, rtol=0, atol=0, equal_nan=True)
    return state == other


@FORMS
def test_together_as_alone(form):
    """Other targets, draws, shares, learning rates and weight decays do not matter to a head."""
    data = make_data()
    together = train(form, ALL, data)
    for i in ALL:
        alone = train(form, [i], data)
        start = HeadStack(form, [SPECS[i]], RECIPE.seed).single(0).state_dict()
        found = together.stack.single(i).state_dict()
        for name, value in alone.stack.single(0).state_dict().items():
            assert (found[name] - value).abs().max() <= 1e-5, (i, name)
        assert any(not torch.equal(found[name], value) for name, value in start.items())
        assert together.losses[i].item() == pytest.approx(alone.losses[0].item(), abs=1e-5)
        assert together.seen[i] == alone.seen[0]


@FORMS
@pytest.mark.parametrize(
    ("head", "recipe"), [(0, RECIPE), (4, WARM)], ids=["classes", "values, warm-up and clipping"]
)
def test_one_head_ends_where_the_plain_loop_does(form, head, recipe):
    """Each batch is an update of a head that counts all videos, as in a loop over one module."""
    data, spec = make_data(), SPECS[head]
    tokens, targets, counted = data
    assert counted[head].all()
    stacked = train(form, [head], data, recipe).stack.single(0)
    pairs = [(tokens[i], targets[spec.target][i]) for i in make_batches(recipe.epochs)]
    plain = train_plainly(form, spec, recipe, pairs)
    exact = train_plainly(form, spec, recipe, pairs, torch.float64)
    found = [head(tokens.to(head.linear.weight.dtype)).detach() for head in (stacked, plain, exact)]
    assert_accurate(*found, factor=3.0, atol=1e-6)
    assert (stacked.linear.weight - plain.linear.weight).abs().max() < 1e-5


@FORMS
def test_goes_on_bit_for_bit(form):
    """From a state saved while every head has seen a part of its next batch."""
    data, rows = make_data(torch.bfloat16), list(make_batches(4, size=5))
    straight = run(make_trainer(form, ALL, data[2]), ALL, data, rows[:8])
    saved = save(straight.state_dict())
    resumed = make_trainer(form, ALL, data[2])
    resumed.load_state_dict(load(saved))
    for trainer in (straight, resumed):
        run(trainer, ALL, data, rows[8:])
    assert same(straight.state_dict(), resumed.state_dict())
    assert straight.losses.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@FORMS
def test_a_head_that_diverges_is_left_alone(form, bad):
    tokens, targets, counted = make_data()
    sane = train(form, ALL, (tokens, targets, counted))
    targets["speed"][3] = bad
    trainer = train(form, ALL, (tokens, targets, counted))
    assert trainer.diverged.tolist() == [False, False, False, False, True]
    assert not sane.diverged.any() and trainer.losses.isfinite().tolist() == [True] * 4 + [False]
    for i in ALL:
        found, expected = (x.stack.single(i).state_dict() for x in (trainer, sane))
        assert all(value.isfinite().all() for value in found.values())
        for name, value in expected.items():
            assert i == 4 or (found[name] - value).abs().max() <= 1e-5, (i, name)


def test_targets_that_a_head_does_not_count_may_be_anything():
    tokens, targets, counted = make_data()
    counted[4, ::2] = False
    sane = train(ONE, ALL, (tokens, targets, counted))
    targets["motion"][~counted[1]] = -1
    targets["speed"][::2] = float("nan")
    other = train(ONE, ALL, (tokens, targets, counted))
    assert same(sane.state_dict(), other.state_dict())


def test_updates_and_learning_rates():
    """A head updates once it has seen a batch of its own videos, or all of them if those are few.

    Its learning rate falls by what it has seen, not by what passed it.
    """
    counted = torch.zeros(2, VIDEOS, dtype=torch.bool)
    counted[0, :12], counted[1, :4] = True, True
    tokens, targets, _ = make_data()
    trainer = make_trainer(ONE, [0, 2], torch.stack([counted[0], counted[0], counted[1]]))
    seen = []
    for first in range(0, 12, 2):
        rows = torch.arange(first, first + 2)
        run(trainer, [0, 1], (tokens, targets, counted), [rows])
        seen.append(trainer.seen.tolist())
    assert seen == [[0, 0], [0, 4], [6, 4], [6, 4], [6, 4], [12, 4]]
    groups = trainer._optimizer.param_groups
    lr = [g["lr"] / spec.lr for g, spec in zip(groups, trainer.stack.specs, strict=True)]
    cosine = torch.cos(torch.pi * torch.tensor([6 / (4 * 12), 0.0]))
    assert lr == pytest.approx(((1 + cosine) / 2).tolist(), rel=1e-6)


def test_a_head_does_not_wait_for_much_more_than_a_batch():
    """Of parts of about a batch each leads to an update, whatever falls a little short of it."""
    counted = torch.zeros(1, VIDEOS, dtype=torch.bool)
    counted[0, :12] = True
    tokens, targets, _ = make_data()
    trainer = make_trainer(ONE, [0], counted)  # batches of 6
    seen = []
    for rows in (range(5), range(5, 8), range(8, 12), range(1)):
        run(trainer, [0], (tokens, targets, counted), [torch.tensor(rows)])
        seen.append(trainer.seen.tolist())
    assert seen == [[5], [5], [12], [12]]


def test_heads_without_videos_are_refused():
    _, _, counted = make_data()
    counted[1] = False
    with pytest.raises(ValueError, match=r"^videos: found \[24, 0\], expected 1 or more for each"):
        make_trainer(ONE, [0, 1], counted)


def run_rank(rank, world):
    """Train on this process's part of the batches, some of which are empty; values for JSON."""
    data, heads = make_data(), ALL
    rows = [part[rank::world] for part in make_batches(4, size=5) for part in (part[:4], part[4:])]
    straight = run(make_trainer(ONE, heads, data[2]), heads, data, rows[:9])
    state = straight.state_dict()
    resumed = make_trainer(ONE, heads, data[2])
    resumed.load_state_dict(state)
    for trainer in (straight, resumed):
        run(trainer, heads, data, rows[9:])
    with torch.no_grad():
        outputs = straight.stack(data[0][:6])
    found = {name: x.tolist() for name, x in outputs.items()}
    found |= {"losses": straight.losses.tolist()}
    return found | {"resumed": same(straight.state_dict(), resumed.state_dict())}


RANKS = """
import json
import torch.distributed as dist
from tests.evaluation.heads.test_train import run_rank
dist.init_process_group("gloo")
print("FOUND" + json.dumps(run_rank(dist.get_rank(), 2)), flush=True)
dist.destroy_process_group()
"""


def test_two_processes_equal_one():
    alone = run_rank(0, 1)
    for found in run_ranks(["-c", RANKS], 2, seconds=300):
        assert found.pop("resumed")
        for name, values in found.items():
            gap = torch.tensor(values, dtype=torch.float64) - torch.tensor(alone[name])
            assert gap.abs().max() <= 1e-5, name
