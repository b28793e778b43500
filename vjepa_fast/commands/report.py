"""`vjepa-fast report RUN`: all that a run has written, as one page that needs nothing else."""

from __future__ import annotations

import argparse
import base64
import datetime
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from vjepa_fast.commands.report_charts import line_chart, number, share_bar
from vjepa_fast.commands.report_style import STYLE
from vjepa_fast.errors import UserError
from vjepa_fast.training.monitoring.collapse import STD_FLOOR
from vjepa_fast.training.monitoring.writer import read_metrics
from vjepa_fast.training.timers import PARTS

CHARTS = (  # title, names in metrics.jsonl, logarithmic, from zero on
    ("loss: falls, then may rise as the targets sharpen", ("loss",), False, False),
    ("gradient norm before clipping", ("grad_norm_encoder", "grad_norm_predictor"), True, False),
    (f"std across clips (collapse: below {STD_FLOOR})", ("std_across_clips",), False, True),
    ("RankMe of pooled target features", ("rank_me",), False, True),
    ("variance of target features", ("target_variance",), False, True),
    ("distance of encoder and teacher", ("teacher_distance",), False, True),
    ("skipped steps", ("skipped_steps",), False, True),
    ("learning rate", ("lr",), False, True),
    ("weight decay", ("weight_decay",), False, True),
    ("teacher's momentum", ("momentum",), False, False),
    ("clips per second", ("clips_per_second",), False, True),
    ("share of time that waits for data", ("data_wait",), False, True),
    ("milliseconds of a step, by part", tuple(f"ms_{part}" for part in PARTS), False, True),
)
HELP = "write a run's curves, pictures and tables as one HTML file"
MOST_ROWS = 20
MOST_PICTURES = 4  # of each kind: the first and the newest ones


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="e.g. runs/tiny")
    parser.add_argument("--output", type=Path, help="default: RUN/report.html")


def run(options: argparse.Namespace) -> int:
    """Write the report and print its path.

    Raises:
        UserError: a folder that is no run, or an output that can't be written.
    """
    page = run_page(options.run_folder)
    output = options.output or options.run_folder / "report.html"
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--output: found {output}, which cannot be written ({error.strerror}), expected a "
            "file's path; name e.g. report.html"
        ) from None
    print(f"report: {output}")
    return 0


def run_page(run: Path) -> str:
    """The page of a run's folder, finished or not, as HTML.

    Raises:
        UserError: a folder that is no run.
    """
    if not (run / "metrics.jsonl").is_file() and not (run / "config.json").is_file():
        what = "neither config.json nor metrics.jsonl" if run.is_dir() else "no such folder"
        raise UserError(
            f"{run}: found {what}, expected a run's folder as train.py leaves it; name one, e.g. "
            "runs/tiny"
        )
    rows = [row for row in read_metrics(run / "metrics.jsonl") if is_row(row)]
    config = read_json(run / "config.json")
    sections = [
        ("Curves", _curves(rows)),
        ("Where a step's time goes", _parts(rows)),
        ("Target features, first three principal components", _pictures(run, "features")),
        ("Masks", _pictures(run, "masks")),
        ("Probes", _probe(run)),
        ("Checkpoints", _checkpoints(run)),
        ("Bad videos", _bad_videos(run)),
        ("Environment", _environment(run)),
        ("Config", f"<pre>{escape(json.dumps(config, indent=2))}</pre>" if config else ""),
    ]
    body = "".join(
        f"<section><h2>{title}</h2>{content or '<p class=none>Nothing yet.</p>'}</section>"
        for title, content in sections
    )
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    name = escape(str(run))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{name}</title>'
        f"<style>{STYLE}</style></head><body><header><h1>{name}</h1>"
        f"<p>drawn {now}</p></header>{_summary(run, rows, config)}{body}</body></html>\n"
    )


def is_row(row: object) -> bool:
    """Whether a line of metrics is one: a step and numbers."""
    return isinstance(row, dict) and isinstance(row.get("step"), int)


def read_json(path: Path) -> dict:
    """A JSON object, empty where there is none or only a part of one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def points(rows: Sequence[dict], name: str) -> list[tuple[float, float]]:
    """(step, value) wherever a row has the name."""
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{cells}</tr>{body}</table></div>'


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="minutes")


def _summary(run: Path, rows: list[dict], config: dict) -> str:
    last = max((row["step"] + 1 for row in rows), default=0)
    optim = config.get("optim") or {}
    steps = optim.get("steps")
    whole = f" of {steps}" if steps else ""
    tiles = [("steps", f"{last}{whole}"), ("state", "finished" if last == steps else "unfinished")]
    for label, name in (
        ("loss", "loss"),
        ("std across clips", "std_across_clips"),
        ("RankMe", "rank_me"),
        ("clips per second", "clips_per_second"),
        ("data wait", "data_wait"),
        ("skipped steps", "skipped_steps"),
    ):
        found = points(rows, name)
        if found:
            text = f"{found[-1][1]:.1%}" if name == "data_wait" else number(found[-1][1])
            tiles.append((label, text))
    if rows:
        tiles.append(("last line", _when((run / "metrics.jsonl").stat().st_mtime)))
    text = "".join(f"<div><b>{escape(v)}</b>{escape(k)}</div>" for k, v in tiles)
    spread = points(rows, "std_across_clips")
    warning = ""
    if spread and not spread[-1][1] >= STD_FLOOR:
        warning = (
            f'<p class="warning">The target features have collapsed: at step {spread[-1][0]} their '
            f"std across clips at the same position is {spread[-1][1]:.3f}, healthy is above "
            f"{STD_FLOOR}. Raise teacher.momentum, lower optim.lr, or leave less context in "
            "masks.specs.</p>"
        )
    return f'{warning}<div class="tiles">{text}</div>'


def _curves(rows: list[dict]) -> str:
    last = max((row["step"] for row in rows), default=0)
    charts = []
    for title, names, log, zero in CHARTS:
        series = {name.removeprefix("ms_"): points(rows, name) for name in names}
        charts.append(line_chart(title, series, last_step=last, log=log, zero=zero))
    found = "".join(charts)
    return f'<div class="charts">{found}</div>' if found else ""


def _parts(rows: list[dict]) -> str:
    """Means over the second half of the lines, past the warm-up of caches and clocks."""
    timed = [row for row in rows if f"ms_{PARTS[0]}" in row]
    timed = timed[len(timed) // 2 :]
    if not timed:
        return ""
    mean = {p: sum(row.get(f"ms_{p}", 0.0) for row in timed) / len(timed) for p in PARTS}
    first, last = timed[0]["step"], timed[-1]["step"]
    note = f"<p>Means of a step over the lines of steps {first} to {last}.</p>"
    return share_bar(mean, "ms") + note


def _pictures(run: Path, kind: str) -> str:
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
    note = {
        "features": "Each clip, and below it the target encoder's features; a colour means the "
        "same in all clips of a picture, not from picture to picture.",
        "masks": "One clip, a row for each mask spec. Bright: context; blue: target; orange: "
        "neither.",
    }[kind]
    return f'<p>{note}</p><div class="pictures">{"".join(figures)}</div>' if figures else ""


def _probe(run: Path) -> str:
    result = read_json(run / "probe.json")
    accuracy = result.get("accuracy")
    if not isinstance(accuracy, dict) or not accuracy:
        return ""
    kinds = list(next(iter(accuracy.values())))
    chance = result.get("chance", {})
    rows = [
        (label, *(f"{by_kind[kind]:.3f}" for kind in kinds), f"{chance.get(label, 0):.3f}")
        for label, by_kind in accuracy.items()
    ]
    fraction = result.get("label_fraction", 1.0)
    note = f"Attentive probe at step {result.get('step')}, {fraction:.0%} of the labels; accuracy."
    return f"<p>{escape(note)}</p>" + table(("label", *kinds, "chance"), rows)


def _checkpoints(run: Path) -> str:
    rows = []
    for folder in sorted((run / "checkpoints").glob("step_*")):
        state = folder / "state.json"
        try:
            size = sum(file.stat().st_size for file in folder.iterdir())
            saved = _when(state.stat().st_mtime)
        except OSError:  # no checkpoint, or pruned while we look
            continue
        shards = read_json(state).get("shards")
        world = len(shards) if isinstance(shards, list) else "?"
        step = folder.name.removeprefix("step_").lstrip("0") or "0"
        rows.append((step, saved, f"{size / 1e6:.1f} MB", world))
    return table(("step", "saved", "size", "processes"), rows) if rows else ""


def _bad_videos(run: Path) -> str:
    seen: Counter = Counter()
    reasons = {}
    for row in read_metrics(run / "bad_videos.jsonl"):
        if isinstance(row, dict) and "path" in row:
            seen[row["path"]] += 1
            reasons[row["path"]] = row.get("reason", "")
    if not seen:
        return "<p>None so far.</p>"
    rows = [(path, count, reasons[path]) for path, count in seen.most_common(MOST_ROWS)]
    note = f"<p>Clips replaced: {sum(seen.values())}. Videos: {len(seen)}.</p>"
    return note + table(("video", "clips", "reason"), rows)


def _environment(run: Path) -> str:
    found = read_json(run / "environment.json")
    return table(("of the newest start", ""), found.items()) if found else ""
