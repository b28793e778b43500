"""The two public trainers: what a checkout of each has, and which networks it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vjepa_fast.config import Config
from vjepa_fast.errors import UserError

NETWORKS = {
    "VisionTransformer": "src.models.vision_transformer",
    "VisionTransformerPredictor": "src.models.predictor",
    "apply_masks": "src.masks.utils",
}


@dataclass(frozen=True)
class Generation:
    """A public trainer.

    Attributes:
        repository: its name on GitHub.
        model: values of the config's model section that it trains.
        wrappers: module that runs encoder and predictor once per mask.
        encoder, predictor: names of that module's classes.
    """

    repository: str
    model: dict[str, str]
    wrappers: str
    encoder: str
    predictor: str

    @property
    def parts(self) -> dict[str, str]:
        """Classes and functions that are imported from a checkout, and their modules."""
        return NETWORKS | dict.fromkeys((self.encoder, self.predictor), self.wrappers)


FIRST = Generation(
    "facebookresearch/jepa",
    {"positions": "sincos", "mask_tokens": "per_spec"},
    "src.models.utils.multimask",
    "MultiMaskWrapper",
    "PredictorMultiMaskWrapper",
)
SECOND = Generation(
    "facebookresearch/vjepa2",
    {"positions": "rope_tiled", "mask_tokens": "shared"},
    "src.utils.wrappers",
    "MultiSeqWrapper",
    "PredictorMultiSeqWrapper",
)


def not_a_checkout(folder: Path, found: str) -> UserError:
    """The error for a folder that is not a checkout."""
    return UserError(
        f"--peer: found {found}, expected a checkout of {FIRST.repository} or {SECOND.repository}; "
        f"name the folder that holds its README.md and src/ instead of {folder}"
    )


def generation_of(folder: Path) -> Generation:
    """The trainer whose modules a folder has; raises UserError if it is neither."""

    def file(module: str) -> Path:
        return Path(*module.split(".")).with_suffix(".py")

    missing = [m for m in NETWORKS.values() if not (folder / file(m)).is_file()]
    if missing:
        raise not_a_checkout(folder, f"no {file(missing[0])} in it")
    for generation in (FIRST, SECOND):
        if (folder / file(generation.wrappers)).is_file():
            return generation
    names = " or ".join(str(file(g.wrappers)) for g in (FIRST, SECOND))
    raise not_a_checkout(folder, f"no {names} in it")


def check_config(generation: Generation, folder: Path, config: Config) -> None:
    """Raises UserError if the checkout trains other networks than the config's."""
    own = {key: getattr(config.model, key) for key in generation.model}
    if own != generation.model:
        found, expected = (
            " and ".join(f'model.{key} "{value}"' for key, value in values.items())
            for values in (own, generation.model)
        )
        raise UserError(
            f"--peer: found a config with {found}, expected {expected}, which "
            f"{generation.repository} in {folder} trains; name a checkout or a config of the same "
            "generation"
        )
