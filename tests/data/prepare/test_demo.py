"""The demo data: labels, randomness, files, and that only motion shows the direction."""

import av
import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from vjepa_fast.data.manifest.files import read_manifest
from vjepa_fast.data.prepare import demo
from vjepa_fast.errors import UserError


def decode(path):
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def files(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    return demo.make_demo(directory, clips=24, test_clips=8, workers=1)


def test_a_clip_is_a_function_of_seed_split_and_index():
    video, labels = demo.render_clip(3, "train", 11)
    again, same = demo.render_clip(3, "train", 11)
    assert video.shape == (demo.FRAMES, demo.SIZE, demo.SIZE, 3)
    assert video.dtype == np.uint8
    assert np.array_equal(video, again) and labels == same == {"digit": 1, "direction": 3}
    for other in [(4, "train", 11), (3, "test", 11), (3, "train", 12)]:
        assert not np.array_equal(video, demo.render_clip(*other)[0])


def test_every_pair_of_labels_comes_equally_often():
    pairs = [tuple(demo.render_clip(0, "train", index)[1].values()) for index in range(160)]
    assert sorted(pairs) == sorted(2 * [(d, m) for d in range(10) for m in range(8)])


def test_the_test_split_shows_other_images_than_training():
    train = {image.tobytes() for images in demo.digit_images("train") for image in images}
    test = {image.tobytes() for images in demo.digit_images("test") for image in images}
    assert not train & test
    assert len(train) + len(test) == 1797
    assert 0.19 < len(test) / 1797 < 0.21


@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_a_file_decodes_to_what_was_drawn(tmp_path, codec):
    manifest, _ = demo.make_demo(tmp_path, clips=4, test_clips=1, codec=codec, seed=5, workers=1)
    entries = read_manifest(manifest)
    assert [entry.codec for entry in entries] == 4 * [codec]
    for index, entry in enumerate(entries):
        drawn, labels = demo.render_clip(5, "train", index)
        decoded = decode(entry.path).astype(float)
        assert decoded.shape == drawn.shape == (entry.frames, entry.height, entry.width, 3)
        assert entry.labels == labels
        # The colour is stored at half the resolution, so the grey level is what stays close.
        assert np.abs(decoded.mean(-1) - drawn.mean(-1)).mean() < 4
        noise = np.diff(decoded.mean(-1), axis=0).std() / np.diff(drawn.mean(-1), axis=0).std()
        assert 0.8 < noise < 1.2


def test_the_same_call_writes_the_same_bytes(small, tmp_path):
    again = demo.make_demo(tmp_path, clips=24, test_clips=8, workers=2)
    for first, second in zip(small, again, strict=True):
        for one, other in zip(read_manifest(first), read_manifest(second), strict=True):
            assert one.labels == other.labels
            with open(one.path, "rb") as a, open(other.path, "rb") as b:
                assert a.read() == b.read()


def test_good_files_are_kept_and_bad_ones_written_again(tmp_path):
    def make(seed):
        return demo.make_demo(tmp_path, clips=6, test_clips=2, seed=seed, workers=1)

    make(0)
    whole = {path: path.read_bytes() for path in files(tmp_path)}
    before = files(tmp_path / "train")

    truncated, missing, empty, text = sorted(before)[:4]
    truncated.write_bytes(whole[truncated][:-200])
    missing.unlink()
    missing.with_name(missing.name + ".part").write_bytes(whole[missing][:500])
    empty.write_bytes(b"")
    text.write_text("not a video")
    make(0)
    after = files(tmp_path / "train")
    assert {path for path in before if after[path] == before[path]} == set(sorted(before)[4:])
    assert {path: path.read_bytes() for path in before} == {path: whole[path] for path in before}
    assert set(after) == set(before)

    make(1)  # other settings: every file is written again
    assert all(path.read_bytes() != whole[path] for path in before)


@pytest.mark.slow
def test_one_frame_does_not_tell_the_direction_but_the_motion_does():
    clips = [demo.render_clip(0, "train", index) for index in range(2400)]
    video = np.stack([video.mean(-1) for video, _ in clips])
    direction = np.array([labels["direction"] for _, labels in clips])
    train, test = slice(0, 1600), slice(1600, 2400)

    for frame in (0, demo.FRAMES - 1):
        pixels = video[:, frame].reshape(len(video), -1)
        classifier = RidgeClassifier(alpha=1e5).fit(pixels[train], direction[train])
        # 800 clips: the standard error at chance, 1/8, is 0.012
        assert abs(classifier.score(pixels[test], direction[test]) - 1 / 8) < 0.045

    assert np.mean(_direction_by_eye(video) == direction) > 0.75


def _direction_by_eye(video):
    """Direction 0..7 of [clips, T, H, W]: where the brightest part of the frame, the digit, goes.

    The phase of the coarsest wave along an axis is the position along it; both wrap around.
    """
    spectrum = np.fft.fft2(video)
    waves = np.stack([spectrum[:, :, 1, 0], spectrum[:, :, 0, 1]], axis=-1)  # along y, along x
    turned = -np.angle(waves[:, 1:] / waves[:, :-1]).sum(1)
    return np.round(np.arctan2(turned[:, 0], turned[:, 1]) / (np.pi / 4)).astype(int) % 8


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"codec": "av1"}, "found codec 'av1'.*expected one of vp9, h264"),
        ({"clips": 0}, "found 0 training and 8 test clips, expected at least 1"),
        ({"seed": -1}, "found seed -1, expected 0"),
    ],
)
def test_impossible_settings_are_rejected(tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        demo.make_demo(tmp_path, **{"clips": 8, "test_clips": 8, **settings})
    assert not files(tmp_path)


def test_a_file_in_place_of_the_folder_is_rejected(tmp_path):
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(UserError, match="where no folder can be made"):
        demo.make_demo(tmp_path / "data", clips=8, test_clips=8)


def test_an_unknown_split_is_rejected():
    with pytest.raises(ValueError, match="found split 'val'"):
        demo.render_clip(0, "val", 0)
