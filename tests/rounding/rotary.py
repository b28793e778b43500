"""Rotary positions written out: a matrix for each row in float64, and the usual eager form."""

import math

import torch
from torch import Tensor

HEAD_DIMS = (64, 80, 32, 24, 88, 104, 33, 12, 8, 6, 5)
GRIDS = ((8, 14, 14), (3, 5, 24), (1, 7, 2))
FORMS = ("tiled", "rotation")


def channels(head_dim: int) -> int:
    """Of one axis: the largest even number that a third of the head holds."""
    third = head_dim // 3
    return third - third % 2


def maps_of_an_axis(places: int, a: int, form: str) -> Tensor:
    """[places, a, a], float64."""
    result = torch.zeros(places, a, a, dtype=torch.float64)
    for place in range(places):
        angles = [place * 10_000 ** (-2 * i / a) for i in range(a // 2)]
        for x in range(0, a, 2):
            y = x + 1
            if form == "tiled":
                alpha, beta = angles[x % (a // 2)], angles[y % (a // 2)]
            else:
                alpha = beta = angles[x // 2]
            result[place, x, x], result[place, x, y] = math.cos(alpha), -math.sin(alpha)
            result[place, y, x], result[place, y, y] = math.sin(beta), math.cos(beta)
    return result


def matrices(tokens: Tensor, grid: tuple[int, int, int], head_dim: int, form: str) -> Tensor:
    """What multiplies a query of each row: [rows, head_dim, head_dim], float64."""
    _, height, width = grid
    a, tokens = channels(head_dim), tokens.long()
    result = torch.eye(head_dim, dtype=torch.float64).repeat(len(tokens), 1, 1)
    places = tokens // (height * width), tokens // width % height, tokens % width
    for axis, (place, size) in enumerate(zip(places, grid, strict=True)):
        own = slice(axis * a, (axis + 1) * a)
        result[:, own, own] = maps_of_an_axis(size, a, form)[place.cpu()]
    return result.to(tokens.device)


def rotated(qkv: Tensor, maps: Tensor) -> Tensor:
    """Queries and keys multiplied by `matrices`, values as they are; float64."""
    wide = qkv.double()
    turned = torch.einsum("rij,rphj->rphi", maps, wide[:, :2])
    return torch.cat([turned, wide[:, 2:]], 1)


def plain(
    qkv: Tensor, tokens: Tensor, grid: tuple[int, int, int], form: str, transposed: bool = False
) -> Tensor:
    """As public code writes it: axis by axis in the dtype of qkv, with angles in fp32."""
    _, height, width = grid
    a, parts = channels(qkv.shape[-1]), []
    places = tokens // (height * width), tokens // width % height, tokens % width
    for axis, place in enumerate(places):
        x = qkv[:, :2, :, axis * a : (axis + 1) * a]
        frequency = 1 / 10_000 ** (torch.arange(a // 2, device=qkv.device) / (a / 2))
        angle = place[:, None] * frequency
        angle = angle.repeat(1, 2) if form == "tiled" else angle.repeat_interleave(2, -1)
        cos, sin = (f(angle).to(qkv.dtype)[:, None, None] for f in (torch.cos, torch.sin))
        y = x * sin if transposed else x
        y = torch.stack([-y[..., 1::2], y[..., ::2]], -1).flatten(-2)
        parts.append(x * cos - y if transposed else x * cos + y * sin)
    turned = torch.cat([*parts, qkv[:, :2, :, 3 * a :]], -1)
    return torch.cat([turned, qkv[:, 2:]], 1)
