"""`vjepa-fast import`: published weights become a checkpoint that training can start from."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vjepa_fast.commands.terminal import path_argument, positive_int

if TYPE_CHECKING:
    from vjepa_fast.exchange.import_weights import Imported

HELP = "turn published weights into a checkpoint from which training can continue"
RECIPES = {1: "configs/adapt_vitl16.json", 2: "configs/adapt2_vitl16.json"}
DESCRIPTION = """\
Make a run folder whose checkpoint holds published weights. Takes the files of V-JEPA
(.pth.tar) and V-JEPA 2 (.pt), folders and files of transformers (VJEPA2Model,
VJEPA2ForVideoClassification), and what `vjepa-fast export` wrote.

Nothing in a file is ever executed, and every tensor in it is accounted for. Where neither the
weights nor a config tell something, an error names the option to give."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source", type=path_argument, metavar="FILE_OR_FOLDER", help="the weights to import"
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        required=True,
        metavar="RUN",
        help="run folder to make, e.g. runs/vitl16",
    )
    parser.add_argument(
        "--heads",
        type=positive_int,
        help="attention heads of the encoder, if its width is not that of a published one",
    )
    parser.add_argument(
        "--predictor-heads",
        type=positive_int,
        help="attention heads of the predictor (default: first generation, those of the encoder; "
        "second, 12 if its width is 384)",
    )
    parser.add_argument(
        "--crop-size",
        type=positive_int,
        help="side of a clip in pixels, e.g. 256; needed where neither a position table nor a "
        "config tells it",
    )
    parser.add_argument(
        "--num-frames",
        type=lengths,
        metavar="FRAMES",
        help="frames of a clip, e.g. 64; needed in the same case, and for V-JEPA 2 others than the "
        "file's may be given; for a predictor that was trained on several lengths all of them, in "
        "the order of its mask tokens, e.g. 16,64",
    )
    parser.add_argument(
        "--generation",
        type=int,
        choices=(1, 2),
        help="1: V-JEPA, 2: V-JEPA 2 (default: what the file shows)",
    )


def lengths(text: str) -> tuple[int, ...]:
    """Numbers of frames, separated by commas, for argparse."""
    return tuple(positive_int(part.strip()) for part in text.split(","))


def run(options: argparse.Namespace) -> int:
    """Import, and print what went where, the model section, and the next command.

    Raises:
        UserError: see `import_weights`.
    """
    from vjepa_fast.exchange.import_weights import import_weights

    imported = import_weights(
        options.source,
        options.output,
        heads=options.heads,
        predictor_heads=options.predictor_heads,
        crop_size=options.crop_size,
        num_frames=options.num_frames,
        generation=options.generation,
    )
    print("\n".join(summary(imported)))
    return 0


def summary(imported: Imported) -> Iterator[str]:
    """What went where, what was recognized, the model section, and the next command."""
    file = imported.file
    yield f"{'in the file':<16}{'tensors':>8}{'parameters':>15}  where it went"
    networks = {"encoder": "encoder", "target_encoder": "target encoder", "predictor": "predictor"}
    for part, weights in file.parts.items():
        tensors = sum(len(weight.pieces) for weight in weights.values())
        parameters = sum(math.prod(weight.shape) for weight in weights.values())
        went = [name for key, name in networks.items() if imported.written.get(key) == part]
        yield f"{part:<16}{tensors:>8}{parameters:>15,}  {' and '.join(went)}"
    left_out = Counter((name.split(".")[0], why) for name, why in file.left_out.items())
    for (part, why), count in left_out.items():
        yield f"{part:<16}{count:>8}{'':>15}  left out: {why}"
    frames = " or ".join(map(str, file.num_frames))
    yield f"generation {file.recognized['generation']}"
    yield f"clips of {frames} frames, {file.crop_size} px, by {file.recognized['clip']}"
    yield "model section for a config:"
    yield f'"model": {json.dumps(imported.config["model"], indent=2)}'
    yield f"run folder: {imported.run} (config.json, checkpoints)"
    recipe = RECIPES[file.generation]
    fits = is_recipes_model(imported.config["model"], file.generation)
    has = "its model section is this one" if fits else "put this model section into it"
    yield f"next, on your own videos, with {recipe} ({has}):"
    settings = [f"init.checkpoint={imported.run}"]
    if "predictor" not in file.parts:
        settings.append("init.predictor=fresh")
    settings.append('data.manifests=["data/mine.csv"]')
    sets = " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
    yield f"deepspeed vjepa_fast/train.py --config {recipe} {sets}"


def is_recipes_model(model: dict, generation: int) -> bool:
    """Whether the recipe of that generation is for a model of this shape: a ViT-L/16."""
    from vjepa_fast.config.networks import ModelConfig

    recipe = ModelConfig.model_validate({"encoder": "vit_large"})
    own = ModelConfig.model_validate(model)
    heads = recipe.encoder.heads if generation == 1 else 12
    if own.positions == "rope":  # of an export of ours
        return False
    return (own.encoder, own.patch_size, own.tubelet_size, own.uniform_power) == (
        recipe.encoder,
        recipe.patch_size,
        recipe.tubelet_size,
        recipe.uniform_power,
    ) and own.predictor == recipe.predictor.model_copy(update={"heads": heads})
