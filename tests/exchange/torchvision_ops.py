"""Makes PyPI's torchvision importable beside a CPU build of torch, in this environment only.

Its compiled operators need torch's CUDA build. Without them torchvision 0.28 fails at import, and
so does transformers, although the video processor uses none of these operators.

    python tests/exchange/torchvision_ops.py

Where torchvision is such a one, this copies itself into site-packages, where every Python of the
environment imports it at its start (a .pth file). It then declares the missing operators, without
code behind them, as soon as somebody imports torchvision. Where torchvision works nothing is done.
"""

import sys

_NAME = "vjepa_torchvision_ops"
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _Declare:
    """A finder that finds nothing, but declares the operators before torchvision is imported."""

    library = None  # as long as it lives, the operators exist

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and cls.library is None:
            import torch

            cls.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in _OPERATORS:
                cls.library.define(operator)


def install() -> None:
    """Install the finder if torchvision is there and fails for want of its operators."""
    import shutil
    import subprocess
    import sysconfig
    from pathlib import Path

    folder = Path(sysconfig.get_path("purelib"))
    own, start = folder / f"{_NAME}.py", folder / f"{_NAME}.pth"
    own.unlink(missing_ok=True)
    start.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False
    )
    if "operator torchvision::" in done.stderr:
        shutil.copyfile(__file__, own)
        start.write_text(f"import {_NAME}\n", encoding="ascii")
        print(f"declared the operators that torchvision lacks beside a CPU torch: {start}")


if __name__ == "__main__":
    install()
elif __name__ == _NAME:
    sys.meta_path.insert(0, _Declare)
