"""Images are videos of one frame: indexed by content, shown in every frame of a clip."""

import io
import json
import logging
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vjepa_fast import cli
from vjepa_fast.config import parse_config
from vjepa_fast.data.loader import make_loader
from vjepa_fast.data.manifest.files import read_manifest, write_manifest
from vjepa_fast.data.open_manifest import open_manifest
from vjepa_fast.data.plan.crops import Augment
from vjepa_fast.data.plan.planner import ClipPlanner
from vjepa_fast.data.prepare.index import index_directory
from vjepa_fast.data.prepare.transcode import transcode_manifest
from vjepa_fast.errors import UserError
from vjepa_fast.training.loop import pretrain

COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
FORMATS = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}


def picture(color: str, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A gray picture with a square of that color in its upper left corner."""
    image = Image.new("RGB", size, (128, 128, 128))
    image.paste(COLORS[color], (0, 0, 16, 16))
    return image


def encoded(color: str, form: str) -> bytes:
    file = io.BytesIO()
    picture(color).save(file, form)
    return file.getvalue()


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder a class, of an image in every format."""
    for color in COLORS:
        folder = tmp_path / "images" / color
        folder.mkdir(parents=True)
        for i, (suffix, form) in enumerate(FORMATS.items()):
            (folder / f"100%d_{i}.{suffix}").write_bytes(encoded(color, form))
    return tmp_path / "images"


def test_a_folder_of_images_becomes_clips_of_them(classes, tmp_path):
    (classes / "red" / "png_inside.jpg").write_bytes(encoded("red", "PNG"))
    (classes / "bad.jpg").write_bytes(encoded("red", "JPEG")[:-60])
    (classes / "text.png").write_text("no picture\n")
    entries, rejected = index_directory(classes, tmp_path / "m.csv", workers=1)
    assert len(entries) == 3 * len(FORMATS) + 1
    assert {(e.frames, e.fps, e.width, e.height, e.vfr) for e in entries} == {(1, 0, 48, 32, False)}
    found = {Path(e.path).name: e.codec for e in entries if "red" in e.path}
    assert list(found.values()) == ["jpeg", "jpeg", "png", "webp", "bmp", "png"]
    reasons = {Path(path).name: reason.split(" (")[0] for path, reason in rejected}
    assert reasons == {"bad.jpg": "truncated or damaged", "text.png": "a text file, not a video"}
    for rate in ({"frame_step": 4}, {"frame_step": 4, "fps": 8.0}):
        planner = ClipPlanner.in_order(read_manifest(tmp_path / "m.csv"), num_frames=4, **rate)
        with make_loader(planner, [list(range(len(planner)))], 32) as loader:
            assert loader.backend == "pyav"
            [batch] = loader
        for entry, video in zip(planner.entries, batch.video.numpy(), strict=True):
            assert (video == video[:1]).all()
            shown = video[0, 2:14, 2:6].mean((0, 1))  # the middle square starts at column 8
            expected = COLORS[Path(entry.path).parent.name]
            assert np.abs(shown - expected).max() < 12, entry.path
            assert np.abs(video[0, 24:].mean((0, 1)) - 128).max() < 3
    short = {"num_frames": 4, "frame_step": 4, "augment": None}
    looped = ClipPlanner([read_manifest(tmp_path / "m.csv")], **short, short_videos="wrap", fps=8.0)
    assert not np.stack([plan.frames for plan in looped.plan(range(20))]).any()
    for rate in ({}, {"fps": 8.0}):  # an image fills any clip
        kept = ClipPlanner(
            [read_manifest(tmp_path / "m.csv")], **short, short_videos="drop", **rate
        )
        assert len(kept) == len(entries)
    with pytest.raises(UserError, match="an image, which decodes as it is"):
        transcode_manifest(tmp_path / "m.csv", tmp_path / "copies", workers=1)


def test_every_kind_of_pixel_is_shown_as_drawn(tmp_path):
    """Gray, 1 and 16 bits, a palette, transparency (dropped), CMYK; in clips for training, too."""
    folder = tmp_path / "images"
    folder.mkdir()
    red, gray = Image.new("RGB", (32, 32), COLORS["red"]), Image.new("L", (32, 32), 90)
    clear = red.copy()
    clear.putalpha(40)
    kinds = {
        "gray.png": gray,
        "gray.jpg": gray,
        "gray_with_alpha.png": gray.convert("LA"),
        "gray_of_16_bits.png": Image.fromarray(np.full((32, 32), 90 * 257, np.uint16)),
        "black_or_white.png": Image.new("1", (32, 32), 1),
        "palette.png": red.quantize(4),
        "palette.bmp": red.quantize(4),
        "palette.gif": red.quantize(4),
        "transparent.png": clear,
        "transparent.webp": clear,
        "cmyk.jpg": red.convert("CMYK"),
    }
    for name, image in kinds.items():
        image.save(folder / name)
    _, rejected = index_directory(folder, tmp_path / "m.csv", workers=1)
    assert not rejected
    entries = read_manifest(tmp_path / "m.csv")
    planner = ClipPlanner([entries], num_frames=4, frame_step=4, fps=4.0, augment=Augment())
    seen = set()
    with make_loader(planner, [range(len(kinds))], 16) as loader:
        [batch] = loader
    for sample_id, clip in enumerate(batch.video.numpy()):
        name = Path(planner.plan_one(sample_id).path).name
        white = (255, 255, 255)
        expected = white if name.startswith("black") else (90,) * 3 if "gray" in name else None
        assert np.abs(clip - np.array(expected or COLORS["red"])).max() <= 2, name
        seen.add(name)
    assert seen == set(kinds)


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    image = picture("red")
    names = {6: "a turned", 8: "b turned", 3: "c turned", 1: "upright", 2: "mirrored", 7: "other"}
    for orientation, name in names.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"{name}.jpg", exif=exif)
    entries, rejected = index_directory(tmp_path, tmp_path / "m.csv", workers=1)
    found = [(e.rotation, e.width, e.height) for e in entries]
    assert found == [(90, 32, 48), (270, 32, 48), (180, 48, 32), (0, 48, 32)]
    assert [(Path(path).name, reason[:20]) for path, reason in rejected] == [
        ("mirrored.jpg", "to be shown mirrored"),
        ("other.jpg", "to be shown mirrored"),
    ]


def test_images_in_archives_and_class_folders_as_a_text_list(classes, tmp_path):
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives" / "0.tar", "w") as tar:
        tar.add(classes / "blue", "blue")
    entries, _ = index_directory(tmp_path / "archives", tmp_path / "m.csv", workers=1)
    assert sum("0.tar::blue/" in e.path and e.frames == 1 for e in entries) == len(FORMATS)
    lines = [
        f"{path} {label}\n"
        for label, folder in enumerate(sorted(classes.iterdir()))
        for path in sorted(folder.iterdir())
    ]
    (tmp_path / "list.txt").write_text("".join(lines))
    labels = {
        Path(e.path).parent.name: e.labels["label"] for e in open_manifest(tmp_path / "list.txt")
    }
    assert labels == {"blue": 0, "green": 1, "red": 2}


def test_images_beside_videos_are_left_out(demo, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vjepa_fast"), "propagate", True)
    (tmp_path / "v.webm").symlink_to(next((demo / "train").glob("*.webm")))
    (tmp_path / "thumbnail.jpg").write_bytes(encoded("red", "JPEG"))
    entries, rejected = index_directory(tmp_path, tmp_path / "m.csv", workers=1)
    assert [Path(e.path).name for e in entries] == ["v.webm"] and not rejected
    assert "images beside videos are left out (1)" in caplog.text


@pytest.mark.slow
def test_a_probe_on_images(small_config, classes, tmp_path, capsys):
    run = pretrain(parse_config(small_config(optim={"steps": 1})))
    entries, _ = index_directory(classes, tmp_path / "m.csv", workers=1)
    names = list(COLORS)
    labelled = [replace(e, labels={"c": names.index(Path(e.path).parent.name)}) for e in entries]
    write_manifest(tmp_path / "m.csv", labelled)
    manifest = str(tmp_path / "m.csv")
    command = ["probe", "--checkpoint", str(run), "--labels", "c"]
    assert cli.main([*command, "--train", manifest, "--test", manifest]) == 0
    assert "pretrained encoder    100 %" in capsys.readouterr().out
    assert json.loads((run / "probe.json").read_text())["videos"]["test"]["used"] == len(entries)
