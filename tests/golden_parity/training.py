"""Compares a golden file of training steps with the shipped model, trainer and engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.golden_parity.items import Item, largest, relative, worst
from vjepa_fast.config.optim import OptimConfig, ZeroConfig
from vjepa_fast.models.jepa import build_vjepa
from vjepa_fast.models.sequences import PackedMasks, pack_masks
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.schedules import Schedules
from vjepa_fast.training.trainer import Trainer
from vjepa_fast.weights import (
    encoder_from_published,
    encoder_to_published,
    load_exactly,
    predictor_from_published,
    predictor_to_published,
)

# As published with the golden files, but for the last.
# The teacher's: three updates, of up to three roundings each and on both sides, of weights up to 2
# are 1.1e-6 off at most, and such an update moves weights by 1e-4.
FEATURES, GRADIENT, WEIGHTS, TEACHER = 1e-5, 1e-4, 1e-5, 1.2e-6


class GoldenRun:
    """A golden file and a trainer that starts where the file starts."""

    def __init__(self, path: Path, stage: int) -> None:
        with np.load(path) as data:
            self.arrays = {name: data[name] for name in data.files}
        self.meta = json.loads(str(self.arrays.pop("meta")))
        self.specs = len(self.meta["masks"])
        self.second = self.meta.get("generation", 1) == 2
        # The second generation's mask token that all specs share; the others stay as they were.
        self.mask_token = self._shared_mask_token() if self.second else None
        self.trainer = self._trainer(stage)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All arrays below a prefix."""
        return {
            name[len(prefix) :]: torch.from_numpy(value)
            for name, value in self.arrays.items()
            if name.startswith(prefix)
        }

    def micro_batch(self, step: int) -> tuple[Tensor, PackedMasks]:
        """Clips and masks of a step."""
        video = torch.from_numpy(self.arrays[f"step{step}/clip"])

        def flat(kind: str) -> tuple[Tensor, Tensor]:
            masks = [self.arrays[f"step{step}/mask_{kind}{i}"] for i in range(self.specs)]
            tokens = torch.from_numpy(np.concatenate([m.ravel() for m in masks]))
            return tokens, torch.tensor([[m.shape[1]] * m.shape[0] for m in masks])

        tokens = self.trainer.model.encoder.num_tokens
        mask_token = None if self.mask_token is None else 0  # ours has no others
        return video, pack_masks(*flat("enc"), *flat("pred"), tokens, mask_token=mask_token)

    def published(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors of encoder and predictor in the published names."""
        encoder = encoder_to_published(_part(tensors, "encoder."))
        predictor = predictor_to_published(_part(tensors, "predictor."))
        if self.mask_token:
            token = predictor.pop("backbone.mask_tokens.0")
            predictor[f"backbone.mask_tokens.{self.mask_token}"] = token
        return encoder, predictor

    def trained(self, golden: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the position tables and the mask tokens that no spec uses."""
        fixed = {"backbone.pos_embed", "backbone.predictor_pos_embed"}
        fixed |= set(self.meta.get("parameters_without_gradient", ()))
        return {name: value for name, value in golden.items() if name not in fixed}

    def _shared_mask_token(self) -> int:
        tokens = set(self.meta["mask_token_of_spec"])
        if len(tokens) != 1:
            raise ValueError(
                f"meta: found mask_token_of_spec {sorted(tokens)}, expected one token for all "
                "specs, as clips of one length have"
            )
        return tokens.pop()

    def _trainer(self, stage: int) -> Trainer:
        meta, optimizer = self.meta, self.meta["optimizer"]
        side = meta["crop_size"] // meta["patch_size"]

        def shape(prefix: str) -> dict:
            return {
                "width": meta[f"{prefix}embed_dim"],
                "depth": meta[f"{prefix}depth"],
                "heads": meta[f"{prefix}num_heads"],
                "mlp_ratio": meta["mlp_ratio"],
            }

        model = build_vjepa(
            encoder=shape(""),
            predictor=shape("predictor_"),
            grid=(meta["num_frames"] // meta["tubelet_size"], side, side),
            patch_size=meta["patch_size"],
            tubelet_size=meta["tubelet_size"],
            num_mask_tokens=1 if self.second else self.specs,
            positions="rope_tiled" if self.second else "sincos",
            uniform_power=meta.get("uniform_power", True),
        )
        encoder = encoder_from_published(self.tensors("init/encoder/"))
        predictor = predictor_from_published(self.tensors("init/predictor/"))
        if self.mask_token is not None:
            predictor["mask_tokens"] = predictor["mask_tokens"][[self.mask_token]]
        load_exactly(model.encoder, encoder, "init/encoder")
        load_exactly(model.predictor, predictor, "init/predictor")
        init_process_group()
        schedules = Schedules(
            warmup_steps=optimizer["warmup_steps"],
            horizon=optimizer["total_steps"],
            start_lr=optimizer["start_lr"],
            peak_lr=optimizer["lr"],
            final_lr=optimizer["final_lr"],
            start_weight_decay=optimizer["weight_decay"],
            final_weight_decay=optimizer["final_weight_decay"],
            start_momentum=optimizer["ema"][0],
            final_momentum=optimizer["ema"][1],
        )
        optim = OptimConfig(
            steps=len(meta["steps"]),
            global_batch=meta["batch_size"],
            micro_batch=meta["batch_size"],
            lr=optimizer["lr"],
            warmup_steps=optimizer["warmup_steps"],
            betas=tuple(optimizer["betas"]),
            eps=optimizer["eps"],
            clip_grad=optimizer["clip_grad"],
            loss_exponent=meta["loss_exp"],
        )
        return Trainer(
            model,
            schedules,
            optim,
            ZeroConfig(stage=stage),
            micro_batch=optim.micro_batch,
            accumulation=1,
            bf16=False,
        )


def _split(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    pieces = flat.split([t.numel() for t in like.values()])
    return {n: p.view_as(t) for (n, t), p in zip(like.items(), pieces, strict=True)}


def _gradients(trainer: Trainer) -> dict[str, Tensor]:
    """The reduced gradients that the optimiser will see, by parameter name."""
    found = {}
    for shard, tensors in zip(trainer.shards, trainer.optimizer.gradients(), strict=True):
        flat = torch.cat([g.reshape(-1) for g in tensors])[: shard.size]
        like = dict(zip(shard.names, shard.parameters, strict=True))
        found.update({name: g.clone() for name, g in _split(flat, like).items()})
    return found


def _ema(trainer: Trainer) -> dict[str, Tensor]:
    """The fp32 EMA weights of the teacher, by parameter name."""
    found = {}
    for shard in trainer.teacher.shards:
        flat = torch.cat([e.view(-1) for e in trainer.teacher.ema[shard.name]])[: shard.size]
        names = [name.removeprefix("encoder.") for name in shard.names]
        found.update(_split(flat, dict(zip(names, shard.parameters, strict=True))))
    return found


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}


def _forward_items(run: GoldenRun) -> list[Item]:
    """Features, context and predictions of step 0, before any update."""
    video, masks = run.micro_batch(0)
    model, width = run.trainer.model, run.meta["embed_dim"]
    golden = run.tensors("step0/")
    with torch.no_grad():
        features = run.trainer.target_features(video)
        context = model.context(video, masks)
        prediction = model.predictor(context, masks)

    def joined(name: str) -> Tensor:
        return torch.cat([golden[f"{name}{i}"].reshape(-1, width) for i in range(run.specs)])

    target = golden["target_features"].reshape(-1, width)
    items = _other_size(run) if run.second else _position_tables(run)
    return [
        *items,
        Item("target features", largest(features, target), FEATURES),
        Item("context features", largest(context, joined("context")), FEATURES),
        Item("predictions", largest(prediction, joined("prediction")), FEATURES),
    ]


def _position_tables(run: GoldenRun) -> list[Item]:
    return [
        Item(
            f"positions of the {part}",
            largest(network.positions, run.arrays[f"init/{part}/backbone.{name}"][0]),
            1e-6,
        )
        for part, network, name in (
            ("encoder", run.trainer.model.encoder, "pos_embed"),
            ("predictor", run.trainer.model.predictor, "predictor_pos_embed"),
        )
    ]


def _other_size(run: GoldenRun) -> list[Item]:
    """The initial encoder's features of a clip of another size and length."""
    golden = run.tensors("other/")
    with torch.no_grad():
        features = run.trainer.target_features(golden["clip"])
    target = golden["target_features"].reshape(features.shape)
    return [Item("target features at another size", largest(features, target), FEATURES)]


def _gradient_items(run: GoldenRun) -> list[Item]:
    """Every parameter's gradient at step 0, as the engine reduced it."""
    items = []
    for part, ours in zip(
        ("encoder", "predictor"), run.published(_gradients(run.trainer)), strict=True
    ):
        golden = run.trained(run.tensors(f"step0/grad/{part}/"))
        errors = [relative(ours[name], g) for name, g in golden.items()]
        whole = 0.0 if ours.keys() == golden.keys() else float("inf")
        items.append(
            Item(f"gradients of the {part} ({len(golden)})", worst([whole, *errors]), GRADIENT)
        )
    return items


def _final_items(run: GoldenRun) -> list[Item]:
    encoder, predictor = run.published(dict(run.trainer.model.named_parameters()))
    teacher = encoder_to_published(_ema(run.trainer))
    network = encoder_to_published(dict(run.trainer.teacher.network().named_parameters()))
    items = []
    for name, ours, tolerance in (
        ("encoder", encoder, WEIGHTS),
        ("predictor", predictor, WEIGHTS),
        ("target_encoder", teacher, TEACHER),
        ("target_encoder", network, TEACHER),
    ):
        golden = run.trained(run.tensors(f"final/{name}/"))
        whole = 0.0 if ours.keys() == golden.keys() else float("inf")
        error = worst([whole, *(largest(ours[n], g) for n, g in golden.items() if n in ours)])
        items.append(Item(f"final {name} ({len(golden)})", error, tolerance))
    return items


def check_training_steps(path: Path, stage: int) -> list[Item]:
    """Forward, gradients, losses, norms and final weights of a golden training-steps file."""
    run = GoldenRun(path, stage)
    items = _forward_items(run)
    for step, golden in enumerate(run.meta["steps"]):
        loss, *last = run.trainer.backward([run.micro_batch(step)])
        if step == 0:
            items += _gradient_items(run)
        result = run.trainer.update(loss, *last)
        items.append(Item(f"step {step} loss", largest(result.loss, golden["loss"]), FEATURES))
        for part, norm in result.grad_norms.items():
            expected = golden[f"grad_norm_{part}"]
            items.append(
                Item(f"step {step} gradient norm, {part}", relative(norm, expected), GRADIENT)
            )
        decaying = next(g for g in run.trainer.optimizer.torch.param_groups if g["decays"])
        for name, value in (
            ("lr", decaying["lr"]),
            ("wd", decaying["weight_decay"]),
            ("momentum", run.trainer.schedules.momentum(step)),
        ):
            items.append(Item(f"step {step} {name}", relative(value, golden[name]), 1e-9))
    items += _final_items(run)
    return [Item(f"ZeRO {stage}: {i.name}", i.error, i.tolerance) for i in items]
