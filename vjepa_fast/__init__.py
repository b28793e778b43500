"""Fast V-JEPA pretraining: Triton kernels, a C++ mask sampler, DeepSpeed ZeRO and DALI."""

import importlib

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> object:
    """`load_encoder`, see vjepa_fast/inference/load.py, is imported at its first use."""
    if name != "load_encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module("vjepa_fast.inference.load").load_encoder
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __name__:
            raise
        raise ModuleNotFoundError(
            f"load_encoder: found no module {error.name}, expected the packages for training, "
            "which read videos and checkpoints; install them with pip install 'vjepa-fast[train]'",
            name=error.name,
        ) from None
