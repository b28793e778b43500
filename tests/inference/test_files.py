"""Encoders from published files and folders of transformers: the features of their own code."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.exchange.runs import FIRST, SECOND, write_run
from tests.helpers import videos
from tests.weights.published_files import checkpoint, save
from vjepa_fast import load_encoder
from vjepa_fast.data.decode.color import RgbConverter
from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.run import export_run
from vjepa_fast.exchange.import_weights import import_weights
from vjepa_fast.inference.clips import ClipList, inspect_video
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.weights import encoder_to_published


def published(run: Path, path: Path, positions: Tensor | None) -> Path:
    """The two encoders of a run as a published file has them."""
    checkpoint = Checkpoint.find(run)
    content = {}
    for part, which in (("encoder", "master"), ("target_encoder", "teacher")):
        state = encoder_to_published(checkpoint.weights("encoder", which))
        if positions is not None:
            state["backbone.pos_embed"] = positions[None]
        content[part] = {f"module.{name}": value for name, value in state.items()}
    torch.save(content, path)
    return path


def random_clips(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def test_a_published_file_of_the_first_generation(runs: dict, tmp_path: Path) -> None:
    own = load_encoder(runs[1])
    path = published(runs[1], tmp_path / "tiny.pth.tar", own.model.positions)
    with pytest.raises(UserError, match="--generation"):
        load_encoder(path, heads=2)
    with pytest.raises(UserError, match="--heads"):
        load_encoder(path, generation=1)
    of_file = {"heads": 2, "generation": 1}
    found = load_encoder(path, **of_file)
    assert found.checksum == own.checksum and found.network == "target_encoder"
    assert (found.num_frames, found.crop_size) == (4, 28)
    assert (found.sampling.frame_step, found.sampling.fps) == (4, None)
    video = random_clips(2, 4, 28, 28)
    assert torch.equal(found(video).tokens, own(video).tokens)
    larger = load_encoder(path, crop_size=35, num_frames=8, **of_file)
    expected = load_encoder(runs[1], crop_size=35, num_frames=8)
    video = random_clips(1, 8, 35, 35)
    assert torch.equal(larger(video).tokens, expected(video).tokens)
    rounded = load_encoder(path, dtype=torch.bfloat16, **of_file)
    assert rounded.checksum == load_encoder(runs[1], dtype=torch.bfloat16).checksum


def test_a_published_file_of_the_second_generation(runs: dict, tmp_path: Path) -> None:
    own = load_encoder(runs[2])
    path = published(runs[2], tmp_path / "tiny.pt", None)
    with pytest.raises(UserError, match="--crop-size"):
        load_encoder(path, heads=2)
    with pytest.raises(UserError, match="--heads"):
        load_encoder(path, crop_size=28)
    found = load_encoder(path, heads=2, crop_size=28)
    assert found.checksum == own.checksum
    assert (found.num_frames, found.sampling.fps) == (16, 4.0)
    video = random_clips(2, 4, 28, 28)
    assert torch.equal(found(video).tokens, own(video).tokens)


def test_heads_of_a_predictor_are_not_asked_for(tmp_path: Path) -> None:
    path = save(checkpoint(second=True), tmp_path / "tiny.pt")
    for options, asked in (
        ({}, "--heads --crop-size --num-frames"),
        ({"crop_size": 24}, "--heads"),
    ):
        with pytest.raises(UserError, match=f"expected {asked}; give what they were trained with"):
            load_encoder(path, **options)
    assert load_encoder(path, heads=2, crop_size=24).network == "target_encoder"


@pytest.fixture(scope="module")
def hub_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny VJEPA2Model and its video processor, as transformers saves them."""
    from transformers import VJEPA2Config, VJEPA2Model, VJEPA2VideoProcessor

    torch.manual_seed(0)
    config = VJEPA2Config(
        patch_size=7,
        crop_size=28,
        frames_per_clip=4,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        mlp_ratio=4.0,
        pred_hidden_size=12,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        pred_num_mask_tokens=2,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("hub")
    VJEPA2Model(config).save_pretrained(folder)
    VJEPA2VideoProcessor(crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("width", [32, 45, 51])
def test_a_folder_of_transformers_as_its_own_code_uses_it(
    hub_model: Path, tmp_path: Path, width: int
) -> None:
    """A video whose short side needs no resizing gives the same features on both sides."""
    from transformers import AutoModel, AutoVideoProcessor

    pictures = [videos.numbered(i, 32, width) for i in range(30)]
    path = videos.write_video(tmp_path / "a.avi", pictures, "mjpeg")
    encoder = load_encoder(hub_model)
    assert (encoder.network, encoder.crop_size, encoder.num_frames) == ("encoder", 28, 4)
    plan = ClipList(inspect_video(path), encoder.sampling).plan(0)
    with av.open(str(path)) as container:
        frames = [RgbConverter()(frame, None) for frame in container.decode(video=0)]
    chosen = torch.from_numpy(np.stack([frames[i] for i in plan.frames])).permute(0, 3, 1, 2)
    assert chosen.shape == (4, 3, 32, width)

    pixels = AutoVideoProcessor.from_pretrained(hub_model)(chosen, return_tensors="pt")
    model = AutoModel.from_pretrained(hub_model).eval()
    with torch.no_grad():
        theirs = model(**pixels, skip_predictor=True).last_hidden_state
    ours = encoder(path)
    assert ours.grid == (2, 4, 4)
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours.tokens, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("generation", "model"), [pytest.param(1, FIRST, marks=pytest.mark.slow), (2, SECOND)]
)
def test_every_form_of_a_run_gives_the_same_features(
    generation: int, model: dict, tmp_path: Path
) -> None:
    rate = {"frame_step": 4} if generation == 1 else {"fps": 4.0}
    run = write_run(tmp_path / "run", model, data=rate)
    own = load_encoder(run)
    video = random_clips(2, 8, 24, 24)
    expected = own(video)
    for form in ("transformers", "published", "safetensors"):
        folder = tmp_path / form
        export_run(run, form, folder)
        unknown: dict = {}
        if form == "published":  # it does not say these
            unknown = {"heads": 2, "generation": generation}
            unknown |= {"crop_size": 24, "num_frames": 8} if generation == 2 else {}
        found = load_encoder(folder, **unknown)
        assert found.checksum == own.checksum
        assert (found.sampling, found.grid) == (own.sampling, own.grid)
        assert torch.equal(found(video).tokens, expected.tokens)
    import_weights(tmp_path / "transformers", tmp_path / "imported")
    found = load_encoder(tmp_path / "imported")
    assert found.checksum == own.checksum and found.sampling == own.sampling
    assert torch.equal(found(video).tokens, expected.tokens)
