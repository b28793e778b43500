"""bench/kernels.py runs on small sizes, counts bytes correctly, and does not time wrong results."""

import functools
import importlib
import json
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.paths import REPOSITORY
from vjepa_fast.training.monitoring.environment import processor

BENCH = REPOSITORY / "bench"
OPS = ["gather", "loss", "patchify", "predictor_tokens", "rope", "ema"]


@pytest.fixture
def bench(monkeypatch):
    """The modules of bench/, with one small model and a small flush buffer."""
    monkeypatch.syspath_prepend(str(BENCH))
    found = SimpleNamespace(kernels=importlib.import_module("kernels"))
    for name in ("cases", "shapes", "timer"):
        setattr(found, name, importlib.import_module(f"kernel.{name}"))
    small = found.shapes.Model("small", 32, 2, (2, 2, 2), (3, 2), (4, 5), 16, 2)
    monkeypatch.setattr(found.cases, "MODELS", (small,))
    monkeypatch.setattr(found.timer, "FLUSHED", {"cpu": 1 << 20, "cuda": 1 << 20})
    return found


def run(bench, tmp_path, *arguments):
    """Exit status and rows of one call of main()."""
    path = tmp_path / "rows.jsonl"
    status = bench.kernels.main(["--repeats", "3", "--output", str(path), *arguments])
    return status, [json.loads(line) for line in path.read_text().splitlines()]


def test_it_compares_and_then_times_every_op(bench, tmp_path, capsys):
    status, rows = run(bench, tmp_path, "--no-compile")
    assert status == 0
    assert list(dict.fromkeys(row["op"] for row in rows)) == OPS
    tables = {}
    for row in rows:
        tables.setdefault((row["op"], row["shape"], row["pass"]), []).append(row)
        assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
        rate = row["bytes"] / row["p50_us"] / 1e3
        assert row["gb_per_s"] == pytest.approx(rate)
        assert row["fraction_of_copy"] == pytest.approx(rate / row["copy_gb_per_s"])
        assert row["torch"] == torch.__version__ and row["device"] and "commit" in row
        assert row["cpu"] == processor()
    passes = {op: {key[2] for key in tables if key[0] == op} for op in OPS}
    assert passes["gather"] == passes["loss"] == passes["predictor_tokens"] == passes["rope"]
    assert passes["loss"] == {"forward", "backward", "both"}
    assert passes["patchify"] == passes["ema"] == {"forward"}
    for table in tables.values():
        assert [row["baseline"] for row in table] == [True] + [False] * (len(table) - 1)
        assert [row["provider"] == "ours" for row in table] == [False] * (len(table) - 1) + [True]
        *others, ours = (row["p50_us"] for row in table)
        assert table[-1]["over_baseline"] == pytest.approx(others[0] / ours)
        assert table[-1]["over_fastest"] == pytest.approx(min(others) / ours)
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert torch.cuda.is_available() or "PyTorch reference" in capsys.readouterr().out


def test_the_device_is_kept_busy_while_the_host_launches(bench):
    """For twice the host's last time of the same pass and provider."""
    asked, hosts = [], iter(range(1, 100))

    def timer(call, ahead=0.0):
        asked.append(ahead)
        return call(), bench.timer.CallTime(float(next(hosts)), lambda: 5.0)

    timer.finish = lambda: None
    case = next(bench.cases.cases(1, torch.device("cpu"), torch.float32, ["gather"]))
    calls = {name: case.providers[name] for name in ("repeat", "ours")}
    times, found = bench.kernels.time_interleaved(case, calls, 2, timer)
    assert asked == [0, 0, 0, 0, 2, 4, 6, 8, 10, 12, 14, 16]  # 2 providers × 2 passes × 3 repeats
    assert found["forward", "repeat"] == 7 and found["backward", "ours"] == 10  # of 5, 9; 8, 12
    assert found["both", "ours"] == found["forward", "ours"] + 10 == 19
    assert times["both", "ours"].tolist() == [10, 10]


def test_events_enclose_the_call_and_nothing_else(bench, monkeypatch):
    """On CUDA, faked here: overwrite, sleep, event, call, event."""
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")

        def elapsed_time(self, other):
            return 8.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append(cycles))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    buffer = SimpleNamespace(zero_=lambda: order.append("overwrite"))
    monkeypatch.setattr(torch, "empty", lambda *size, dtype, device: buffer)
    timer = bench.timer.CallTimer(torch.device("cuda"))
    assert order[-1] == "wait" and timer.cycles == pytest.approx(bench.timer.SLEEP / 8000)
    order.clear()
    _, one = timer(lambda: order.append("call"), 1000.0)
    assert order == ["overwrite", int(1000 * timer.cycles), "event", "call", "event"]
    assert one.read() == 8000.0 and one.host > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "argument --repeats: found '0', expected a whole number, 1 or more"),
        (["--clips", "-1"], "argument --clips: found '-1', expected a whole number, 1 or more"),
        (["--clips", "two"], "argument --clips: found 'two', expected a whole number, 1 or more"),
        (["--output", "none/rows.jsonl"], "argument --output: found none/rows.jsonl (No such file"),
    ],
)
def test_bad_arguments_are_rejected_before_anything_runs(
    bench, monkeypatch, tmp_path, capsys, arguments, message
):
    path = tmp_path / "rows.jsonl"
    path.write_text("before")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.kernels, "CallTimer", None)
    with pytest.raises(SystemExit):
        bench.kernels.main(["--output", str(path), *arguments])
    assert message in capsys.readouterr().err
    assert path.read_text() == "before"


def test_what_was_timed_stays_when_a_later_op_breaks(bench, monkeypatch, tmp_path):
    def broken(*arguments, **options):
        raise RuntimeError("out of memory")

    path = tmp_path / "rows.jsonl"
    path.write_text("before")
    monkeypatch.setattr(bench.cases, "patchify", broken)
    arguments = ["--repeats", "1", "--no-compile", "--output", str(path)]
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.kernels.main([*arguments, "--only", "loss", "patchify"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["op"] for row in rows} == {"loss"} and len(rows) == 9
    assert all(row["device"] and row["host_us"] > 0 for row in rows)


def test_without_matplotlib_a_sentence_stands_for_the_picture(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.kernels.importlib.util, "find_spec", lambda name: None)
    status, rows = run(bench, tmp_path, "--only", "ema", "--no-compile")
    assert status == 0 and rows and not (tmp_path / "rows.png").exists()
    assert "rows.png: found no matplotlib, expected it for the picture" in capsys.readouterr().out


def test_bytes_are_counted_as_by_hand(bench):
    cpu = torch.device("cpu")
    found = {}
    for case in bench.cases.cases(3, cpu, torch.bfloat16):
        found.setdefault(case.op, []).append((case.forward_bytes, case.backward_bytes))
    # 3 clips of 8 tokens 32 wide in bf16; 3 + 2 context tokens, 4 + 5 targets; indices in int64
    x, kept, targets = 3 * 8 * 32 * 2, 3 * 5 * 32 * 2, 3 * 9 * 32 * 2
    assert found["gather"] == [
        (2 * kept + 3 * 5 * 8, kept + x + 3 * 5 * 8),
        (2 * targets + 3 * 9 * 8, targets + x + 3 * 9 * 8),
    ]
    assert found["loss"] == [(3 * targets + 3 * 9 * 8, 2 * targets)]
    kept = (3 * 5 * 1536 * 3 + 3 * 5 * 8, 0)
    assert found["patchify"] == [kept, kept, (3 * 8 * 1536 * 3, 0)]
    # 16 wide: context and mask tokens in bf16, positions in fp32, 14 rows a clip, two indices each
    pool, rows = (3 * 5 + 2) * 16 * 2, 3 * 14
    assert found["predictor_tokens"] == [
        (pool + 8 * 16 * 4 + rows * (2 * 8 + 16 * 2), pool + rows * (8 + 16 * 2))
    ]
    # 5 rows a clip in bf16, of queries, keys and values; only in the backward pass all three move
    part = 3 * 5 * 32 * 2
    assert found["rope"] == [(4 * part + 3 * 5 * 8, 6 * part + 3 * 5 * 8)]
    # teacher and student read, teacher and its bf16 copy written
    parameters = 12 * 32**2 + 13 * 32 + 32 * 1536 + 3 * 32  # one block, patch embedding, norm
    assert found["ema"] == [(14 * parameters, 0)]


def off_by_one(op):
    def wrong(x, masks, concat):
        return op(x, [(mask + 1) % x.shape[1] for mask in masks], concat)

    return wrong


def other_gradient(op):
    def wrong(*arguments, **options):
        result = op(*arguments, **options)
        parts = result if isinstance(result, list) else [result]
        scaled = [1.01 * part - 0.01 * part.detach() for part in parts]
        return scaled if isinstance(result, list) else scaled[0]

    return wrong


def gradient_through_bf16(op):
    """Right but for its gradient, which has too few digits for fp32."""

    def rounded(x):
        if x.requires_grad:
            x = x.view_as(x)  # the hook then sees this call only
            x.register_hook(lambda gradient: gradient.bfloat16().to(gradient.dtype))
        return x

    def wrong(*arguments, **options):
        return op(*(rounded(x) if isinstance(x, torch.Tensor) else x for x in arguments), **options)

    return wrong


def slightly_more(op):
    return lambda *arguments, **options: op(*arguments, **options) * 1.0001


def one_nan(op):
    def wrong(*arguments, **options):
        result = op(*arguments, **options).clone()
        result.view(-1)[-1] = float("nan")
        return result

    return wrong


def one_row_less(op):
    return lambda *arguments, **options: op(*arguments, **options)[:-1]


def other_momentum(op):
    return lambda teacher, student, momentum, copies: op(teacher, student, 0.997, copies)


def no_copy(op):
    return lambda teacher, student, momentum, copies: op(teacher, student, momentum)


@pytest.mark.parametrize(
    ("op", "name", "wrong", "part"),
    [
        ("gather", "apply_masks", off_by_one, "output 0"),
        ("gather", "apply_masks", gradient_through_bf16, "gradient of input 0"),
        ("gather", "apply_masks", other_gradient, "gradient of input 0"),
        ("loss", "masked_feature_loss", slightly_more, "output 0"),
        ("loss", "masked_feature_loss", other_gradient, "gradient of input 0"),
        ("patchify", "patchify", one_nan, "output 0"),
        ("patchify", "patchify", one_row_less, "output 0"),
        ("predictor_tokens", "predictor_tokens", slightly_more, "output 0"),
        ("predictor_tokens", "predictor_tokens", gradient_through_bf16, "gradient of input 2"),
        ("predictor_tokens", "predictor_tokens", other_gradient, "gradient of input 2"),
        ("rope", "rotate_queries_keys", slightly_more, "output 0"),
        ("rope", "rotate_queries_keys", gradient_through_bf16, "gradient of input 0"),
        ("rope", "rotate_queries_keys", other_gradient, "gradient of input 0"),
        ("ema", "ema_update_", other_momentum, "output 0"),
        ("ema", "ema_update_", no_copy, "output 1"),
    ],
)
def test_wrong_results_are_not_timed(bench, monkeypatch, tmp_path, capsys, op, name, wrong, part):
    ours = getattr(bench.cases, name)
    monkeypatch.setattr(bench.cases, name, wrong(ours))
    status, rows = run(bench, tmp_path, "--only", op, "--no-compile")
    printed = capsys.readouterr()
    assert status == 1 and not rows
    assert f"error: {op}" in printed.err and f"in {part}, expected at most" in printed.err
    assert ": ours: found" in printed.err and printed.err.count(": found") == printed.err.count(
        ": ours: found"
    )
    assert "forward" not in printed.out


def test_one_wrong_op_leaves_the_others(bench, monkeypatch, tmp_path):
    wrong = one_nan(bench.cases.patchify)
    monkeypatch.setattr(bench.cases, "patchify", wrong)
    status, rows = run(bench, tmp_path, "--only", "patchify", "ema", "--no-compile")
    assert status == 1
    assert {row["op"] for row in rows} == {"ema"}


def test_every_pytorch_provider_compiles_as_one_graph(bench, monkeypatch, tmp_path):
    """Tracing only; the benchmark itself measures the generated code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    status, rows = run(bench, tmp_path, "--compile")
    assert status == 0
    names = {(row["op"], row["provider"]) for row in rows}
    plain = {(op, n) for op, n in names if n != "ours" and not n.endswith(", compiled")}
    assert len(plain) == 4 + 2 + 2 + 2 + 2 + 3
    assert {(op, f"{n}, compiled") for op, n in plain} <= names
    assert not {(op, n) for op, n in names if n.startswith("ours,")}


def test_an_unknown_op_is_rejected(bench, capsys):
    with pytest.raises(SystemExit):
        bench.kernels.main(["--only", "gelu"])
    assert "gather" in capsys.readouterr().err
