"""Time the kernels against eager and compiled PyTorch: python bench/kernels.py

Each result is first checked against float64. A wrong one is not timed. Calls of the providers are
interleaved and start with cold caches. GB/s count the minimum bytes that an op must move, and are
compared with the bandwidth of a large copy on the same device.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import count, describe, machine_text, new_file, spread, spread_text
from kernel.cases import OPS, cases
from kernel.shapes import Case, Provider
from kernel.timer import CallTime, CallTimer
from vjepa_fast.commands.terminal import text_table

OURS = "ours"
# Allowed beyond twice the baseline's own error: of values relative to the largest, 160 roundings of
# fp32, as thousands of numbers are added in another order; of gradients relative to the norm, 16.
VALUE_SLACK = 160 * 2**-24
GRADIENT_SLACK = 16 * 2**-24
# Of the loss's gradient: where z and y are equal up to rounding, the sign of z - y is arbitrary.
# 16 roundings of an element turn the signs of at most that share of the differences, and k turned
# signs of N are 2 sqrt(k / N) of the gradient.
SIGN_SLACK = 2 * (16 * 2**-24) ** 0.5
Key = tuple[str, str]  # pass, provider


def as_list(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """A provider's outputs."""
    return [result] if isinstance(result, Tensor) else list(result)


def upstream(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the outputs, the same elements whatever tensors the outputs are split into."""
    random = torch.Generator(outputs[0].device).manual_seed(0)
    elements = sum(t.numel() for t in outputs)
    flat = torch.randn(elements, generator=random, device=outputs[0].device)
    flat = flat.bfloat16().to(outputs[0].dtype)  # exact in every dtype
    parts = flat.split([t.numel() for t in outputs])
    return [part.view(t.shape) for part, t in zip(parts, outputs, strict=True)]


def evaluate(case: Case, call: Provider, wide: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients on copies of the inputs; in float64 if `wide`."""
    inputs = [
        (t.double() if wide and t.is_floating_point() else t.clone()).requires_grad_(i in case.wrt)
        for i, t in enumerate(case.inputs)
    ]
    outputs = as_list(call(*inputs))
    leaves = [inputs[i] for i in case.wrt]
    gradients = torch.autograd.grad(outputs, leaves, upstream(outputs)) if leaves else ()
    return [t.detach() for t in outputs], list(gradients)


def find_errors(case: Case, calls: dict[str, Provider]) -> list[str]:
    """A sentence for each provider whose error against float64 exceeds its limit."""
    baseline = next(iter(calls))
    outputs, gradients = evaluate(case, calls[baseline])
    # Outputs of one dtype are checked together: fp32 EMA weights apart from their bf16 copies.
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
    gradient_slack = SIGN_SLACK if case.op == "loss" else GRADIENT_SLACK
    slack = [VALUE_SLACK] * len(sizes) + [gradient_slack] * len(case.wrt)
    limits = [2 * e + s for e, s in zip(errors(outputs, gradients), slack, strict=True)]
    return [
        f"{case.op}, {case.shape}: {name}: found an error of {error:.1e} in {part}, "
        f"expected at most {limit:.1e}; it is not timed"
        for name, call in calls.items()
        for part, error, limit in zip(names, errors(*evaluate(case, call)), limits, strict=True)
        if not error <= limit  # NaN too
    ]


def time_interleaved(
    case: Case, calls: dict[str, Provider], repeats: int, timer: CallTimer
) -> tuple[dict[Key, np.ndarray], dict[Key, float]]:
    """Microseconds of each pass and provider, and the median microseconds of the host.

    A backward pass runs on the graph of the forward pass before it; `both` is their sum, repeat by
    repeat. The device is kept busy beforehand for twice the host's last time.
    """
    inputs = [t.detach().requires_grad_(i in case.wrt) for i, t in enumerate(case.inputs)]
    leaves = [inputs[i] for i in case.wrt]
    found: dict[Key, list[CallTime]] = {}

    def timed(key: Key, call: Callable[[], object]) -> object:
        own = found.setdefault(key, [])
        result, one = timer(call, 2 * own[-1].host if own else 0.0)
        own.append(one)
        return result

    gradients: dict[str, list[Tensor]] = {}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            result = timed(("forward", name), functools.partial(call, *inputs))
            if leaves:
                outputs = as_list(result)
                gradients[name] = gradients.get(name) or upstream(outputs)
                arguments = (outputs, leaves, gradients[name])
                backward = functools.partial(torch.autograd.grad, *arguments)
                result = timed(("backward", name), backward)
                del outputs, arguments, backward
            del result  # frees it before the next provider allocates
        timer.finish()
    times = {key: np.array([one.read() for one in own[1:]]) for key, own in found.items()}
    hosts = {key: float(np.median([one.host for one in own[1:]])) for key, own in found.items()}
    for name in calls if leaves else ():
        for sums in (times, hosts):
            sums["both", name] = sums["forward", name] + sums["backward", name]
    return times, hosts


def rows_of(
    case: Case, times: dict[Key, np.ndarray], hosts: dict[Key, float], copy: float
) -> list[dict]:
    """A row for each pass and provider, in the order of the passes.

    Args:
        copy: GB/s of a large copy.
    """
    baseline = next(iter(case.providers))
    size = {"forward": case.forward_bytes, "backward": case.backward_bytes}
    size["both"] = sum(size.values())
    rows = []
    for (part, name), values in times.items():
        microseconds = spread(values)
        others = [np.median(v) for (p, n), v in times.items() if p == part and n != OURS]
        middle = microseconds["p50"]
        rate = size[part] / middle / 1e3
        row = {"op": case.op, "shape": case.shape, "pass": part, "provider": name}
        row |= {"baseline": name == baseline, "host_us": hosts[part, name]}
        row |= {f"{point}_us": value for point, value in microseconds.items()}
        row |= {"bytes": size[part], "gb_per_s": rate, "fraction_of_copy": rate / copy}
        row["over_baseline"] = float(np.median(times[part, baseline])) / middle
        row["over_fastest"] = float(min(others)) / middle if name == OURS else None
        rows.append(row)
    return sorted(rows, key=lambda row: list(size).index(row["pass"]))


def rows_text(rows: Sequence[dict]) -> str:
    """The table of one case."""
    head = ("pass, provider", "us", "GB/s", "of copy", "host, us", "vs baseline", "vs best other")
    cells = [head]
    for row in rows:
        fastest = row["over_fastest"]
        cells.append(
            (
                f"{row['pass']:8}  {row['provider']}",
                spread_text({p: row[f"{p}_us"] for p in ("p20", "p50", "p80")}, 0),
                f"{row['gb_per_s']:.1f}",
                f"{row['fraction_of_copy']:.0%}",
                f"{row['host_us']:.0f}",
                f"{row['over_baseline']:.2f} x",
                "" if fastest is None else f"{fastest:.2f} x",
            )
        )
    return f"\n{rows[0]['op']}: {rows[0]['shape']}\n{text_table(cells)}"


def draw_if_possible(rows: Sequence[dict], path: Path) -> None:
    """The picture, or a sentence where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib"):
        from kernel.picture import draw

        draw(rows, path)
    else:
        print(f"{path}: found no matplotlib, expected it for the picture; pip install matplotlib")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, time and print case by case; 1 if any result was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=OPS,
        default=(),
        metavar="OP",
        help=f"time only these of {', '.join(OPS)}",
    )
    parser.add_argument("--clips", type=count, help="clips per call (default: 24; 2 on a CPU)")
    parser.add_argument("--repeats", type=count, default=20, help="timed calls (default: 20)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="also time torch.compile of each PyTorch provider (default: on a GPU only)",
    )
    parser.add_argument("--output", type=new_file, help="JSON lines; a picture is saved beside")
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
    timer = CallTimer(device)
    copy = timer.copy_bandwidth()
    machine = describe(device) | {"clock": timer.name, "clips": clips, "dtype": str(dtype)[6:]}
    print(machine_text(machine))
    machine["copy_gb_per_s"] = copy
    if not machine["triton_kernels"]:
        print('no Triton on this device: "ours" is the PyTorch reference of vjepa_fast.kernels')
    print(
        f"median of {options.repeats} calls (p20 … p80); GB/s of the minimum bytes, and as a "
        f"fraction of a copy ({copy:.1f} GB/s); vs: speedup"
    )
    rows, wrong = [], []
    for case in cases(clips, device, dtype, options.only):
        if compiling:  # many cases would exceed the limit of recompilations
            torch._dynamo.reset()
        eager = {name: call for name, call in case.providers.items() if name != OURS}
        compiled = {
            f"{name}, compiled": torch.compile(call, fullgraph=True, dynamic=False)
            for name, call in eager.items()
            if compiling
        }
        calls = {**eager, **compiled, OURS: case.providers[OURS]}
        errors = find_errors(case, calls)
        wrong += errors
        for sentence in errors:
            print("error:", sentence, file=sys.stderr)
        if errors:
            continue
        fresh = rows_of(case, *time_interleaved(case, calls, options.repeats, timer), copy)
        print(rows_text(fresh), flush=True)
        rows += [row | machine for row in fresh]
        if options.output:
            with options.output.open("a") as file:
                file.writelines(json.dumps(row | machine) + "\n" for row in fresh)
    if options.output and rows:
        draw_if_possible(rows, options.output.with_suffix(".png"))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
