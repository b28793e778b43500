"""What every folder for transformers needs: its packages, its files, and loading it again."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.form import write_safetensors
from vjepa_fast.exchange.export.source import Tensors

WEIGHTS = "model.safetensors"
METADATA = {"format": "pt"}


def require_transformers() -> None:
    """Import transformers and what its video processor needs.

    Raises:
        UserError: a package is missing, or does not work.
    """
    for name in ("torchvision", "transformers.models.vjepa2"):
        package = name.partition(".")[0]
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"--to transformers: found no module {(error.name or name).partition('.')[0]}, "
                f"expected {package}; run pip install -c constraints.txt -e '.[hf]'"
            ) from None
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"--to transformers: found a {package} that does not import ({reason}), expected "
                f"one that was built for torch {torch.__version__}; install both from the same "
                "index"
            ) from None


def check_names(tensors: Tensors, model: torch.nn.Module) -> None:
    """Raise ValueError unless the names and shapes are those of transformers' model."""
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    ours = {name: tensor.shape for name, tensor in tensors.items()}
    if ours != theirs:
        differing = sorted(dict(ours.items() ^ theirs.items()))
        raise ValueError(f"names or shapes that {type(model).__name__} has not: {differing[:5]}")


def write_folder(folder: Path, tensors: Tensors, config: Any, crop_size: int) -> None:
    """Write config.json, video_preprocessor_config.json and model.safetensors."""
    from transformers import VJEPA2VideoProcessor

    config.save_pretrained(folder)
    VJEPA2VideoProcessor(crop_size=crop_size).save_pretrained(folder)
    write_safetensors(folder / WEIGHTS, tensors, METADATA)


def preprocessed(folder: Path, video: Tensor) -> Tensor:
    """Clips of the crop's size through the folder's video processor, which then resizes nothing.

    Args:
        folder: with video_preprocessor_config.json.
        video: uint8 [B, T, S, S, 3].

    Returns:
        pixel_values_videos, fp32 [B, T, 3, S, S].
    """
    from transformers import AutoVideoProcessor

    processor = AutoVideoProcessor.from_pretrained(folder, local_files_only=True)
    short = processor.size["shortest_edge"]
    before = (short - video.shape[2]) // 2  # transformers rounds down
    after = short - video.shape[2] - before
    # The border is cut away by the center crop.
    padded = torch.nn.functional.pad(video, (0, 0, before, after, before, after))
    return processor(list(padded), return_tensors="pt", input_data_format="channels_last")[
        "pixel_values_videos"
    ]


def load_quietly(loader: Any, folder: Path, **options: Any) -> torch.nn.Module:
    """`from_pretrained` of what was just written, without a progress bar.

    Raises:
        ValueError: a weight is missing or unknown.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, info = loader.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **options
        )
    finally:
        if shown:
            logging.enable_progress_bar()
    wrong = {key: sorted(names) for key, names in info.items() if names and key != "error_msgs"}
    if wrong:
        raise ValueError(f"{loader.__name__} found {wrong}")
    return model.eval()
