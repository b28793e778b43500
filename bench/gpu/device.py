"""Prints machine and versions as JSON, after a GEMM on the device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import torch

from vjepa_fast.training.monitoring.environment import environment

LEFT_OUT = ("command", "host", "processes")  # private, since reports are shared


def driver() -> str:
    """The NVIDIA driver's version, or why it is unknown."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return "unknown: no nvidia-smi"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else "unknown: nvidia-smi failed"


def facts(device: torch.device) -> dict[str, str]:
    """Names and values of the report's first part."""
    found = {k: v for k, v in environment(device, 1).items() if k not in LEFT_OUT}
    found["cores"] = str(len(os.sched_getaffinity(0)))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["GPU memory"] = f"{properties.total_memory / 1e9:.1f} GB"
        found["compute capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = str(properties.multi_processor_count)
        found["driver"] = driver()
        found["cuDNN"] = str(torch.backends.cudnn.version())
        found["visible GPUs"] = str(torch.cuda.device_count())
    return found


def main() -> int:
    """1 if a bf16 GEMM on the device is wrong."""
    device = torch.device(sys.argv[1])
    a = torch.arange(256, device=device).remainder(3).view(16, 16).bfloat16()  # exact in bf16
    if not torch.equal((a @ a).cpu().double(), a.cpu().double() @ a.cpu().double()):
        print("found a wrong bf16 GEMM, expected small whole numbers to be exact")
        return 1
    print(json.dumps(facts(device)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
