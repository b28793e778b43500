"""The baseline of bench/throughput.py: V-JEPA's training step in plain PyTorch.

It makes the usual choices of public trainers. The whole video is normalized to floats. Every pass
embeds all patches, then gathers with an index repeated over the width. Encoder and predictor run
once per mask. All target features are layer-normed before half of them are gathered. Clipping and
AdamW are torch's. The EMA is updated tensor by tensor. bf16 runs under autocast. The loss is read
at every step (a host sync). Rotary positions turn queries and keys axis by axis, by angles that
every block computes anew. Parameters have the names of our model, so that both sides start from the
same weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa_fast.config import Config
from vjepa_fast.kernels.patchify import IMAGENET_MEAN, IMAGENET_STD
from vjepa_fast.models.positions import position_table
from vjepa_fast.training.schedules import make_schedules


def normalize(video: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, T, H, W, 3] → `dtype` [B, 3, T, H, W]."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=dtype, device=video.device).view(3, 1, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=dtype, device=video.device).view(3, 1, 1, 1)
    return (video.permute(0, 4, 1, 2, 3).to(dtype) / 255.0 - mean) / std


def repeat_gather(x: Tensor, index: Tensor) -> Tensor:
    """x [B, N, D] at index [B, K] → [B, K, D]."""
    return torch.gather(x, 1, index.unsqueeze(-1).repeat(1, 1, x.shape[-1]))


def rotate(x: Tensor, place: Tensor, tiled: bool) -> Tensor:
    """x [B, heads, K, a], neighboring channels turned by their places [B or 1, heads or 1, K]."""
    half = x.shape[-1] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    i = torch.arange(half, dtype=dtype, device=x.device)
    angle = place.unsqueeze(-1) / 10000.0 ** (i / half)
    cos, sin = (
        torch.cat([t, t], -1) if tiled else t.repeat_interleave(2, -1)
        for t in (angle.cos(), angle.sin())
    )
    first, second = x.unflatten(-1, (half, 2)).unbind(-1)
    turned = torch.stack([-second, first], -1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


def rotate_axes(x: Tensor, places: Sequence[Tensor], tiled: bool) -> Tensor:
    """x [B, heads, K, d] with a part of its channels rotated for each axis (V-JEPA 2)."""
    width = 2 * (x.shape[-1] // 6)
    *parts, rest = x.split([width] * len(places) + [x.shape[-1] - len(places) * width], -1)
    rotated = [rotate(part, place, tiled) for part, place in zip(parts, places, strict=True)]
    return torch.cat([*rotated, rest], -1)


class Attention(nn.Module):
    """With rotary positions, tokens [B, K] or [K] are the rows' places in the grid."""

    def __init__(self, width: int, heads: int, config: Config) -> None:
        super().__init__()
        self.heads, self.grid, self.positions = heads, config.grid, config.model.positions
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.positions != "sincos":
            q, k = self.rotate(q, k, tokens)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, d))

    def rotate(self, q: Tensor, k: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys; masked tokens' places are repeated over the heads."""
        if tokens.ndim == 2:
            tokens = tokens.unsqueeze(1).repeat(1, self.heads, 1)
        _, height, width = self.grid
        frame = tokens // (height * width)
        row = tokens % (height * width) // width
        places = frame, row, tokens % width
        tiled = self.positions == "rope_tiled"
        return rotate_axes(q, places, tiled), rotate_axes(k, places, tiled)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, config: Config, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, config)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, round(width * mlp_ratio))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), tokens)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel)

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(video).flatten(2).transpose(1, 2)


def add_table(module: nn.Module, width: int, config: Config) -> None:
    """Add the buffer `positions` [1, N, width]; None with rotary positions."""
    table = None
    if config.model.positions == "sincos":
        table = position_table(width, config.grid, config.model.uniform_power).unsqueeze(0)
    module.register_buffer("positions", table, persistent=False)


class Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        model, shape = config.model, config.model.encoder
        kernel = (model.tubelet_size, model.patch_size, model.patch_size)
        self.patch_embed = PatchEmbed(shape.width, kernel)
        add_table(self, shape.width, config)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, config, shape.mlp_ratio) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """Features [B, K, D] of the tokens `index` [B, K] of a normalized video; None: of all."""
        x = self.patch_embed(video)
        if self.positions is not None:
            x = x + self.positions
        tokens = torch.arange(x.shape[1], device=x.device) if index is None else index
        if index is not None:
            x = repeat_gather(x, index)
        for block in self.blocks:
            x = block(x, tokens)
        return self.norm(x)


class Predictor(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        shape, encoder_width = config.model.predictor, config.model.encoder.width
        self.embed = nn.Linear(encoder_width, shape.width)
        self.mask_tokens = nn.Parameter(torch.zeros(config.num_mask_tokens, shape.width))
        add_table(self, shape.width, config)
        self.blocks = nn.ModuleList(
            Block(shape.width, config.model.predictor_heads, config) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.proj = nn.Linear(shape.width, encoder_width)

    def forward(self, encoded: Tensor, context: Tensor, target: Tensor, spec: int) -> Tensor:
        """Features at target [B, Kt], from encoded [B, Kc, D] at context [B, Kc]."""
        clips, kept = context.shape
        x = self.embed(encoded)
        token = self.mask_tokens[spec % len(self.mask_tokens)]  # one of its own, or shared
        wanted = token.repeat(clips, target.shape[1], 1)
        if self.positions is not None:
            positions = self.positions.repeat(clips, 1, 1)
            x = x + repeat_gather(positions, context)
            wanted = wanted + repeat_gather(positions, target)
        x, tokens = torch.cat([x, wanted], dim=1), torch.cat([context, target], dim=1)
        for block in self.blocks:
            x = block(x, tokens)
        return self.proj(self.norm(x)[:, kept:])


class Student(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.predictor = Predictor(config)


def no_mark(part: str) -> None:
    """A step's `mark` when its parts are not timed."""


class BaselineTrainer:
    """Student, teacher and optimizer, with the weights of one of our models.

    Args:
        config: the run's config; a step is one micro-batch.
        weights: state dict of our model.
        device: where to run; in bf16 by autocast if the config asks for it on this device.
        dtype: of weights, pixels and AdamW; float64 for a reference.
    """

    def __init__(
        self,
        config: Config,
        weights: dict[str, Tensor],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.dtype, self.optim = device, dtype, config.optim
        self.bf16 = config.precision_on(device.type) == "bf16"
        self.student = Student(config)
        self.student.load_state_dict(weights)
        self.student.to(device, dtype)
        self.teacher = copy.deepcopy(self.student.encoder).requires_grad_(False)
        self.schedules = make_schedules(config)
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=0.0, betas=self.optim.betas, eps=self.optim.eps
        )
        self.steps = 0
        self.grad_norms: dict[str, Tensor] = {}
        self.wants_grad_norms = False  # also where nothing is clipped; then they cost time
        if config.compile:
            networks = (self.student.encoder, self.student.predictor, self.teacher)
            for block in (block for network in networks for block in network.blocks):
                block.compile(dynamic=True)

    def step(
        self,
        video: Tensor,
        contexts: Sequence[Tensor],
        targets: Sequence[Tensor],
        mark: Callable[[str], None] = no_mark,
    ) -> float:
        """One optimizer step; the loss.

        Args:
            video: uint8 [B, T, H, W, 3].
            contexts, targets: tokens of each mask spec, [B, K] int64.
            mark: called with the name of each part as it ends.
        """
        self._set_schedules(self.steps)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            pixels = normalize(video, self.dtype)
            wanted = self.targets(pixels, targets)
            mark("target")
            encoded = [self.student.encoder(pixels, index) for index in contexts]
            mark("context")
            masks = enumerate(zip(encoded, contexts, targets, strict=True))
            predicted = [self.student.predictor(*mask, spec) for spec, mask in masks]
            loss = self.loss(predicted, wanted)
            mark("predictor")
        loss.backward()
        mark("backward")
        if self.optim.clip_grad is not None or self.wants_grad_norms:
            limit = math.inf if self.optim.clip_grad is None else self.optim.clip_grad
            for name, network in self.student.named_children():
                self.grad_norms[name] = nn.utils.clip_grad_norm_(network.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        mark("optimizer")
        self.update_ema(self.schedules.momentum(self.steps))
        mark("ema")
        self.steps += 1
        return loss.item()  # host sync

    @torch.no_grad()
    def targets(self, pixels: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
        """Normalized features of the teacher at each mask's targets, [B, K, D]."""
        features = self.teacher(pixels)
        features = F.layer_norm(features, features.shape[-1:])
        return [repeat_gather(features, index) for index in targets]

    def loss(self, predicted: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """|z - y|^p / p, a mean for each mask, then over masks."""
        p = self.optim.loss_exponent
        losses = [
            torch.mean(torch.abs(z - y) ** p) / p for z, y in zip(predicted, wanted, strict=True)
        ]
        return sum(losses) / len(losses)

    @torch.no_grad()
    def update_ema(self, momentum: float) -> None:
        """θ' ← m θ' + (1 - m) θ."""
        pairs = zip(self.teacher.parameters(), self.student.encoder.parameters(), strict=True)
        for ema, weight in pairs:
            ema.mul_(momentum).add_((1.0 - momentum) * weight)

    def _groups(self) -> list[dict]:
        named = list(self.student.named_parameters())
        matrices = [p for _, p in named if p.ndim >= 2]
        others = [p for _, p in named if p.ndim < 2]
        return [
            {"params": matrices, "decays": True},
            {"params": others, "decays": False, "weight_decay": 0.0},
        ]

    def _set_schedules(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedules.lr(step)
            if group["decays"]:
                group["weight_decay"] = self.schedules.weight_decay(step)
