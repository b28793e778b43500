"""`vjepa-fast report`: finished, running and killed runs, and folders that are no runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.cli import main
from vjepa_fast.commands.report import report_html
from vjepa_fast.config import parse_config
from vjepa_fast.training.loop import pretrain

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags close, and collects headings, texts and what the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.references: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        """Of SVG: nothing opens."""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.sections[data] = ""
        elif self.sections and "section" in self.open:
            self.sections[list(self.sections)[-1]] += f"{data} "


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    """A finished run with pictures from its middle and its end."""
    folder = tmp_path_factory.mktemp("report") / "run"
    config = {
        "output": str(folder),
        "data": {"manifests": [str(demo / "train.csv")], "num_frames": 8, "frame_step": 1},
        "model": {"encoder": {"width": 24, "depth": 2, "heads": 2}, "patch_size": 8},
        "masks": {"specs": [{"num_blocks": 2, "spatial_scale": [0.3, 0.3]}], "truncate_group": 4},
        "optim": {"steps": 6, "global_batch": 4, "micro_batch": 4, "lr": 1e-3, "warmup_steps": 2},
        "log": {"every": 2, "collapse_every": 3, "pictures_every": 4, "histograms_every": 3},
        "checkpoint": {"every": 3},
    }
    config["data"] |= {"crop_size": 24, "num_workers": 1}
    config["model"]["predictor"] = {"width": 12, "depth": 1, "heads": 2}
    return pretrain(parse_config(config))


def test_a_finished_runs_report(run: Path, capsys: pytest.CaptureFixture) -> None:
    (run / "probe.json").write_text(
        json.dumps(
            {
                "step": 6,
                "label_fraction": 0.1,
                "blocks": 4,
                "accuracy": {"digit": {"pretrained": 0.75, "random": 0.5}},
                "chance": {"digit": 0.1},
            }
        )
    )
    (run / "bad_videos.jsonl").write_text('{"path": "a<b>.webm", "reason": "cut short"}\n')
    assert main(["report", str(run)]) == 0
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(r.startswith("data:image/png;base64,iVBOR") for r in page.references)
    assert len(page.references) == 4  # features and masks after steps 4 and 6
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == ["step 4", "step 6"] * 2
    assert "http" not in re.sub(r"base64,[^\"]*", "", text).replace("http-equiv", "")
    assert "6 of 6" in text and "finished" in text
    assert '<meta name="color-scheme" content="light dark">' in text
    sections = page.sections
    for name in ("grad_norm_encoder", "std_across_clips", "momentum", "ema"):
        assert name in sections["Curves"]
    assert re.search(r"loss\s+0\.\d", sections["Curves"])
    assert re.search(r"backward\s+[\d.e-]+ ms\s+\d+%", sections["Time of a step"])
    assert "probes of 4 blocks at step 6, with 10% of the labels" in sections["Probes"]
    assert "digit 0.750 0.500 0.100" in sections["Probes"]
    for step in (3, 6):
        assert re.search(rf"\b{step} +[\d-]+ [\d:]+ +[\d.]+ MB +1\b", sections["Checkpoints"])
    assert "a<b>.webm 1 cut short" in sections["Bad videos"]
    assert "deepspeed" in sections["Environment"] and "processes 1" in sections["Environment"]
    assert '"global_batch": 4' in sections["Config"]


def test_a_run_that_was_killed_has_a_report(run: Path, tmp_path: Path) -> None:
    """Half a line at the end, half a config, numbers that are none, nothing else yet."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    odd = '{"step": 3, "loss": NaN, "grad_norm_encoder": 0.0}\n[1]\n{"loss": 3}\n'
    (tmp_path / "metrics.jsonl").write_text(lines[0] + "\n" + odd + '{"step": 4, "lo')
    (tmp_path / "config.json").write_text('{"optim": {"ste')
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)  # as its files are removed
    text = report_html(tmp_path)
    page = Page(text)
    assert "unfinished" in text and "1 values not drawable" in page.sections["Curves"]
    assert page.sections["Checkpoints"].strip() == "Nothing yet."


def test_an_older_runs_probe_and_a_copied_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    probe = {"step": 6, "label_share": 0.1, "accuracy": {"digit": {"random": 0.5}}}
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    copied = tmp_path / "checkpoints" / "step_00000003 (copy)"
    copied.mkdir(parents=True)
    (copied / "state.json").write_text('{"shards": [{}]}')
    sections = Page(report_html(tmp_path)).sections
    assert "probes of 1 block at step 6, with 10% of the labels" in sections["Probes"]
    assert "3 (copy)" in sections["Checkpoints"]


def test_an_older_runs_pictures_are_found(run: Path, tmp_path: Path) -> None:
    """Their names count steps from 0; a resumed run has both."""
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "pictures").mkdir()
    for name in ("step_00000000_masks", "step_00000499_masks", "step_00001500_masks"):
        shutil.copy(run / "pictures/step_00000004_masks.png", tmp_path / f"pictures/{name}.png")
    text = report_html(tmp_path)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert captions == ["step 0", "step 499", "step 1500"]


def test_a_report_needs_no_deepspeed() -> None:
    program = "import sys, vjepa_fast.commands.report; sys.exit('deepspeed' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


def test_a_run_before_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"optim": {"steps": 5}}')
    page = Page(report_html(tmp_path))
    assert page.sections["Curves"].strip() == "Nothing yet."


def test_a_collapsed_run_says_so(tmp_path: Path) -> None:
    health = {"step": 7, "std_across_clips": 0.04}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(health) + "\n")
    assert "have collapsed: at step 7" in report_html(tmp_path)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_no_run_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / name}") and error.count("\n") == 1
    assert ("no such folder" if name else "neither config.json nor metrics.jsonl") in error


def test_an_output_that_cannot_be_written(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(run), "--output", str(run / "no" / "where.html")]) == 2
    assert capsys.readouterr().err.startswith("error: --output: found")


def test_a_long_runs_report_is_small_and_keeps_spikes(tmp_path: Path) -> None:
    values = [99.0 if step == 12_345 else 1.0 + step % 7 for step in range(90_000)]
    lines = [json.dumps({"step": step, "loss": value}) for step, value in enumerate(values)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    text = report_html(tmp_path)
    assert len(text) < 300_000
    (curve,) = re.findall(r'<path d="(M[^"]*)" clip-path', text)[-1:]
    heights = [float(y) for _, y in re.findall(r"[ML] (\S+) (\S+)", curve)]
    assert sum(y < max(heights) / 2 for y in heights) <= 3  # the spike alone
    assert min(heights) < max(heights) / 4
