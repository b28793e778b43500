"""A text list is probed in processes: what crashes or hangs there is a video that is left out."""

import logging
import re
from functools import partial
from pathlib import Path

from tests.helpers import damaged, videos
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.prepare import text_list
from vjepa_fast.data.prepare.scan import scan


def test_crashes_and_hangs_are_left_out_and_remembered(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    for name in ("a", "b", "crash", "hang"):
        videos.write_numbered(tmp_path, "mjpeg", 5, name)
    listed = tmp_path / "list.txt"
    listed.write_text("b.avi 0\na.avi 1\ncrash.avi 2\nhang.avi 3\n")
    probe = {"probe": damaged.crash_or_probe, "seconds": 3, "modules": (damaged.__name__,)}
    monkeypatch.setattr(text_list, "scan", partial(scan, **probe))
    entries = list(open_manifest(listed))
    assert [Path(entry.path).stem for entry in entries] == ["b", "a"]
    assert [entry.labels for entry in entries] == [{"label": 0}, {"label": 1}]
    assert re.search(r"2 unusable .*crash.avi: damaged \(FFmpeg crashes or hangs\)", caplog.text)
    monkeypatch.setattr(text_list, "scan", None)  # a second call probes nothing
    assert list(open_manifest(listed)) == entries
