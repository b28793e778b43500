"""Which files `index` looks at: by name or content; the others are counted, none is lost."""

import os

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers import videos
from vjepa_fast.cli import main
from vjepa_fast.data.decode.pyav import decode_clip
from vjepa_fast.data.plan.clip_plan import ClipPlan
from vjepa_fast.data.prepare.index import index_directory
from vjepa_fast.data.prepare.listing.folder import list_folder
from vjepa_fast.errors import UserError

# FFmpeg's muxer, and a codec that it takes.
CONTAINERS = {
    "MTS": ("mpegts", "libx264"),
    "m2t": ("mpegts", "mpeg2video"),
    "vob": ("vob", "mpeg2video"),
    "asf": ("asf", "msmpeg4v3"),
    "qt": ("mov", "libx264"),
    "3g2": ("3g2", "mpeg4"),
    "f4v": ("f4v", "libx264"),
    "mxf": ("mxf", "mpeg2video"),
    "divx": ("avi", "mpeg4"),
    "y4m": ("yuv4mpegpipe", "wrapped_avframe"),
    "dat": ("mpeg", "mpeg1video"),  # a video CD
    "mp4_old": ("mp4", "libx264"),
    "backup": ("matroska", "libx264"),
    "flv1": ("flv", "libx264"),
    "ogx": ("ogg", "libvpx"),
    "vp9": ("ivf", "libvpx-vp9"),
    "nut": ("nut", "mpeg4"),
    "264": ("h264", "libx264"),
    "265": ("hevc", "libx265"),
    "m4e": ("m4v", "mpeg4"),
    "m2v": ("mpeg2video", "mpeg2video"),
    "": ("webm", "libvpx-vp9"),
}


def write(path, muxer, encoder, frames=8):
    """Numbered frames in any container."""
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(encoder, rate=25, options=videos.FAST.get(encoder, {}))
        stream.width, stream.height, stream.pix_fmt = 352, 288, "yuv420p"
        for i in range(frames):
            picture = videos.numbered(i, 288, 352)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_gif(path, pictures):
    images = [Image.fromarray(videos.numbered(i)) for i in range(pictures)]
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=100)
    return path


def names(files):
    return [os.path.basename(file.path) for file in files]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_video_is_found_whatever_its_name(tmp_path, suffix):
    """Under its usual suffix, under none, and under one that nobody knows."""
    muxer, encoder = CONTAINERS[suffix]
    for name in (f"a.{suffix}" if suffix else "a", "b", "c.xyz"):
        write(tmp_path / name, muxer, encoder)
    listing = list_folder(tmp_path, tmp_path / "m.csv")
    assert len(listing.videos) == 3
    assert not listing.passed_over and not listing.rejected and not listing.images


def test_the_cases_of_the_issue(tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for suffix in ("MTS", "vob", "asf", "qt", "3g2", "f4v", "mxf", "divx", "y4m", ""):
        write(folder / (f"v.{suffix}" if suffix else "v"), *CONTAINERS[suffix])
    write_gif(folder / "v.gif", 5)
    video = write(folder / "v.mp4", "mp4", "libx264")
    (folder / "running.mp4.part").write_bytes(video.read_bytes()[:9000])
    (folder / "notes.txt").write_text("a note\n")
    (folder / "labels.csv").write_text("path,label\n")
    (folder / "more.csv").write_text("path,label\n")
    (folder / "rest.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    output = folder / "m.csv"
    for _ in range(2):  # the second time beside the files of the first
        assert main(["index", str(folder), "--output", str(output), "--workers", "1"]) == 0
        printed = capsys.readouterr().out
        assert "12 videos" in printed
        assert "1 files rejected, 4 passed over" in printed
        assert "passed over, not videos: 2 .csv, 1 .txt, 1 .zip\n" in printed
        assert "running.mp4.part: an unfinished download or copy, by its suffix" in printed
        assert "Videos in .zip and compressed .tar archives are not read: unpack them." in printed


def test_what_is_no_video_is_counted_and_not_opened(tmp_path):
    for suffix in ("json", "srt", "wav", "npy", "LRV"):
        (tmp_path / f"x.{suffix}").symlink_to(tmp_path / "nowhere")  # would fail if opened
    (tmp_path / "Makefile").write_text("all:\n")
    (tmp_path / "odd.xyz").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "Dr. No").touch()
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(100))
    (tmp_path / "._v.mp4").write_bytes(b"\0\5\x16\7" + bytes(100))
    videos.write_numbered(tmp_path, "vp9", 5, "v")
    os.mkfifo(tmp_path / "pipe")
    listing = list_folder(tmp_path, tmp_path / "m.csv")
    assert names(listing.files) == ["v.webm"] and not listing.rejected
    assert listing.passed_over == {
        ".json": 1,
        ".srt": 1,
        ".wav": 1,
        ".npy": 1,
        ".lrv": 1,
        "without a suffix": 3,
        ".xyz": 1,
        "hidden files": 1,
        "._* of macOS": 1,
    }


@pytest.mark.parametrize("suffix", ["crdownload", "tmp", "filepart", "PARTIAL", "part-Frag3"])
def test_an_unfinished_video_is_refused_and_what_else_ends_so_is_not(tmp_path, suffix):
    video = videos.write_numbered(tmp_path, "vp9", 5, "v")
    (tmp_path / f"w.webm.{suffix}").write_bytes(video.read_bytes()[:500])
    (tmp_path / f"notes.{suffix}").write_text("a note\n")
    listing = list_folder(tmp_path, tmp_path / "m.csv")
    assert names(listing.files) == ["v.webm"]
    assert [os.path.basename(r.file.path) for r in listing.rejected] == [f"w.webm.{suffix}"]
    assert listing.passed_over == {f".{suffix.lower()}": 1}


def test_audio_photographs_and_text_are_no_videos_by_content(tmp_path):
    videos.write_audio(tmp_path / "a.webm").rename(tmp_path / "audio.ogg")  # is Matroska, and seen
    with av.open(str(tmp_path / "sound"), "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.int16), "s16", "stereo")
        frame.rate, frame.pts = 48000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (tmp_path / "heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "icon").write_bytes(b"\0\0\1\0\1\0\x10\x10" + bytes(100))
    (tmp_path / "text").write_text("GIF RIFF FLV\n" * 100)
    Image.new("RGB", (48, 32)).save(tmp_path / "photograph", "JPEG")
    Image.new("RGB", (48, 32)).save(tmp_path / "bitmap", "BMP")
    listing = list_folder(tmp_path, tmp_path / "m.csv")
    assert names(listing.videos) == ["audio.ogg"]
    assert names(listing.images) == ["bitmap", "photograph"]
    assert listing.passed_over == {"without a suffix": 4}


def test_a_moving_gif_among_images_does_not_make_them_thumbnails(tmp_path):
    write_gif(tmp_path / "moves.gif", 4)
    for name in ("a.gif", "b.gif"):
        write_gif(tmp_path / name, 1)
    listing = list_folder(tmp_path, tmp_path / "m.csv")
    assert names(listing.files) == ["a.gif", "b.gif"]
    assert listing.passed_over == {"moving .gif among images": 1}


def test_a_gif_is_a_video_if_it_moves(tmp_path):
    write_gif(tmp_path / "moves.gif", 4)
    write_gif(tmp_path / "still.gif", 1)
    listing = list_folder(tmp_path, tmp_path / "m.csv")
    assert names(listing.videos) == ["moves.gif"] and names(listing.images) == ["still.gif"]
    (entry,), _ = index_directory(tmp_path, tmp_path / "m.csv", workers=1)
    assert (entry.frames, entry.fps, entry.codec) == (4, 10.0, "gif")
    (tmp_path / "moves.gif").unlink()
    (entry,), rejected = index_directory(tmp_path, tmp_path / "m.csv", workers=1)
    assert (entry.frames, entry.fps, entry.codec, rejected) == (1, 0.0, "gif", [])
    plan = ClipPlan(0, entry.path, 0, np.zeros(2, np.int64), (0.0, 0.0, 1.0, 1.0), False, {})
    assert videos.read_numbers(decode_clip(plan, entry, 48).numpy()) == [0, 0]


def test_an_animated_webp_is_not_called_damaged(tmp_path):
    images = [Image.fromarray(videos.numbered(i)) for i in range(4)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=100)
    images[0].save(tmp_path / "still.webp")
    entries, rejected = index_directory(tmp_path, tmp_path / "m.csv", workers=1)
    assert [os.path.basename(entry.path) for entry in entries] == ["still.webp"]
    assert rejected == [
        (str(tmp_path / "a.webp"), "an animated WebP, which FFmpeg does not decode; convert it")
    ]


def test_hidden_folders_are_passed_over_unless_they_are_given(tmp_path):
    hidden = tmp_path / ".snapshot"
    hidden.mkdir()
    videos.write_numbered(hidden, "vp9", 5, "v")
    (tmp_path / "v.webm").write_bytes((hidden / "v.webm").read_bytes())
    listing = list_folder(tmp_path, tmp_path / "m.csv")
    assert [file.path for file in listing.files] == [str(tmp_path / "v.webm")]
    assert listing.passed_over == {"hidden folders": 1}
    assert names(list_folder(hidden, tmp_path / "m.csv").files) == ["v.webm"]


def test_a_store_of_files_by_their_hash_counts_once(tmp_path):
    (tmp_path / "blobs").mkdir(), (tmp_path / "snapshots").mkdir()
    stored = videos.write_numbered(tmp_path, "vp9", 5).rename(tmp_path / "blobs" / "5f3a")
    (tmp_path / "snapshots" / "v.webm").symlink_to(stored)
    videos.write_numbered(tmp_path, "vp9", 5).rename(tmp_path / "blobs" / "77aa")
    listing = list_folder(tmp_path, tmp_path / "m.csv")
    assert sorted(names(listing.files)) == ["77aa", "v.webm"]
    assert listing.passed_over == {"named by a link elsewhere": 1}


def test_nothing_found_says_what_is_there(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "b.txt").touch()
    with pytest.raises(
        UserError, match=r"no image, but 1 \.zip, 1 \.txt; .* folder; unpack archives"
    ):
        index_directory(tmp_path, tmp_path / "m.csv")
