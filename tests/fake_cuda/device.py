"""What runtime.cpp counted, and what torch's operators and our kernels were given."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from tests.helpers.compile_kernels import compiled_instead_of_launched

RUNTIME = ctypes.CDLL("libcuda.so.1")  # preloaded by `make test-fake-cuda`
ARCHITECTURE = 80  # the one that runtime.cpp gives


def counted() -> dict[str, int]:
    """The counters since the last `reset`, by name."""
    size = RUNTIME.fake_cuda_counters(None, 0) + (1 << 16)
    text = ctypes.create_string_buffer(size)
    RUNTIME.fake_cuda_counters(text, ctypes.c_size_t(size))
    lines = (line.rsplit("\t", 1) for line in text.value.decode().splitlines())
    return {name: int(value) for name, value in lines}


def reset() -> None:
    RUNTIME.fake_cuda_reset()


def host_syncs(found: dict[str, int]) -> dict[str, int]:
    """Counters of calls that wait for the device, or may.

    They are synchronizations, copies to the host, and copies from memory that is not pinned: for
    these CUDA first waits for the stream, and torch's `set_sync_debug_mode` does not see it.
    """
    return {
        name: value
        for name, value in found.items()
        if name.startswith("synchronize")
        or (name.startswith("copy to") and name.endswith(("pageable", "pinned from device")))
    }


class Operators(TorchDispatchMode):
    """Records the dtypes of each operator's tensors on the device, and what is not on the device.

    Attributes:
        dtypes: by operator, of all its arguments and results on the device.
        mixed: operators with tensors both on the device and, more than a scalar, on the host;
            copies are counted by the runtime.
        on_host: elements of the largest tensor on the host, by operator without the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[torch.dtype]] = {}
        self.mixed: set[str] = set()
        self.on_host: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func._schema.name).removeprefix("aten::")
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        device = [t for t in tensors if t.is_cuda]
        host = [t.numel() for t in tensors if t.device.type == "cpu"]
        self.dtypes.setdefault(name, set()).update(t.dtype for t in device)
        if device and max(host, default=0) > 1 and name not in ("_to_copy", "copy_"):
            self.mixed.add(name)
        if host and not device:
            self.on_host[name] = max(self.on_host.get(name, 0), *host)
        return out


@contextmanager
def kernels_compiled() -> Iterator[dict[str, set[tuple]]]:
    """Inside, a Triton kernel is compiled instead of launched, for the architecture of the device.

    Yields:
        By kernel, for each call the dtypes of its tensors, None for one that is on no device.
    """
    found: dict[str, set[tuple]] = {}
    with compiled_instead_of_launched(ARCHITECTURE):
        compile_only = JITFunction.run

        def record(self, *args, **kwargs):
            tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
            dtypes = tuple(t.dtype if t.is_cuda else None for t in tensors)
            found.setdefault(self.fn.__name__, set()).add(dtypes)
            return compile_only(self, *args, **kwargs)

        JITFunction.run = record  # `compiled_instead_of_launched` restores what it found
        yield found
