"""A checksum that tells the weights of networks apart."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from torch import Tensor


def weights_checksum(weights: Mapping[str, Tensor]) -> int:
    """CRC-32 of names and fp32 values, whatever the order, the device and the form of the weights.

    Probes and features hold that of their encoder: another encoder's features mean nothing to them.
    """
    crc = 0
    for name in sorted(weights):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(weights[name].detach().float().cpu().contiguous().numpy(), crc)
    return crc
