"""`vjepa-fast report RUN`: all that a run has written, as one self-contained HTML file."""

from __future__ import annotations

import argparse
import base64
import datetime
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from vjepa_fast.commands.terminal import path_argument
from vjepa_fast.errors import UserError

HELP = "write a run's curves, pictures and tables as one HTML file"
MOST_ROWS = 20
MOST_PICTURES = 4  # of each kind: the first and the newest ones
SUMMARY = (
    "loss",
    "probe_accuracy",
    "probe_r2",
    "std_across_clips",
    "rank_me",
    "clips_per_second",
    "data_wait",
    "skipped_steps",
)
INK = "#123456"  # stands for the report's text color in matplotlib's SVG
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
# No colors but the browser's own, light or dark.
STYLE = """
body{margin:0 auto;padding:24px;max-width:1480px;font:15px/1.5 system-ui,sans-serif}
h1,td,th,figcaption{overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(380px,1fr));gap:14px}
figure{margin:0}
svg,img{width:100%;height:auto}
table{border-collapse:collapse;font-size:13px}
th,td{text-align:left;padding:4px 18px 4px 0;border-bottom:1px solid #8886}
pre{font-size:12px;overflow:auto;max-height:420px}
.warning{border:2px solid #d33;padding:8px 14px}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "run_folder", type=path_argument, metavar="RUN", help="run folder, e.g. runs/tiny"
    )
    parser.add_argument(
        "--output", type=path_argument, help="file to write (default: RUN/report.html)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the report and print its path.

    Raises:
        UserError: the folder is not a run's, or the output cannot be written.
    """
    report = report_html(options.run_folder)
    output = options.output or options.run_folder / "report.html"
    try:
        output.write_text(report, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(
            f"--output: found {output}, which cannot be written ({error.strerror}), expected a "
            "file's path; name e.g. report.html"
        ) from None
    print(f"report: {output}")
    return 0


def report_html(run: Path) -> str:
    """The report of a run's folder, finished or not.

    Raises:
        UserError: the folder is not a run's.
    """
    from vjepa_fast.training.monitoring.writer import read_metrics

    if not (run / "metrics.jsonl").is_file() and not (run / "config.json").is_file():
        what = "neither config.json nor metrics.jsonl" if run.is_dir() else "no such folder"
        raise UserError(
            f"{run}: found {what}, expected the run folder of a train.py run; name one, e.g. "
            "runs/tiny"
        )
    lines = read_metrics(run / "metrics.jsonl")
    rows = [row for row in lines if isinstance(row, dict) and isinstance(row.get("step"), int)]
    config, environment = _json(run / "config.json"), _json(run / "environment.json")
    sections = {
        "Summary": _summary(run, rows, config),
        "Curves": _curves(rows),
        "Time of a step": _parts(rows),
        "Target features": _pictures(
            run,
            "features",
            "Each clip, and below it the first three principal components of the target encoder's "
            "features as colors. A color means the same in all clips of one picture.",
        ),
        "Masks": _pictures(
            run,
            "masks",
            "One clip, a row per mask spec. Bright: context; blue: target; orange: neither.",
        ),
        "Probes": _probes(_json(run / "probe.json")),
        "Checkpoints": _checkpoints(run),
        "Bad videos": _bad_videos(read_metrics(run / "bad_videos.jsonl")),
        "Environment": _table(("of the newest start", ""), environment.items()),
        "Config": f"<pre>{escape(json.dumps(config, indent=2))}</pre>" if config else "",
    }
    body = "".join(
        f"<section><h2>{title}</h2>{content or '<p>Nothing yet.</p>'}</section>\n"
        for title, content in sections.items()
    )
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(str(run))}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(str(run))}</h1><p>written {now}</p>\n{body}</body></html>\n"
    )


def _json(path: Path) -> dict:
    """A JSON object; empty if there is none or only a part of one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; empty without rows."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><tr>{cells}</tr>{body}</table>" if body else ""


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="minutes")


def _summary(run: Path, rows: list[dict], config: dict) -> str:
    from vjepa_fast.training.monitoring.collapse import STD_FLOOR
    from vjepa_fast.training.monitoring.curves import points

    done = max((row["step"] + 1 for row in rows), default=0)
    steps = (config.get("optim") or {}).get("steps")
    state = "finished" if done == steps else "unfinished"
    imported = _json(run / "checkpoints" / "step_00000000" / "state.json").get("imported")
    if isinstance(imported, dict):
        networks = ", ".join(imported.get("parts", []))
        cells = [
            ("imported from", imported.get("file")),
            ("generation", imported.get("generation")),
            ("networks", networks.replace("_", " ")),
        ]
        return _table(("no run, but weights to start one from", ""), cells)
    last = {name: points(rows, name)[-1:] for name in SUMMARY}
    cells = [("steps", f"{done} of {steps}" if steps else done), ("state", state)]
    init = config.get("init") or {}
    if init.get("checkpoint"):
        found = _json(run / "started_from.json").get("origin")  # older runs have none
        cells.append(("started from", found or init["checkpoint"]))
    if rows:
        cells.append(("last line", _when((run / "metrics.jsonl").stat().st_mtime)))
    cells += [(name, f"{value:.4g}") for name in SUMMARY for _, value in last[name]]
    warning = ""
    for step, spread in last["std_across_clips"]:
        # NaN is a collapse as well. Features that pixels are predicted from cannot collapse so.
        if not spread >= STD_FLOOR and config.get("objective") != "pixels":
            warning = (
                f'<p class="warning">The target features have collapsed: at step {step} their std '
                f"across clips at the same position is {spread:.3f}, healthy is above {STD_FLOOR}. "
                "Raise teacher.momentum, lower optim.lr, or leave less context in masks.specs.</p>"
            )
    return warning + _table(("newest values", ""), cells)


def _curves(rows: list[dict]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    from vjepa_fast.training.monitoring.curves import PANELS, draw_panel

    charts = []
    # Text can be selected, and the same run gives the same charts.
    style = {"svg.fonttype": "none", "svg.hashsalt": "vjepa_fast", **dict.fromkeys(INKED, INK)}
    with matplotlib.rc_context({**style, "legend.framealpha": 0}):
        for panel in PANELS:
            figure = Figure(figsize=(5.4, 3.2), layout="constrained")
            if draw_panel(figure.subplots(), panel, rows):
                file = io.StringIO()
                figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
                svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", file.getvalue())
                svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
                charts.append(f"<figure>{svg}</figure>")
    return f'<div class="grid">{"".join(charts)}</div>' if charts else ""


def _parts(rows: list[dict]) -> str:
    """Means over the second half of the lines, past the warm-up of caches and clocks."""
    from vjepa_fast.training.timers import ALL_PARTS

    timed = [row for row in rows if "ms_data" in row]
    timed = timed[len(timed) // 2 :]
    if not timed:
        return ""
    names = [part for part in ALL_PARTS if f"ms_{part}" in timed[0]]
    mean = {part: sum(row.get(f"ms_{part}", 0.0) for row in timed) / len(timed) for part in names}
    whole = sum(mean.values()) or 1.0
    cells = [(part, f"{ms:.4g} ms", f"{ms / whole:.0%}") for part, ms in mean.items()]
    note = f"<p>Means over the lines of steps {timed[0]['step']} to {timed[-1]['step']}.</p>"
    return note + _table(("part", "time per step", "fraction"), cells)


def _pictures(run: Path, kind: str, note: str) -> str:
    found = sorted((run / "pictures").glob(f"step_*_{kind}.png"))
    if len(found) > MOST_PICTURES:
        found = [found[0], *found[1 - MOST_PICTURES :]]
    figures = []
    for path in found:
        step = path.name.split("_")[1].lstrip("0") or "0"
        data = base64.b64encode(path.read_bytes()).decode()
        figures.append(
            f'<figure><img alt="{kind} at step {step}" src="data:image/png;base64,{data}">'
            f"<figcaption>step {step}</figcaption></figure>"
        )
    return f'<p>{note}</p><div class="grid">{"".join(figures)}</div>' if figures else ""


def _probes(result: dict) -> str:
    accuracy = result.get("accuracy")
    if not isinstance(accuracy, dict) or not accuracy:
        return ""
    kinds = list(next(iter(accuracy.values())))
    chance = result.get("chance", {})
    rows = [
        (
            label,
            *(f"{by_kind[kind]:.3f}" for kind in kinds),
            f"{chance[label]:.3f}" if label in chance else "-",  # values have none
        )
        for label, by_kind in accuracy.items()
    ]
    kind = result.get("probe", "attentive")  # older versions had no other
    blocks = result.get("blocks", 1)
    blocks = f" of {blocks} block{'s' * (blocks != 1)}" if kind == "attentive" else ""
    note = f"Test scores of {kind} probes{blocks} at step {result.get('step')}"
    shares = result.get("label_shares", [result.get("label_fraction", result.get("label_share"))])
    if shares[-1] is not None:
        note += f", with {max(shares):.0%} of the labels"
    return f"<p>{note}.</p>" + _table(("label", *kinds, "chance"), rows)


def _checkpoints(run: Path) -> str:
    rows, best = [], (run / "checkpoints" / "best").resolve().name
    for folder in sorted((run / "checkpoints").glob("step_*")):
        state = folder / "state.json"
        try:
            size = sum(file.stat().st_size for file in folder.iterdir())
            saved = _when(state.stat().st_mtime)
        except OSError:  # not a checkpoint, or just pruned
            continue
        found = _json(state)
        shards, probe = found.get("shards"), found.get("probe")
        value = f"{probe['value']:.4g}" if isinstance(probe, dict) else ""
        value += " (best)" * (folder.name == best)
        world = len(shards) if isinstance(shards, list) else "?"
        step = folder.name.removeprefix("step_").lstrip("0") or "0"
        rows.append((step, saved, f"{size / 1e6:.1f} MB", world, value))
    return _table(("step", "saved", "size", "processes", "probe"), rows)


def _bad_videos(lines: list) -> str:
    found = [line for line in lines if isinstance(line, dict) and "path" in line]
    if not found:
        return "<p>None so far.</p>"
    counts = Counter(line["path"] for line in found)
    reasons = {line["path"]: line.get("reason", "") for line in found}
    rows = [(path, count, reasons[path]) for path, count in counts.most_common(MOST_ROWS)]
    note = f"<p>Clips replaced: {len(found)}. Videos: {len(counts)}.</p>"
    return note + _table(("video", "clips", "reason"), rows)
