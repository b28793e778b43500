"""The model of a run: with the encoder of `init.checkpoint` and a fresh classifier."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from torch import Tensor

from vjepa_fast.config.fields import multiple
from vjepa_fast.config.finetune.load import parse_finetune_config
from vjepa_fast.config.finetune.schema import FinetuneConfig
from vjepa_fast.config.networks import ModelConfig
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.heads.spec import ProbeForm, make_head
from vjepa_fast.finetuning.model import ClipClassifier
from vjepa_fast.inference.load import check_finite, read_encoder
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.recipe import settings_of

log = logging.getLogger("vjepa_fast")


def stored_settings(config: FinetuneConfig, model: ModelConfig) -> dict:
    """What a run's checkpoints hold: its config, and the model section of its encoder."""
    return settings_of(config) | {"model": json.loads(model.model_dump_json())}


def stored_recipe(saved: dict) -> dict:
    """The config in what a checkpoint of this folder holds, with the defaults of newer keys.

    Raises:
        UserError: it is that of a pretraining.
    """
    if "classifier" not in saved:
        raise UserError(
            "output: found the folder of a pretraining, expected one for this run; give another "
            "one with --set output=…"
        )
    own = {key: value for key, value in saved.items() if key != "model"}
    try:
        return settings_of(parse_finetune_config(own))
    except UserError:
        return own


def pinned_initial(config: FinetuneConfig, host_group: HostGroup) -> Path:
    """`init.checkpoint`, or its newest checkpoint as rank 0 sees it where it is a run. Collective.

    A run that still trains may save and remove checkpoints while the processes look.
    """
    path = Path(config.init.checkpoint)
    saved = checkpoints(path)
    return Path(host_group.all_gather(str(saved[-1] if saved else path))[0])


def read_initial(config: FinetuneConfig, path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The encoder to start from: its model section, and its weights by name, fp32.

    Args:
        config: the run's config.
        path: see `pinned_initial`.

    Raises:
        UserError: it cannot be read, is not finite, or has tokens that do not fit the clips.
    """
    data = config.data
    try:
        found = read_encoder(path, crop_size=data.crop_size, num_frames=data.num_frames)
    except UserError as error:
        raise UserError(f"init.checkpoint: {error}") from None
    for name, value in found.state.items():
        check_finite(name, value, path)
    for key, size, token in (
        ("crop_size", data.crop_size, found.model.patch_size),
        ("num_frames", data.num_frames, found.model.tubelet_size),
    ):
        if size % token:
            raise UserError(
                f"data.{key}: found {size}, expected a multiple of {token}, the size of a token of "
                f"{path}; choose e.g. {multiple(size, token)}"
            )
    return found.model, found.state


def make_model(config: FinetuneConfig, model: ModelConfig, num_classes: int) -> ClipClassifier:
    """Encoder and classifier; the encoder's weights are still to be loaded.

    A position table is computed for the clips of this run.
    """
    data, shape = config.data, model.encoder
    side = data.crop_size // model.patch_size
    encoder = VisionTransformer(
        **shape.model_dump(),
        grid=(data.num_frames // model.tubelet_size, side, side),
        patch_size=model.patch_size,
        tubelet_size=model.tubelet_size,
        positions=model.positions,
        uniform_power=model.uniform_power,
        activation_checkpointing=config.activation_checkpointing,
    )
    form = ProbeForm.of(config.classifier.kind, shape.width, shape.heads, config.classifier.blocks)
    return ClipClassifier(encoder, make_head(form, num_classes, config.seed))


def trained_model(
    checkpoint: Checkpoint, config: FinetuneConfig, num_classes: int
) -> ClipClassifier:
    """The model with the weights of a run's checkpoint, fp32, in eval mode, without gradients."""
    stored = ModelConfig.model_validate(checkpoint.state["config"]["model"])
    model = make_model(config, stored, num_classes)
    for part in ("encoder", "classifier"):
        getattr(model, part).load_state_dict(checkpoint.weights(part, "master"))
    return model.eval().requires_grad_(False)


def write_origin(run: Path, config: FinetuneConfig, path: Path) -> None:
    """Write RUN/started_from.json and log the same; `path`: see `pinned_initial`."""
    text = f"the encoder of {config.init.checkpoint}"
    if path != Path(config.init.checkpoint):
        text += f", step {Checkpoint.open(path).state['step']}"
    log.info("started from %s", text)
    content = {"checkpoint": str(path), "origin": text}
    (run / "started_from.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
