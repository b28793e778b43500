"""Predicts a step's time on many GPUs from measured parts, stated bandwidths and the bytes sent.

Pure functions; bench/scaling.py calls them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Stage = Literal[0, 1, 2, 3]

# How the engine calls its collectives (training/zero/engine.py, DeepSpeed's defaults).
GROUPS, TEACHER_GROUPS = 4, 2  # flat groups of parameters, each gathered by one call
NORMS = 2  # small all-reduces: gradient norms (stage 0 has them already), the non-finite flag
REDUCED, FETCHED = 5e8, 5e7  # elements of a gradient bucket, of a stage 3 prefetch
LIVE = 1e9  # stage 3 keeps weights that are used again within this many elements


@dataclass(frozen=True)
class Parts:
    """Seconds measured on one device: passes of one micro-batch of `clips`, then the update."""

    clips: float
    target: float
    context: float
    predictor: float
    backward: float
    optimizer: float
    ema: float

    @property
    def forward(self) -> float:
        """Of both networks and the target encoder."""
        return self.target + self.context + self.predictor


@dataclass(frozen=True)
class Bytes:
    """Unsharded sizes of what is sent: gradients, running weights, target encoder weights."""

    gradients: float
    weights: float
    teacher: float

    @property
    def bf16(self) -> bool:
        """Whether weights run in lower precision than the fp32 gradients."""
        return self.weights < self.gradients


@dataclass(frozen=True)
class Links:
    """Bandwidth of each device, in each direction.

    Attributes:
        per_host: devices of a host.
        inside: bytes/s of one device to those of its host.
        between: bytes/s of one device to other hosts.
        latency: seconds of a message on top of its bytes.
    """

    per_host: int
    inside: float
    between: float
    latency: float


def gather_seconds(size: float, devices: int, links: Links, calls: float = 1.0) -> float:
    """Seconds of an all-gather or reduce-scatter of `size` bytes (unsharded): a ring within each
    host, then one ring between hosts for each device of a host, each with its shard.

    In a ring of k devices each passes on (k - 1) / k of the bytes, in k - 1 messages a call.
    """
    inside = min(devices, links.per_host)
    hosts = -(-devices // links.per_host)
    return (
        (inside - 1) / inside * size / links.inside
        + (hosts - 1) / hosts * size / inside / links.between
        + calls * (inside - 1 + hosts - 1) * links.latency
    )


@dataclass(frozen=True)
class Step:
    """A step on many devices, in seconds.

    Attributes:
        compute: forward and backward passes of all micro-batches.
        update: AdamW and EMA.
        reduction: of the gradients and their norms.
        weights: gathering the running weights.
        teacher: gathering the target encoder.
        overlapped: the part of `teacher` that overlaps with the next step's student, as the engine
            runs.
        overlappable: the communication that could overlap with computation: `overlapped`, all but
            the last bucket of a reduction with the backward pass, a stage 3 gather with the layer
            before it.
    """

    micro_batch: float
    accumulation: float
    compute: float
    update: float
    reduction: float
    weights: float
    teacher: float
    overlapped: float
    overlappable: float

    @property
    def communication(self) -> float:
        """All communication, overlapped or not."""
        return self.reduction + self.weights + self.teacher

    @property
    def exposed(self) -> float:
        """The step's time as the engine runs."""
        return self.compute + self.update + self.communication - self.overlapped

    @property
    def best(self) -> float:
        """The step's time if all communication overlapped that could."""
        return self.compute + self.update + self.communication - self.overlappable


def step_on(
    devices: int,
    stage: Stage,
    parts: Parts,
    sizes: Bytes,
    links: Links,
    global_batch: int,
    micro_batch: int,
) -> Step:
    """Predict a step of `global_batch` clips, split into micro-batches of at most `micro_batch`.

    Stages 0 and 1 all-reduce the gradients once a step (a reduce-scatter and an all-gather; stage 1
    in bf16 omits the gather). Stage 2 all-reduces after every micro-batch; stage 3 reduce-scatters
    after every micro-batch. From stage 1 on each device updates its shard, then weights and target
    encoder are gathered. Stage 3 gathers the weights before each forward pass instead, and part of
    a large model's again in the backward pass.

    Args:
        devices: devices that divide the batch equally.
        parts: measured on one device; computation is assumed proportional to the clips.
    """
    clips = global_batch / devices
    accumulation = max(1.0, -(-clips // micro_batch))
    micro = clips / accumulation
    scale = micro / parts.clips
    forward, backward = scale * parts.forward, scale * parts.backward
    elements = sizes.gradients / 4  # fp32
    own = stage == 1 and sizes.bf16  # then reduced by our code, else by DeepSpeed
    buckets = GROUPS if own else math.ceil(elements / REDUCED)
    scatter = gather_seconds(sizes.gradients, devices, links, buckets)
    norms = 2 * gather_seconds(0.0, devices, links, NORMS if stage else 1)
    once = 1.0 if own else 2.0
    reductions = {0: 2.0, 1: once, 2: 2 * accumulation, 3: accumulation}[stage]
    if stage == 3:
        again = max(0.0, 1.0 - LIVE / 2 / elements)  # the last layers' stay for the backward pass
        calls = 1 + math.ceil(elements / FETCHED)
        fetches = accumulation * (1 + again)
        weights = fetches * gather_seconds(sizes.weights, devices, links, calls)
        weights += gather_seconds(0.0, devices, links)  # persistent parameters, after the step
    else:
        weights = gather_seconds(sizes.weights, devices, links, GROUPS) if stage else 0.0
    teacher = gather_seconds(sizes.teacher, devices, links, TEACHER_GROUPS) if stage else 0.0
    overlapped = min(teacher, scale * (parts.context + parts.predictor))
    overlappable = min(reductions * scatter, backward * (accumulation if stage >= 2 else 1))
    if stage == 3:
        compute = accumulation * (forward + backward)
        overlappable += min(weights, compute - overlappable - overlapped)
    return Step(
        micro_batch=micro,
        accumulation=accumulation,
        compute=accumulation * (forward + backward),
        update=(parts.optimizer + parts.ema) / (devices if stage else 1),
        reduction=reductions * scatter + norms,
        weights=weights,
        teacher=teacher,
        overlapped=overlapped,
        overlappable=overlappable + overlapped,
    )
