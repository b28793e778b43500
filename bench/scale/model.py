"""Predicts a step's time on many GPUs from measured parts, stated bandwidths and the bytes sent.

Pure functions; bench/scaling.py calls them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Stage = Literal[0, 1, 2, 3]

NORMS = 2  # small all-reduces: gradient norms (stage 0 has them already), the non-finite flag
# How DeepSpeed calls the collectives of stage 3 (its defaults).
TEACHER_GROUPS = 2  # flat groups of parameters of the target encoder, each gathered by one call
REDUCED, FETCHED = 5e8, 5e7  # elements of a gradient bucket, of a prefetch
LIVE = 1e9  # weights that are used again within this many elements are kept


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
    """Unsharded sizes of what is sent: gradients, running weights, target encoder weights; and the
    buckets that stages 0 to 2 send gradients and weights in, and those of the target encoder."""

    gradients: float
    weights: float
    teacher: float
    buckets: int = 1
    teacher_buckets: int = 1


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
        micro_batch: clips of a device and micro-batch.
        accumulation: micro-batches of a device.
        compute: forward and backward passes of all micro-batches.
        update: AdamW and EMA.
        reduction: of the gradients and their norms.
        weights: gathering the running weights.
        teacher: gathering the target encoder.
        waits: for communication that computation does not hide.
    """

    micro_batch: float
    accumulation: float
    compute: float
    update: float
    reduction: float
    weights: float
    teacher: float
    waits: float

    @property
    def communication(self) -> float:
        """All communication, hidden or not."""
        return self.reduction + self.weights + self.teacher

    @property
    def exposed(self) -> float:
        """The step's time as the engine runs."""
        return self.compute + self.update + self.waits

    @property
    def apart(self) -> float:
        """The step's time if nothing were hidden."""
        return self.compute + self.update + self.communication

    @property
    def best(self) -> float:
        """The longer of computation and communication: no order of a step takes less."""
        return max(self.compute + self.update, self.communication)


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

    Stage 0 all-reduces the gradients (a reduce-scatter and an all-gather), stage 1 reduce-scatters
    them, both during the last micro-batch's backward pass, stage 2 during every one; stage 3
    reduce-scatters in every one, and nothing is hidden. From stage 1 on each device updates its
    shard, then target encoder and weights are gathered. Stage 3 gathers the weights before each
    forward pass instead, and part of a large model's again in the backward pass; only its target
    encoder is gathered behind other work.

    Args:
        devices: devices that divide the batch equally.
        parts: measured on one device; computation is assumed proportional to the clips.
    """
    clips = global_batch / devices
    accumulation = max(1.0, -(-clips // micro_batch))
    micro = clips / accumulation
    scale = micro / parts.clips
    target, student = scale * parts.target, scale * (parts.context + parts.predictor)
    backward = scale * parts.backward
    norms = 2 * gather_seconds(0.0, devices, links, NORMS if stage else 1)
    if stage == 3:
        reduction, weights, teacher = _stage_3(devices, sizes, links, accumulation)
        waits = reduction + weights + max(0.0, teacher - student)
    else:
        buckets, times = sizes.buckets, 2 if stage == 0 else 1
        once = times * gather_seconds(sizes.gradients, devices, links, buckets)
        reductions = accumulation if stage == 2 else 1.0
        reduction, weights, teacher = reductions * once, 0.0, 0.0
        waits = reductions * hidden_behind(backward, once, buckets)
        if stage:
            weights = gather_seconds(sizes.weights, devices, links, buckets)
            teacher = gather_seconds(sizes.teacher, devices, links, sizes.teacher_buckets)
            waits += gathered_ahead(
                target, teacher, sizes.teacher_buckets, student, weights, buckets
            )
    return Step(
        micro_batch=micro,
        accumulation=accumulation,
        compute=accumulation * (target + student + backward),
        update=(parts.optimizer + parts.ema) / (devices if stage else 1),
        reduction=reduction + norms,
        weights=weights,
        teacher=teacher,
        waits=waits + norms,
    )


def hidden_behind(backward: float, reduction: float, buckets: int) -> float:
    """Seconds that a reduction goes on after the backward pass.

    The pass fills the buckets one after another: the first one is sent when it is full, the last
    one when the pass has ended.
    """
    return max(reduction / buckets, reduction - backward * (1 - 1 / buckets))


def gathered_ahead(
    target: float,
    teacher: float,
    teacher_buckets: int,
    student: float,
    weights: float,
    buckets: int,
) -> float:
    """Seconds that both forward passes wait for their weights.

    The target encoder's weights are gathered, then the student's. Each pass begins with its first
    bucket and ends, at the earliest, when it has used its last one.

    Args:
        target, student: seconds of the forward passes.
        teacher, weights: seconds of the gathers.
        teacher_buckets, buckets: calls of each gather.
    """
    # Each wait is how much later than without communication something begins or ends.
    ends = max(teacher / teacher_buckets, teacher + target / teacher_buckets - target)
    starts = max(ends, teacher + weights / buckets - target)
    return max(starts, teacher + weights + student / buckets - target - student)


def _stage_3(
    devices: int, sizes: Bytes, links: Links, accumulation: float
) -> tuple[float, float, float]:
    """Seconds of the reduction, of gathering the weights, of gathering the target encoder."""
    elements = sizes.gradients / 4  # fp32
    calls = math.ceil(elements / REDUCED)
    reduction = accumulation * gather_seconds(sizes.gradients, devices, links, calls)
    again = max(0.0, 1.0 - LIVE / 2 / elements)  # the last layers' stay for the backward pass
    calls = 1 + math.ceil(elements / FETCHED)
    fetches = accumulation * (1 + again)
    weights = fetches * gather_seconds(sizes.weights, devices, links, calls)
    weights += gather_seconds(0.0, devices, links)  # persistent parameters, after the step
    return reduction, weights, gather_seconds(sizes.teacher, devices, links, TEACHER_GROUPS)
