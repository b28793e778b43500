"""The peer's training step: the checkout's networks, in the step that the papers describe (arXiv
2404.08471, section 3; arXiv 2506.09985, section 2)."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peer.generations import SECOND, Generation
from vjepa_fast.config import Config
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import make_sampler
from vjepa_fast.training.schedules import make_schedules

POOL = 4  # synthetic micro-batches


class Step:
    """The checkout's encoder, predictor and target encoder with random weights, and AdamW.

    The video, normalized fp32 [B, 3, T, H, W], is on the device already, since public trainers
    normalize in the data loader. It is noise; the time does not depend on it.

    Args:
        parts: classes and functions of the checkout (`process.load_parts`).
        generation: whose checkout it is.
        config: config of the other sides; a step is one micro-batch.
    """

    def __init__(
        self, parts: SimpleNamespace, generation: Generation, config: Config, device: torch.device
    ) -> None:
        self.device, self.optim, self.gather = device, config.optim, parts.apply_masks
        self.bf16 = config.precision_on(device.type) == "bf16"
        data, model = config.data, config.model
        encoder, predictor = model.encoder, model.predictor
        self.second = generation is SECOND
        common = {
            "img_size": data.crop_size,
            "patch_size": model.patch_size,
            "num_frames": data.num_frames,
            "tubelet_size": model.tubelet_size,
            "embed_dim": encoder.width,
            "norm_layer": partial(nn.LayerNorm, eps=1e-6),
            "uniform_power": model.uniform_power,
        }
        if self.second:
            common["use_rope"] = True
        self.encoder = getattr(parts, generation.encoder)(
            parts.VisionTransformer(
                depth=encoder.depth,
                num_heads=encoder.heads,
                mlp_ratio=encoder.mlp_ratio,
                **common,
            )
        ).to(device)
        self.predictor = getattr(parts, generation.predictor)(
            parts.VisionTransformerPredictor(
                predictor_embed_dim=predictor.width,
                depth=predictor.depth,
                num_heads=config.model.predictor_heads,
                use_mask_tokens=True,
                num_mask_tokens=config.num_mask_tokens,
                **common,
            )
        ).to(device)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        weights = [
            p
            for network in (self.encoder, self.predictor)
            for p in network.parameters()
            if p.requires_grad
        ]
        groups = [
            {"params": [p for p in weights if p.ndim >= 2], "decays": True},
            {"params": [p for p in weights if p.ndim < 2], "decays": False, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=self.optim.betas, eps=self.optim.eps)
        self.schedules = make_schedules(config)
        self.sampler, self.clips = make_sampler(config), config.optim.micro_batch
        self.specs = range(len(config.masks.specs))
        shape = (self.clips, 3, data.num_frames, data.crop_size, data.crop_size)
        random = torch.Generator().manual_seed(config.seed)
        self.pool = [torch.randn(shape, generator=random).to(device) for _ in range(POOL)]

    def parameters(self) -> dict[str, int]:
        """Number of trained parameters of each network."""
        return {
            name: sum(p.numel() for p in network.parameters() if p.requires_grad)
            for name, network in (("encoder", self.encoder), ("predictor", self.predictor))
        }

    def masks(self, step: int) -> tuple[list[Tensor], list[Tensor]]:
        """Context and target tokens of each mask spec, int64 [B, K], on the host: the other sides'
        masks of the same step."""
        masks = self.sampler.sample(step, range(step * self.clips, (step + 1) * self.clips))
        return [masks.context(i) for i in self.specs], [masks.target(i) for i in self.specs]

    def __call__(self, step: int, masks: tuple[list[Tensor], list[Tensor]]) -> float:
        """One optimizer step; the loss."""
        contexts, targets = ([index.to(self.device) for index in side] for side in masks)
        video, momentum = self.pool[step % POOL], self.schedules.momentum(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedules.lr(step)
            if group["decays"]:
                group["weight_decay"] = self.schedules.weight_decay(step)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                features = self.teacher([video])[0] if self.second else self.teacher(video)
                features = F.layer_norm(features, features.shape[-1:])
                wanted = self.gather(features, targets, concat=False)
            if self.second:  # its wrappers take a list with an item for each length of clips
                encoded = self.encoder([video], [contexts])
                (predicted,) = self.predictor(encoded, [contexts], [targets])
            else:
                encoded = self.encoder(video, contexts)
                predicted = self.predictor(encoded, wanted, contexts, targets)
            loss = self.loss(predicted, wanted)
        loss.backward()
        if self.optim.clip_grad is not None:
            for network in (self.encoder, self.predictor):
                nn.utils.clip_grad_norm_(network.parameters(), self.optim.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.encoder.parameters(), strict=True)
            for ema, weight in pairs:
                ema.mul_(momentum).add_((1.0 - momentum) * weight)
        return loss.item()  # host sync

    def loss(self, predicted: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """|z - y|^p / p, a mean for each mask, then over masks.

        Raises UserError unless there is a prediction for each target.
        """
        shapes = [[list(t.shape) for t in side] for side in (predicted, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"--peer: found predictions of shapes {shapes[0]}, expected those of the targets, "
                f"{shapes[1]}; take a checkout of the published main branch"
            )
        p = self.optim.loss_exponent
        pairs = zip(predicted, wanted, strict=True)
        return sum(torch.mean(torch.abs(z - y) ** p) / p for z, y in pairs) / len(wanted)
