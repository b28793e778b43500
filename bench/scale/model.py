"""How long a step takes on many GPUs, on paper: measured parts of a step, stated links, and what
each ZeRO stage sends. Pure functions; bench/scaling.py feeds them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Stage = Literal[0, 1, 2, 3]

# How the engine calls its collectives (training/engine.py, DeepSpeed's defaults).
GROUPS, TEACHER_GROUPS = 4, 2  # flat groups of parameters, each gathered by one call
NORMS = 2  # all-reduces of a few numbers: gradient norms (stage 0 has them), what is not finite
REDUCED, FETCHED = 5e8, 5e7  # elements of a gradient bucket, of a stage 3 prefetch
LIVE = 1e9  # stage 3 keeps weights that are used again within so many elements


@dataclass(frozen=True)
class Parts:
    """Measured seconds on one device: of one micro-batch of `clips`, and of a step's end."""

    clips: float
    target: float
    context: float
    predictor: float
    backward: float
    optimizer: float
    ema: float

    @property
    def forward(self) -> float:
        """Before the backward pass."""
        return self.target + self.context + self.predictor


@dataclass(frozen=True)
class Bytes:
    """What is sent, whole: gradients, weights that run, and the target encoder's weights."""

    gradients: float
    weights: float
    teacher: float

    @property
    def bf16(self) -> bool:
        """Whether weights run in less than the gradients' fp32."""
        return self.weights < self.gradients


@dataclass(frozen=True)
class Links:
    """What a device can send, and receive at the same time.

    Attributes:
        per_host: devices of a host.
        inside: bytes/s of one device to those of its host.
        between: bytes/s of one device to other hosts.
        latency: seconds that a message takes beside its bytes.
    """

    per_host: int
    inside: float
    between: float
    latency: float


def gather_seconds(size: float, devices: int, links: Links, calls: float = 1.0) -> float:
    """An all-gather of `size` bytes, whole, or a reduce-scatter of as many: a ring within each
    host, then rings between hosts, one for each device of a host, each with its share.

    A ring of k devices sends (k - 1) / k of the bytes past each of them, in k - 1 messages a call.
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
        update: AdamW and the average.
        reduction: of the gradients and their norms.
        weights: gathering the weights that run.
        teacher: gathering the target encoder.
        passing: of that, what passes behind the next step's student, as the engine runs.
        hidden: of the communication, what could pass behind computation: this, all but the last
            bucket of a reduction behind the backward pass, a stage 3 gather behind the layer
            before.
    """

    micro_batch: float
    accumulation: float
    compute: float
    update: float
    reduction: float
    weights: float
    teacher: float
    passing: float
    hidden: float

    @property
    def communication(self) -> float:
        """All that is sent."""
        return self.reduction + self.weights + self.teacher

    @property
    def exposed(self) -> float:
        """The step's time as the engine runs."""
        return self.compute + self.update + self.communication - self.passing

    @property
    def overlapped(self) -> float:
        """The step's time if all is hidden that could be."""
        return self.compute + self.update + self.communication - self.hidden


def step_on(
    devices: int,
    stage: Stage,
    parts: Parts,
    sizes: Bytes,
    links: Links,
    global_batch: int,
    micro_batch: int,
) -> Step:
    """Predict a step of `global_batch` clips, cut into micro-batches of at most `micro_batch`.

    Stages 0 and 1 all-reduce the gradients once a step (a reduce-scatter and an all-gather; in bf16
    stage 1 does without the gather); stage 2 does after every micro-batch, and stage 3
    reduce-scatters them. From stage 1 on each device
    updates its share, then weights and target encoder are gathered; stage 3 gathers the weights
    before each forward pass instead, and of a large model a part again in the backward pass.

    Args:
        devices: that take equal shares of the batch.
        parts: measured on one device; computation is taken to grow with the clips.
    """
    share = global_batch / devices
    accumulation = max(1.0, -(-share // micro_batch))
    micro = share / accumulation
    scale = micro / parts.clips
    forward, backward = scale * parts.forward, scale * parts.backward
    elements = sizes.gradients / 4  # fp32
    own = stage == 1 and sizes.bf16  # then by `shards.reduce_gradients`, else by DeepSpeed
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
        weights += gather_seconds(0.0, devices, links)  # what it keeps whole, after the step
    else:
        weights = gather_seconds(sizes.weights, devices, links, GROUPS) if stage else 0.0
    teacher = gather_seconds(sizes.teacher, devices, links, TEACHER_GROUPS) if stage else 0.0
    passing = min(teacher, scale * (parts.context + parts.predictor))
    hidden = min(reductions * scatter, backward * (accumulation if stage >= 2 else 1))
    if stage == 3:
        hidden += min(weights, accumulation * (forward + backward) - hidden - passing)
    return Step(
        micro_batch=micro,
        accumulation=accumulation,
        compute=accumulation * (forward + backward),
        update=(parts.optimizer + parts.ema) / (devices if stage else 1),
        reduction=reductions * scatter + norms,
        weights=weights,
        teacher=teacher,
        passing=passing,
        hidden=hidden + passing,
    )
