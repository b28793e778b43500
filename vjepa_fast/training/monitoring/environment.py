"""The environment of a run: versions, device, commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from vjepa_fast import __version__

PACKAGES = ("torch", "triton", "deepspeed", "nvidia-dali-cuda130", "av", "xformers", "numpy")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """Commit of the checkout that this code runs from; None without a checkout or git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-c", "safe.directory=*", "-C", str(Path(__file__).parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return None if done.returncode else done.stdout.strip()

    if git("ls-files", "--error-unmatch", __file__) is None:
        return None  # an installed package, perhaps inside another repository
    return git("describe", "--always", "--dirty", "--abbrev=12")


def processor() -> str:
    """The CPU's model name, its architecture where Linux does not tell, and the vector instructions
    that torch's kernels use (`ATEN_CPU_CAPABILITY` may lower them): `NAME (torch: AVX2)`."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    name = next(names, platform.machine())
    return f"{name} (torch: {torch.backends.cpu.get_cpu_capability()})"


def environment(device: torch.device, world: int) -> dict[str, str]:
    """Names and values as shown to people.

    Args:
        device: device of this process.
        world: number of processes of the run.
    """
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        name = f"CPU, {torch.get_num_threads()} threads per process"
    found = {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "processes": str(world),
        "device": name,
        "cpu": processor(),
        "host": f"{platform.node()}, {os.cpu_count()} cores, {platform.system()}",
        "vjepa_fast": __version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "torch": torch.__version__,  # with its build, such as +cu130, which the package's may lack
    }
    commit = _commit()
    return found | {"commit": commit} if commit else found
