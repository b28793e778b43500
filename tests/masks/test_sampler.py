"""The mask sampler: purity, truncation, empty contexts that are redrawn or rejected."""

import hashlib
import itertools
import math
import operator
import pickle
import re
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.masks import EVERY_KIND, assert_same, clip_tokens
from tests.helpers.paths import REPOSITORY
from vjepa_fast.masks import MaskSampler, MultiBlock, RandomTube, ReferenceSampler

GRID = (8, 14, 14)
SHORT_RANGE = MultiBlock(num_blocks=8, spatial_scale=(0.15, 0.15))
LONG_RANGE = MultiBlock(num_blocks=2, spatial_scale=(0.7, 0.7))
CAUSAL = MultiBlock(
    num_blocks=6,
    spatial_scale=(0.1, 0.3),
    temporal_scale=(0.5, 1.0),
    max_temporal_keep=0.5,
    max_keep=100,
)
SPECS = [SHORT_RANGE, LONG_RANGE, CAUSAL]


@pytest.mark.parametrize(
    ("specs", "options", "expected"),
    [
        (SPECS, {"truncate": "batch"}, "657b4b18389eb123"),  # of the very first version
        (SPECS, {"truncate": "none"}, "2c135289b7a73deb"),
        (EVERY_KIND, {"truncate": "batch", "round_to": 16}, "486c7a3cd45e5a7b"),
        (EVERY_KIND, {"truncate": "batch-random", "round_to": 16}, "5f002f5fb70282d0"),
        (EVERY_KIND, {"truncate": "batch-random", "complement": "target"}, "5f1d25def242a9c0"),
        (EVERY_KIND, {"truncate": "none", "round_to": 16}, "86cbf97d920c937c"),
    ],
)
def test_masks_stay_what_they_were(specs, options, expected):
    """Checkpoints resume by them: digests of what earlier versions drew."""
    masks = MaskSampler(specs, seed=12345678901234, **options).sample(7, [100, 5, 26, 5, 2**40])
    digest = hashlib.sha256()
    for name in ("context_tokens", "context_seqlens", "target_tokens", "target_seqlens"):
        digest.update(getattr(masks, name).numpy().tobytes())
    digest.update(masks.block_sizes.numpy().tobytes())
    assert digest.hexdigest()[:16] == expected


def test_masks_do_not_depend_on_the_batch_split():
    sampler = MaskSampler(SPECS, truncate_group=6)
    ids = list(range(12, 36))
    whole = sampler.sample(7, ids)
    contexts = clip_tokens(whole.context_tokens, whole.context_seqlens)
    targets = clip_tokens(whole.target_tokens, whole.target_seqlens)
    for size in (1, 4, 5, 12):
        for start in range(0, len(ids), size):
            part = sampler.sample(7, ids[start : start + size])
            for m in range(len(SPECS)):
                expected = contexts[m][start : start + size], targets[m][start : start + size]
                assert clip_tokens(part.context_tokens, part.context_seqlens)[m] == expected[0]
                assert clip_tokens(part.target_tokens, part.target_seqlens)[m] == expected[1]


@pytest.mark.parametrize("complement", [None, "target", "context"])
@pytest.mark.parametrize("truncate", ["batch", "batch-random", "none"])
@pytest.mark.parametrize("spec", EVERY_KIND, ids=lambda spec: type(spec).__name__)
def test_masks_do_not_depend_on_threads_or_history(spec, truncate, complement):
    if complement == "context" and getattr(spec, "max_keep", None):
        spec = replace(spec, max_keep=None, max_temporal_keep=1.0)  # rejected together
    options = {"seed": 5, "truncate": truncate, "complement": complement}
    ids = list(range(2100))
    assert len(ids) * math.prod(GRID) > 3 * 2**20  # a thread takes 2**20 tokens: four have work
    expected = MaskSampler([spec], GRID, num_threads=1, **options).sample(9, ids)
    for threads in (0, 2, 7):
        sampler = MaskSampler([spec], GRID, num_threads=threads, **options)
        sampler.sample(1, [3])
        assert_same(sampler.sample(9, ids), expected)


def test_seed_step_spec_and_clip_each_matter():
    sampler = MaskSampler([SHORT_RANGE, SHORT_RANGE], truncate="none")
    sizes = [(8, 5, 5)] * 2
    first = sampler.sample(0, [0, 1], sizes)
    contexts = clip_tokens(first.context_tokens, first.context_seqlens)
    assert contexts[0][0] != contexts[0][1]
    assert contexts[0][0] != contexts[1][0]
    other = MaskSampler([SHORT_RANGE, SHORT_RANGE], seed=1, truncate="none").sample(0, [0], sizes)
    assert clip_tokens(other.context_tokens, other.context_seqlens)[0][0] != contexts[0][0]
    drawn = {tuple(sampler.sample(step, [0]).block_sizes.flatten().tolist()) for step in range(50)}
    assert len(drawn) > 10


def test_truncation_keeps_the_first_tokens_of_each_clip():
    ids = list(range(48))
    full = MaskSampler(SPECS, truncate="none").sample(2, ids)
    few = MaskSampler(SPECS, truncate="batch", truncate_group=24).sample(2, ids)
    pairs = [
        (full.context_tokens, full.context_seqlens, few.context_tokens, few.context_seqlens),
        (full.target_tokens, full.target_seqlens, few.target_tokens, few.target_seqlens),
    ]
    for tokens, seqlens, few_tokens, few_seqlens in pairs:
        rows, few_rows = clip_tokens(tokens, seqlens), clip_tokens(few_tokens, few_seqlens)
        for m in range(len(SPECS)):
            for group in (slice(0, 24), slice(24, 48)):
                least = min(map(len, rows[m][group]))
                assert few_rows[m][group] == [row[:least] for row in rows[m][group]]


def test_max_keep_caps_the_context_alone():
    capped = MultiBlock(num_blocks=8, spatial_scale=(0.15, 0.15), max_keep=50)
    sampler = MaskSampler([SHORT_RANGE, capped])
    masks = sampler.sample(0, range(24), [(8, 5, 5)] * 2)
    assert masks.context(1).shape == (24, 50)
    assert masks.target(1).shape[1] > 500
    # A cap above the group's smallest count changes nothing.
    loose = MultiBlock(num_blocks=8, spatial_scale=(0.15, 0.15), max_keep=1568)
    assert_same(MaskSampler([loose]).sample(0, [1]), MaskSampler([SHORT_RANGE]).sample(0, [1]))


def test_context_and_target_as_rectangles():
    masks = MaskSampler(SPECS).sample(1, range(24))
    alone = MaskSampler(SPECS).sample_rectangles(1, range(24))
    for m in range(len(SPECS)):
        contexts = clip_tokens(masks.context_tokens, masks.context_seqlens)
        targets = clip_tokens(masks.target_tokens, masks.target_seqlens)
        assert masks.context(m).tolist() == contexts[m]
        assert masks.target(m).tolist() == targets[m]
        assert [side[m].tolist() for side in alone] == [contexts[m], targets[m]]
    with pytest.raises(ValueError, match=r"^context tokens of spec 0: found lengths from"):
        MaskSampler(SPECS, truncate="none").sample(1, range(24)).context(0)


@pytest.mark.parametrize("sampler", [MaskSampler, ReferenceSampler])
def test_rectangles_of_clips_that_are_not_of_one_length_are_an_error(sampler):
    """Also if they are those of another spec, or of the targets alone."""
    tube, capped = RandomTube(0.5), replace(SHORT_RANGE, max_keep=1)
    ids = range(12)
    for specs, message in (
        ([tube, LONG_RANGE], "context tokens of spec 1"),
        ([capped], "target tokens of spec 0"),
    ):
        with pytest.raises(ValueError, match=rf"^{message}: found lengths from \d+ to \d+, exp"):
            sampler(specs, truncate="none").sample_rectangles(1, ids)
    with pytest.raises(ValueError, match="sample ids: found"):
        sampler(specs).sample_rectangles(1, [])
    with pytest.raises(ValueError, match="step: found -1"):
        sampler(specs).sample_rectangles(-1, [1])


def test_an_empty_context_is_drawn_again():
    # Four blocks of 14 x 13: the context survives only where all four coincide, one draw in eight.
    spec = MultiBlock(num_blocks=4, spatial_scale=(0.9, 0.9))
    masks = MaskSampler([spec], truncate="none").sample(0, range(50), [(8, 14, 13)])
    assert (masks.context_seqlens == 8 * 14).all()


@pytest.mark.parametrize("sampler", [MaskSampler, ReferenceSampler])
def test_a_context_that_stays_empty_is_an_error_that_names_the_spec(sampler):
    whole = [(2, 2, 2), (2, 4, 4)]
    specs = [MultiBlock(1, (0.3, 0.3)), MultiBlock(3, (0.5, 0.5))]
    with pytest.raises(
        ValueError, match=r"clip 48 in 10000 draws of mask spec 1 \(3 blocks of 2x4"
    ):
        sampler(specs, (2, 4, 4), truncate="none").sample(0, [48, 49], whole)


def test_sampler_travels_to_other_processes():
    sampler = MaskSampler(SPECS, seed=3)
    assert_same(pickle.loads(pickle.dumps(sampler)).sample(1, [2]), sampler.sample(1, [2]))


def test_the_gil_is_released():
    """Another thread runs while this one is inside a chain of calls that runs no Python code, so
    that only the sampler can have released the GIL."""
    sampler, calls = MaskSampler(SPECS, num_threads=1), 10**6
    steps = [0] * calls  # far more than needed: the other thread ends the chain
    ahead, left = iter(steps), calls

    def watch():
        nonlocal left
        while left == calls:  # until the chain begins
            time.sleep(0)
            left = operator.length_hint(ahead)
        steps.clear()

    watcher = threading.Thread(target=watch)
    watcher.start()
    ids = itertools.repeat(np.arange(24))
    deque(map(sampler._sampler.sample, ahead, ids, itertools.repeat(None)), maxlen=0)
    watcher.join()
    assert left > 0  # else the chain had ended


def test_an_extension_older_than_the_python_code_is_named():
    """As after `git pull` without a build: the extension has no version, or another one."""
    code = "import sys, types; module = types.ModuleType('vjepa_fast.masks._sampler'); {}"
    code += "; sys.modules[module.__name__] = module; import vjepa_fast.masks"
    for version, found in (("", 0), ("module.INTERFACE = 99", 99)):
        command = [sys.executable, "-c", code.format(version or "pass")]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert re.search(
            rf"_sampler: found version {found} of the compiled extension, expected \d+; "
            r"build it again with pip install -e \.\n$",
            done.stderr,
        )
