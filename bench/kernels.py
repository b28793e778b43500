"""What the kernels cost, beside plain PyTorch in the same run: python bench/kernels.py

Every result is first held against float64; what is wrong is not timed. Providers take turns, with
cold caches. Bytes are what an op has to move at least, so GB/s compare to the device's own copy.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import triton
from torch import Tensor

from kernel.cases import OPS, cases
from kernel.shapes import Case, Provider
from kernel.stopwatch import Lap, Stopwatch
from vjepa_fast import __version__

OURS = "ours"
# Beyond twice the baseline's own error; of the largest value, and of the norm. Where z and y are
# equal but for rounding, the sign of z - y, which is the loss's gradient, is anybody's.
VALUE_FLOOR, GRADIENT_FLOOR = 1e-5, 2e-3


def listed(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def upstream(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the outputs, the same elements however these are divided into tensors."""
    random = torch.Generator(outputs[0].device).manual_seed(0)
    count = sum(t.numel() for t in outputs)
    flat = torch.randn(count, generator=random, device=outputs[0].device)
    flat = flat.bfloat16().to(outputs[0].dtype)  # exact in every dtype
    parts = flat.split([t.numel() for t in outputs])
    return [part.view(t.shape) for part, t in zip(parts, outputs, strict=True)]


def evaluate(case: Case, call: Provider, wide: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients, on copies of the inputs, these in float64 if wide."""
    inputs = [
        (t.double() if wide and t.is_floating_point() else t.clone()).requires_grad_(i in case.wrt)
        for i, t in enumerate(case.inputs)
    ]
    outputs = listed(call(*inputs))
    leaves = [inputs[i] for i in case.wrt]
    gradients = torch.autograd.grad(outputs, leaves, upstream(outputs)) if leaves else ()
    return [t.detach() for t in outputs], list(gradients)


def find_errors(case: Case, calls: dict[str, Provider]) -> list[str]:
    """A sentence for each provider whose result is further from float64 than it may be."""
    baseline = next(iter(calls))
    outputs, gradients = evaluate(case, calls[baseline])
    # outputs of one dtype are judged together: fp32 averages apart from their bf16 copies
    runs = [list(run) for _, run in itertools.groupby(outputs, key=lambda t: t.dtype)]
    sizes = [sum(t.numel() for t in run) for run in runs]

    def flat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.flatten().double() for t in tensors])

    exact, exact_gradients = evaluate(case, case.providers[baseline], wide=True)
    exact = flat(exact)

    def errors(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[float]:
        values = flat(outputs)
        if values.shape != exact.shape or len(gradients) != len(exact_gradients):
            return [float("inf")] * (len(sizes) + len(exact_gradients))
        pairs = zip(values.split(sizes), exact.split(sizes), strict=True)
        largest = [((v - e).abs().max() / e.abs().max()).item() for v, e in pairs]
        pairs = zip(gradients, exact_gradients, strict=True)
        return largest + [((g.double() - e).norm() / e.norm()).item() for g, e in pairs]

    names = [f"output {i}" for i in range(len(sizes))]
    names += [f"gradient of input {i}" for i in case.wrt]
    floors = [VALUE_FLOOR] * len(sizes) + [GRADIENT_FLOOR] * len(case.wrt)
    limits = [2 * e + f for e, f in zip(errors(outputs, gradients), floors, strict=True)]
    return [
        f"{case.op}, {case.shape}: {name}: found an error of {error:.1e} in {part}, "
        f"expected at most {limit:.1e}; it is not timed"
        for name, call in calls.items()
        for part, error, limit in zip(names, errors(*evaluate(case, call)), limits, strict=True)
        if not error <= limit  # NaN too
    ]


def time_in_turns(
    case: Case, calls: dict[str, Provider], repeats: int, watch: Stopwatch
) -> tuple[dict[tuple[str, str], np.ndarray], dict[tuple[str, str], float]]:
    """Microseconds of each pass and provider, and of the host, median.

    A backward pass goes through the graph that the forward pass just made; `both` is their sum,
    turn by turn. The device is kept busy for twice as long as the host took the last time.
    """
    inputs = [t.detach().requires_grad_(i in case.wrt) for i, t in enumerate(case.inputs)]
    leaves = [inputs[i] for i in case.wrt]
    laps: dict[tuple[str, str], list[Lap]] = {}

    def lap(key: tuple[str, str], call: Callable[[], object]) -> object:
        found = laps.setdefault(key, [])
        result, one = watch(call, 2 * found[-1].host if found else 0.0)
        found.append(one)
        return result

    given: dict[str, list[Tensor]] = {}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            result = lap(("forward", name), functools.partial(call, *inputs))
            if leaves:
                outputs = listed(result)
                given[name] = given.get(name) or upstream(outputs)
                arguments = (outputs, leaves, given[name])
                backward = functools.partial(torch.autograd.grad, *arguments)
                result = lap(("backward", name), backward)
                del outputs, arguments, backward
            del result  # before the next provider allocates
        watch.finish()
    times = {key: np.array([one.read() for one in found[1:]]) for key, found in laps.items()}
    hosts = {key: float(np.median([one.host for one in found[1:]])) for key, found in laps.items()}
    for name in calls if leaves else ():
        for sums in (times, hosts):
            sums["both", name] = sums["forward", name] + sums["backward", name]
    return times, hosts


def table(
    case: Case,
    times: dict[tuple[str, str], np.ndarray],
    hosts: dict[tuple[str, str], float],
    copy: float,
) -> list[dict]:
    """A row for each pass and provider."""
    baseline = next(iter(case.providers))
    size = {"forward": case.forward_bytes, "backward": case.backward_bytes}
    size["both"] = sum(size.values())
    rows = []
    for (part, name), values in times.items():
        low, middle, high = np.percentile(values, (20, 50, 80)).tolist()
        others = [np.median(v) for (p, n), v in times.items() if p == part and n != OURS]
        rate = size[part] / middle / 1e3
        row = {"op": case.op, "shape": case.shape, "pass": part, "provider": name}
        row |= {"baseline": name == baseline, "p20_us": low, "p50_us": middle, "p80_us": high}
        row["host_us"] = hosts[part, name]
        row |= {"bytes": size[part], "gb_per_s": rate, "share_of_copy": rate / copy}
        row["over_baseline"] = float(np.median(times[part, baseline])) / middle
        row["over_fastest"] = float(min(others)) / middle if name == OURS else None
        rows.append(row)
    return sorted(rows, key=lambda row: list(size).index(row["pass"]))


def show(rows: Sequence[dict]) -> None:
    print(f"\n{rows[0]['op']}: {rows[0]['shape']}")
    for row in rows:
        times = f"{row['p50_us']:10.0f} ({row['p20_us']:.0f} … {row['p80_us']:.0f})"
        fastest = row["over_fastest"]
        print(
            f"  {row['pass']:8} {row['provider']:28} {times:32} {row['gb_per_s']:8.1f} GB/s "
            f"{row['share_of_copy']:6.0%} {row['host_us']:8.0f} {row['over_baseline']:7.2f} x"
            + ("" if fastest is None else f" {fastest:7.2f} x")
        )


def describe(device: torch.device) -> dict[str, object]:
    """Device, versions and commit: what a row needs to be compared with another."""
    git = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(
        git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {platform.machine()}",
        "clock": "events" if cuda else "process time, one thread",
        "triton_kernels": cuda and os.environ.get("VJEPA_FAST_KERNELS") != "reference",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "vjepa_fast": __version__,
        "commit": done.stdout.strip() or None,
    }


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected 1 or more")
    return int(text)


def new_file(text: str) -> Path:
    """A path that can't be written shows before anything is timed."""
    try:
        Path(text).open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"found {text} ({error.strerror}), expected a file to write; make its folder first"
        ) from error
    return Path(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, time, print, case by case; 1 if any result was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=OPS, default=(), metavar="OP", help=", ".join(OPS)
    )
    parser.add_argument("--clips", type=positive, help="24 on a GPU, 2 on a CPU unless given")
    parser.add_argument("--repeats", type=positive, default=20)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="also torch.compile of each plain form; on a GPU yes, on a CPU no unless given",
    )
    parser.add_argument("--output", type=new_file, help="rows as JSON lines; a picture beside them")
    options = parser.parse_args(arguments)
    if options.output:
        options.output.write_text("")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    clips = options.clips or (24 if cuda else 2)
    compiling = cuda if options.compile is None else options.compile

    torch.set_num_threads(1)
    torch.manual_seed(0)
    watch = Stopwatch(device)
    copy = watch.copy_bandwidth()
    machine = describe(device) | {"clips": clips, "dtype": str(dtype)[6:], "copy_gb_per_s": copy}
    if not machine["triton_kernels"]:
        print("ours is the PyTorch fall-back of vjepa_fast.kernels here, not its Triton kernels")
    print(f"a copy moves {copy:.1f} GB/s; {machine}")
    print("median of", options.repeats, "(20 % … 80 %), microseconds; GB/s; share of the copy;")
    print("microseconds of the host; times as fast as the first provider; ours also: as the")
    print("fastest of the others")
    rows, wrong = [], []
    for case in cases(clips, device, dtype, options.only):
        if compiling:  # the forms of many cases would pass the limit of recompilations
            torch._dynamo.reset()
        plain = {name: call for name, call in case.providers.items() if name != OURS}
        compiled = {
            f"{name}, compiled": torch.compile(call, fullgraph=True, dynamic=False)
            for name, call in plain.items()
            if compiling
        }
        calls = {**plain, **compiled, OURS: case.providers[OURS]}
        found = find_errors(case, calls)
        wrong += found
        for sentence in found:
            print("error:", sentence, file=sys.stderr)
        if not found:
            fresh = table(case, *time_in_turns(case, calls, options.repeats, watch), copy)
            show(fresh)
            rows += [row | machine for row in fresh]
            if options.output:
                with options.output.open("a") as file:
                    file.writelines(json.dumps(row | machine) + "\n" for row in fresh)
    if options.output and rows:
        picture = options.output.with_suffix(".png")
        if importlib.util.find_spec("matplotlib"):
            from kernel.picture import draw

            draw(rows, picture)
        else:
            print(f"{picture}: found no matplotlib, expected it for the picture; pip install it")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
