"""Builds the one compiled part, the mask sampler; everything else is in pyproject.toml."""

import os
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# Contracted multiply-adds would round differently from one platform to the next.
flags = ["-O3", "-ffp-contract=off", "-pthread"]
# Only in our own builds: a newer compiler's warnings must not stop users.
if os.environ.get("VJEPA_FAST_WERROR") == "1":
    flags += ["-Wall", "-Wextra", "-Werror"]

ParallelCompile().install()
setup(
    ext_modules=[
        Pybind11Extension(
            "vjepa_fast.masks._sampler",
            sources=["csrc/bindings.cpp", "csrc/draw_mask.cpp", "csrc/mask_sampler.cpp"],
            depends=sorted(str(header) for header in Path("csrc").glob("*.h")),
            include_dirs=["csrc"],
            extra_compile_args=flags,
            extra_link_args=["-pthread"],
            cxx_std=17,
        )
    ]
)
