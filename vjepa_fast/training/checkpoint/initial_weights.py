"""Starting a run from the weights of another one, as the config's `init` section says.

Step 0, fresh optimizer state, new schedules. Frames, crop and masks may differ from those of the
other run: position tables are computed anew, and rotary positions need none. `mask_tokens_from`
says from which mask token of the checkpoint each one starts.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vjepa_fast.config import Config
from vjepa_fast.config.optim import InitConfig
from vjepa_fast.errors import UserError
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints, shard_name
from vjepa_fast.training.checkpoint.resume import first_difference
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.recipe import model_changes, stored_config
from vjepa_fast.training.trainer import Trainer
from vjepa_fast.training.zero.shards import GroupShard

log = logging.getLogger("vjepa_fast")

_MASK_TOKENS = "predictor.mask_tokens"


def with_pinned_init(config: Config, host_group: HostGroup) -> Config:
    """Replace a run in `init.checkpoint` by its newest checkpoint, as rank 0 sees it. Collective.

    A run that has a checkpoint of its own resumes, and keeps the one that it was started from,
    which need not exist any more.

    Raises:
        UserError: no such checkpoint.
    """
    named = config.init.checkpoint
    if named is None:
        return config
    pinned = _started_from(Path(config.output), Path(named))
    pinned = pinned or str(Checkpoint.find(Path(named)).folder)
    pinned = host_group.all_gather(pinned)[0]  # the other run may save and remove meanwhile
    init = config.init.model_copy(update={"checkpoint": pinned})
    return config.model_copy(update={"init": init})


def _started_from(run: Path, named: Path) -> str | None:
    """The checkpoint that a run with checkpoints was started from, if `named` is it or its run."""
    own = checkpoints(run)
    if not own:
        return None
    try:
        config = Checkpoint.open(own[-1]).state["config"]
    except UserError:
        return str(named)  # resuming will say what is wrong with it
    pinned = config.get("init", {}).get("checkpoint")
    if pinned and named in (Path(pinned), Path(pinned).parent.parent):
        return pinned
    return str(named)  # resuming will say that it is another one


def open_initial(config: Config, host_group: HostGroup) -> Checkpoint | None:
    """Open `init.checkpoint` and check that this run can start from it. Collective.

    Reads all weights that will be used, each rank a part of the shards. Needs no model, so that a
    mistake is found before one is built.

    Returns:
        The checkpoint, or None if the run starts from fresh weights.

    Raises:
        UserError: it is missing, damaged, of another model or not finite, or has no predictor or no
            EMA weights.
    """
    init = config.init
    if init.checkpoint is None:
        return None
    checkpoint = Checkpoint.open(Path(init.checkpoint))
    vectors = list(_vectors(config, checkpoint))
    fresh_predictor = init.predictor == "fresh"
    saved = _config_of(checkpoint)
    changed = model_changes(saved.model, config.model, encoder_only=fresh_predictor)
    if not fresh_predictor and saved.objective != config.objective:
        raise UserError(
            f"init.predictor: found checkpoint, but {checkpoint.folder} predicts "
            f"{saved.objective}, expected {config.objective} as this run; set this key to "
            '"fresh"'
        )
    if changed:
        raise UserError(
            f"init.checkpoint: found {checkpoint.folder} of another model ({'; '.join(changed)}), "
            "expected weights of the same model; set these keys back, or name another checkpoint"
        )
    rank, world = host_group.rank, host_group.world
    own = (_defect(checkpoint, r, vectors) for r in range(rank, checkpoint.world_size, world))
    found = host_group.all_gather(next(filter(None, own), None))
    defect = next(filter(None, found), None)
    if defect:
        raise UserError(
            f"{defect}, expected an intact checkpoint with finite weights; name another one in "
            "init.checkpoint"
        )
    return checkpoint


def _config_of(checkpoint: Checkpoint) -> Config:
    return stored_config(checkpoint.state["config"], checkpoint.folder)


def mask_tokens_from(config: Config, checkpoint: Checkpoint) -> list[int]:
    """For each mask token of the run, the one of the checkpoint that it starts from.

    If both have a token for each clip length, that of the same length, else of the nearest one (of
    two equally near ones the shorter). Otherwise token i of the checkpoint, or its last. Imported
    weights of the second generation may have more tokens than clip lengths: those were never used.

    Returns:
        One number per token of the run; empty if the checkpoint has no predictor.
    """
    saved = _config_of(checkpoint)
    shapes = {name: shape for group in checkpoint.state["groups"].values() for name, shape in group}
    if _MASK_TOKENS not in shapes:
        return []
    count = shapes[_MASK_TOKENS][0]
    if saved.model.mask_tokens == "shared":
        count = min(count, saved.num_mask_tokens)
    if saved.model.mask_tokens == config.model.mask_tokens == "shared":
        # Ascending, so min() takes the shorter of two equally near ones.
        of = saved.data.lengths[:count]

        def nearest(length: int) -> int:
            return min(range(len(of)), key=lambda i: abs(of[i] - length))

        return [nearest(length) for length in config.data.lengths]
    return [min(i, count - 1) for i in range(config.num_mask_tokens)]


def _vectors(config: Config, checkpoint: Checkpoint) -> Iterator[str]:
    """The flat vectors that are used, such as "encoder.decay/master"."""
    init = config.init
    from_ema = init.target_encoder == "checkpoint" and config.result_weights == "teacher"
    if from_ema and checkpoint.result_weights != "teacher":
        raise UserError(
            f"init.target_encoder: found checkpoint, but {checkpoint.folder} is of a run without "
            'EMA weights, expected some in it; set this key to "encoder"'
        )
    groups = checkpoint.state["groups"]
    if init.predictor == "checkpoint" and not any(name.startswith("predictor.") for name in groups):
        raise UserError(
            f"init.predictor: found checkpoint, but {checkpoint.folder} has no predictor, expected "
            'one in it; set this key to "fresh"'
        )
    for group in groups:
        part = group.partition(".")[0]
        if getattr(init, part) == "checkpoint":
            yield f"{group}/master"
        if part == "encoder" and from_ema:
            yield f"{group}/teacher"


def _defect(checkpoint: Checkpoint, rank: int, vectors: list[str]) -> str | None:
    """Describe what is wrong with a rank's shard, or None. Reads the whole file."""
    corruption = checkpoint.verify([rank])
    if corruption:
        return corruption
    file = checkpoint.folder / shard_name(rank)
    with safe_open(file, framework="pt") as shard:
        for key in sorted({*vectors} & {*shard.keys()}):
            if not shard.get_tensor(key).isfinite().all():
                return f"{file}: found NaN or infinity in {key}"
    return None


def load_initial(
    trainer: Trainer,
    checkpoint: Checkpoint,
    init: InitConfig,
    mask_tokens: Sequence[int] | None = None,
) -> None:
    """Load the weights into a new trainer, in fp32, at any stage and world size. Collective.

    Args:
        trainer: at step 0, with fresh weights. Those of parts that are to stay fresh are kept.
        checkpoint: from `open_initial`.
        init: which parts to load.
        mask_tokens: from `mask_tokens_from`; None: as they are.

    Raises:
        UserError: the checkpoint holds other names or shapes than this model.
    """
    for shard in trainer.shards:
        if getattr(init, shard.part) == "checkpoint":
            shard.write(_read(checkpoint, shard, "master", mask_tokens), shard.masters)
        ema = trainer.ema.get(shard.name)  # None for the predictor, or without an EMA
        if ema is not None and init.target_encoder == "checkpoint":
            shard.write(_read(checkpoint, shard, "teacher"), ema)
        elif ema is not None and init.target_encoder == "encoder":
            shard.write(shard.read(shard.masters), ema)
    trainer.after_restore(0)


def origin(checkpoint: Checkpoint, config: Config) -> str:
    """What a run was started from, in words.

    Args:
        checkpoint: that it was started from.
        config: of the run.
    """
    init = config.init
    imported, file = checkpoint.imported, ""
    if imported:
        file = f" (imported from {imported['file']}"
        if not {"encoder", "target_encoder"} <= {*imported["parts"]}:
            file += ", whose one encoder is both encoder and target encoder"
        file += ")"
    networks = {"encoder": init.encoder, "predictor": init.predictor}
    if config.objective == "features":
        frozen = config.teacher.mode == "frozen"
        networks["target encoder"] = "teacher.checkpoint" if frozen else init.target_encoder
    parts = ", ".join(f"{network} from {source}" for network, source in networks.items())
    return f"step {checkpoint.state['step']} of {checkpoint.folder}{file}: {parts}"


def write_origin(run: Path, checkpoint: Checkpoint, config: Config) -> None:
    """Log it, and write RUN/started_from.json for the report: the checkpoint may be removed."""
    text = origin(checkpoint, config)
    log.info("started from %s", text)
    content = {"checkpoint": str(checkpoint.folder), "origin": text}
    (run / "started_from.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read(
    checkpoint: Checkpoint,
    shard: GroupShard,
    which: str,
    mask_tokens: Sequence[int] | None = None,
) -> Tensor:
    """Read this rank's ranges of a flat vector, fp32."""
    key = f"{shard.name}/{which}"
    saved = checkpoint.state["groups"].get(shard.name, [])
    own = [list(pair) for pair in zip(shard.names, shard.shapes, strict=True)]
    count = dict(saved).get(_MASK_TOKENS, [0])[0]
    tokens = list(range(count) if mask_tokens is None or not count else mask_tokens)
    if saved == own and tokens == list(range(count)):
        pieces = [checkpoint.read(key, r.start, r.count) for r in shard.ranges]
        return torch.cat(pieces) if pieces else torch.empty(0)
    mapped = [[name, [len(tokens), *s[1:]] if name == _MASK_TOKENS else s] for name, s in saved]
    if mapped != own:
        raise UserError(
            f"{checkpoint.folder}: found {first_difference(mapped, own)} of this model in "
            f"{shard.name}, expected the same names and shapes; name another checkpoint in "
            "init.checkpoint"
        )
    # Only the mask tokens differ, in the predictor, which is small: every rank reads all of it.
    whole = checkpoint.read(key, 0, checkpoint.size(shard.name))
    values = []
    for (name, shape), flat in zip(
        saved, whole.split([math.prod(s) for _, s in saved]), strict=True
    ):
        if name == _MASK_TOKENS:
            flat = flat.view(shape)[tokens].reshape(-1)
        values.append(flat)
    whole = torch.cat(values)
    return torch.cat([whole[:0], *(whole[r.start : r.start + r.count] for r in shard.ranges)])
