"""What is exported: a checkpoint's weights, each read from disk when it is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor

from vjepa_fast.config import Config, parse_config, translate_stored
from vjepa_fast.config.model import empty_encoder
from vjepa_fast.errors import UserError
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.weights import load_exactly

Part = Literal["encoder", "target_encoder", "predictor"]


@dataclass(frozen=True)
class LazyTensor:
    """An fp32 tensor that is not yet in memory.

    Attributes:
        shape: its shape.
        read_range: reads elements start … start + count - 1 of it in raster order, fp32 [count].
    """

    shape: tuple[int, ...]
    read_range: Callable[[int, int], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> LazyTensor:
        """A tensor that is in memory already."""
        flat = tensor.reshape(-1)
        return LazyTensor(tuple(tensor.shape), lambda start, count: flat[start : start + count])

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> Tensor:
        """The tensor, fp32, on the host."""
        return self.read_range(0, self.size).view(self.shape)

    def view(self, *shape: int) -> LazyTensor:
        """The same elements in another shape."""
        return LazyTensor(shape, self.read_range)

    def rows(self, first: int, count: int) -> LazyTensor:
        """`count` rows along the first axis, from row `first` on."""
        row = math.prod(self.shape[1:])
        return LazyTensor(
            (count, *self.shape[1:]),
            lambda start, length: self.read_range(first * row + start, length),
        )


Tensors = Mapping[str, LazyTensor]

Network = Literal["encoder", "target_encoder"]


@dataclass(frozen=True)
class Source:
    """A checkpoint to export, of a run or an imported one.

    Attributes:
        checkpoint: with intact shards.
        config: of the run; that of an imported checkpoint follows from its weights.
        chosen: the network to export; None: the run's result, see `Checkpoint.result_weights`.
    """

    checkpoint: Checkpoint
    config: Config
    chosen: Network | None = None

    @property
    def run(self) -> Path:
        """The run's folder; the checkpoint's own if it is in no run."""
        folder = self.checkpoint.folder
        return folder.parent.parent if folder.parent.name == "checkpoints" else folder

    @property
    def imported(self) -> dict | None:
        """Where the weights came from, if they were imported; see `vjepa-fast import`."""
        return self.checkpoint.imported

    @property
    def generation(self) -> Literal[1, 2]:
        """1: V-JEPA, a position table; 2: V-JEPA 2, rotary positions."""
        return 1 if self.config.model.positions == "sincos" else 2

    @property
    def has_ema(self) -> bool:
        """Whether the checkpoint has a target encoder; a run that froze it does not store it, and
        one that predicts pixels has none.
        """
        return self.checkpoint.result_weights == "teacher"

    @property
    def network(self) -> Network:
        """The network whose features are exported."""
        return self.chosen or self.result

    @property
    def result(self) -> Network:
        """The network that is the run's result, which probes are trained on."""
        return "target_encoder" if self.has_ema else "encoder"

    @property
    def num_frames(self) -> int:
        """Frames of the longest clip."""
        return max(self.config.data.lengths)

    @property
    def pace(self) -> dict[str, float]:
        """How the run samples clips, as `WeightFile.pace` has it."""
        data = self.config.data
        return {"frame_step": data.frame_step} if data.fps is None else {"fps": data.fps}

    @property
    def has_predictor(self) -> bool:
        """Whether the checkpoint has a predictor of features; an imported one may have none."""
        predicts = self.config.objective == "features"
        groups = self.checkpoint.state["groups"]
        return predicts and any(name.startswith("predictor.") for name in groups)

    @cached_property
    def num_mask_tokens(self) -> int:
        """Mask tokens of the predictor, as many as its weights hold."""
        return self.part("predictor")["mask_tokens"].shape[0]

    def part(self, part: Part) -> dict[str, LazyTensor]:
        """The parameters of a network by our names.

        A target encoder that is frozen or that the run does not have is not in its checkpoint: the
        trained encoder stands for it.
        """
        ema = part == "target_encoder" and self.has_ema
        group_part, which = ("predictor" if part == "predictor" else "encoder"), "master"
        if ema:
            which = "teacher"
        found: dict[str, LazyTensor] = {}
        for group, parameters in self.checkpoint.state["groups"].items():
            if group.partition(".")[0] != group_part:
                continue
            offset = 0
            for name, shape in parameters:
                stored = self._stored(f"{group}/{which}", offset, tuple(shape))
                found[name.removeprefix(f"{group_part}.")] = stored
                offset += stored.size
        return found

    def state(self, part: Part) -> dict[str, Tensor]:
        """`part`, read into memory."""
        return {name: value.read() for name, value in self.part(part).items()}

    def _stored(self, key: str, offset: int, shape: tuple[int, ...]) -> LazyTensor:
        return LazyTensor(
            shape, lambda start, count: self.checkpoint.read(key, offset + start, count)
        )

    def build_encoder(self, weights: Mapping[str, Tensor] | None = None) -> VisionTransformer:
        """The encoder in eval mode, fp32, without gradients.

        Args:
            weights: by our names, kept and not copied; None: those of `network`.
        """
        encoder = empty_encoder(self.config.model, self.config.grid_of(self.num_frames))
        if weights is None:
            weights = self.state(self.network)
        load_exactly(encoder, weights, str(self.checkpoint.folder), assign=True)
        return encoder.requires_grad_(False)


def open_source(path: Path, network: Network | None = None) -> Source:
    """Open a run's newest checkpoint, or a checkpoint by its own folder, and check its shards.

    Args:
        path: of the folder.
        network: to export; None: the run's result.

    Raises:
        UserError: there is no checkpoint, it is corrupt, this version cannot read its config, or it
            lacks the network.
    """
    checkpoint = Checkpoint.find(path.resolve())
    corruption = checkpoint.verify()
    if corruption:
        raise UserError(
            f"{corruption}, expected an intact shard; remove this checkpoint and export an older "
            "one"
        )
    try:
        config = parse_config(translate_stored(checkpoint.state["config"]))
    except UserError as error:
        raise UserError(
            f"{checkpoint.folder}: found a stored config that this version cannot read ({error}), "
            "expected one that it can; export another checkpoint, or use the version that wrote it"
        ) from None
    source = Source(checkpoint, config, network)
    if network == "target_encoder" and not source.has_ema:
        raise UserError(
            f"--network: found target_encoder, but {checkpoint.folder} is of a run whose target "
            "encoder is frozen or absent, so not stored, expected encoder; leave the option out"
        )
    return source
