"""Prints what a report needs to say about the machine, as JSON, after a product on the device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import torch

from vjepa_fast.training.monitoring.environment import environment

LEFT_OUT = ("command", "host", "processes")  # a report is for others


def driver() -> str:
    """The NVIDIA driver's version, or why it isn't known."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return "unknown: no nvidia-smi"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else "unknown: nvidia-smi failed"


def facts(device: torch.device) -> dict[str, str]:
    """Names and values, for people."""
    found = {k: v for k, v in environment(device, 1).items() if k not in LEFT_OUT}
    found["cores"] = str(len(os.sched_getaffinity(0)))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["GPU memory"] = f"{properties.total_memory / 1e9:.1f} GB"
        found["compute capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = str(properties.multi_processor_count)
        found["driver"] = driver()
        found["cuDNN"] = str(torch.backends.cudnn.version())
        found["GPUs in sight"] = str(torch.cuda.device_count())
    return found


def main() -> int:
    """1 if a bf16 product on the device is wrong."""
    device = torch.device(sys.argv[1])
    a = torch.arange(256, device=device).remainder(3).view(16, 16).bfloat16()  # exact in bf16
    if not torch.equal((a @ a).cpu().double(), a.cpu().double() @ a.cpu().double()):
        print("found a wrong bf16 product, expected small whole numbers to be exact")
        return 1
    print(json.dumps(facts(device)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
