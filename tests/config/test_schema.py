"""Valid configs: loading, overrides, and the values of the shipped recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

import vjepa_fast.config.masks
import vjepa_fast.config.networks
import vjepa_fast.config.optim
import vjepa_fast.config.schema
from tests.helpers.paths import REPOSITORY
from vjepa_fast.config import load_config, parse_config
from vjepa_fast.config.fields import Section
from vjepa_fast.training.recipe import settings_of
from vjepa_fast.training.schedules import make_schedules

CONFIGS = REPOSITORY / "configs"
SECOND = ["v2_vitl16", "v2_vith16", "v2_vitg16"]
COOLDOWN = ["v2_cooldown_vitl16", "v2_cooldown_vitg16_384"]
ADAPT = ["adapt_vitl16", "adapt2_vitl16"]
SHIPPED = ["tiny", "vitl16", "vith16", "vith16_384", "v2_tiny", *SECOND, *COOLDOWN, *ADAPT]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_load_and_survive_a_round_trip(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.json")
    written = json.dumps(config.model_dump(mode="json"))
    assert parse_config(json.loads(written)) == config


@pytest.mark.parametrize(
    ("name", "width", "depth", "crop", "batch"),
    [
        ("vitl16", 1024, 24, 224, 3072),
        ("vith16", 1280, 32, 224, 3072),
        ("vith16_384", 1280, 32, 384, 2400),
    ],
)
def test_paper_recipes(name: str, width: int, depth: int, crop: int, batch: int) -> None:
    config = load_config(CONFIGS / f"{name}.json")
    encoder, predictor = config.model.encoder, config.model.predictor
    assert (encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio) == (width, depth, 16, 4)
    assert (predictor.width, predictor.depth, config.model.predictor_heads) == (384, 12, 16)
    assert (config.model.patch_size, config.model.tubelet_size) == (16, 2)
    assert config.model.uniform_power
    assert not config.model.depth_scaled_init
    data = config.data
    assert (data.num_frames, data.frame_step, data.crop_size) == (16, 4, crop)
    assert (data.area, data.aspect_ratio, data.flip) == ((0.3, 1.0), (0.75, 1.35), True)
    assert config.grid == (8, crop // 16, crop // 16)
    short, long = config.masks.specs
    assert (short.num_blocks, short.spatial_scale) == (8, (0.15, 0.15))
    assert (long.num_blocks, long.spatial_scale) == (2, (0.7, 0.7))
    for spec in (short, long):
        assert (spec.aspect_ratio, spec.temporal_scale) == ((0.75, 1.5), (1.0, 1.0))
        assert (spec.max_temporal_keep, spec.max_keep) == (1.0, None)
    optim = config.optim
    assert (optim.steps, optim.global_batch, optim.warmup_steps) == (90_000, batch, 12_000)
    assert (optim.start_lr, optim.lr, optim.final_lr) == (2e-4, 6.25e-4, 1e-6)
    assert (optim.weight_decay, optim.final_weight_decay) == (0.04, 0.4)
    assert (optim.betas, optim.eps, optim.clip_grad) == ((0.9, 0.999), 1e-8, 10.0)
    assert (config.teacher.momentum, optim.schedule_stretch) == ((0.998, 1.0), 1.25)
    assert optim.loss_exponent == 1.0
    assert config.precision == "bf16"


ENCODERS = {"vitl16": (1024, 24, 16, 4096), "vith16": (1280, 32, 16, 5120)}
ENCODERS |= {"vitg16": (1408, 40, 22, 6144)}
SOURCES = ["ssv2", "k710", "howto100m", "yt1b", "imagenet"]


@pytest.mark.parametrize("name", [*SECOND, *COOLDOWN])
def test_recipes_of_the_second_generation(name: str) -> None:
    """V-JEPA 2 (arXiv 2506.09985), section 2.4, tables 1, 9 and 12, and its released code."""
    config = load_config(CONFIGS / f"{name}.json")
    model, encoder, data, optim = config.model, config.model.encoder, config.data, config.optim
    shape = encoder.width, encoder.depth, encoder.heads, round(encoder.width * encoder.mlp_ratio)
    assert shape == ENCODERS[name.removeprefix("v2_").removeprefix("cooldown_")[:6]]
    assert (model.predictor.width, model.predictor.depth, model.predictor_heads) == (384, 12, 12)
    assert (model.patch_size, model.tubelet_size) == (16, 2)
    assert (model.positions, model.mask_tokens) == ("rope_tiled", "shared")
    assert model.depth_scaled_init
    assert config.masks.specs == load_config(CONFIGS / "vitl16.json").masks.specs
    assert (data.fps, data.area, data.aspect_ratio) == (4, (0.3, 1.0), (0.75, 1.35))
    assert data.flip
    assert [Path(m.path).stem for m in data.manifests] == SOURCES
    assert data.weights == [0.056, 0.188, 0.318, 0.188, 0.25]
    assert (optim.global_batch, optim.betas, optim.eps) == (3072, (0.9, 0.999), 1e-8)
    assert (optim.clip_grad, optim.loss_exponent) == (None, 1.0)
    schedules, last = make_schedules(config), optim.steps - 1
    for step in (0, last // 2, last):
        assert (schedules.weight_decay(step), schedules.momentum(step)) == (0.04, 0.99925)
    rates = [schedules.lr(step) for step in (0, last // 2, last)]
    if name in SECOND:
        assert (data.lengths, data.crop_size, config.grid) == ((16,), 256, (8, 16, 16))
        assert (optim.steps, optim.warmup_steps) == (240_000, 12_000)
        assert (optim.micro_batch, config.masks.truncate_group) == (24, 24)
        assert rates == [pytest.approx(1e-4 + 4.25e-4 / 12_000), 5.25e-4, 5.25e-4]
        assert schedules.lr(11_999) == 5.25e-4 > schedules.lr(11_998)
    else:
        size, clips = (384, 6) if name.endswith("384") else (256, 12)
        assert (data.lengths, data.crop_size) == ((16, 64), size)
        assert data.manifests[4].num_frames == 16  # an image is a clip of 16 frames (section 2.3)
        assert (optim.steps, optim.warmup_steps) == (12_000, 0)
        assert (optim.micro_batch, config.masks.truncate_group) == (clips, clips)
        middle = (5.25e-4 + 1e-6) / 2
        assert rates[0] == pytest.approx(5.25e-4 - 5.24e-4 / 12_000)
        assert rates[1:] == [pytest.approx(middle, rel=1e-12), 1e-6]
        start = load_config(CONFIGS / f"{name.replace('cooldown_', '').removesuffix('_384')}.json")
        assert config.init.checkpoint == start.output
        assert config.model == start.model


def test_defaults_are_the_papers() -> None:
    """A config needs three keys: the rest is the paper's recipe."""
    config = parse_config(
        {
            "output": "run",
            "data": {"manifests": ["videos.csv"]},
            "model": {"encoder": "vit_large"},
        }
    )
    paper = load_config(CONFIGS / "vitl16.json")
    assert config.optim == paper.optim
    assert config.teacher == paper.teacher
    assert config.model == paper.model
    assert config.masks == paper.masks
    assert config.zero == paper.zero


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_say_only_what_is_not_the_default(name: str) -> None:
    def repeated(model: BaseModel, given: dict, prefix: str = "") -> list[str]:
        found = []
        for key, value in given.items():
            field = type(model).model_fields[key]
            if isinstance(value, dict):
                found += repeated(getattr(model, key), value, f"{prefix}{key}.")
            elif getattr(model, key) == field.get_default():
                found.append(f"{prefix}{key}")
        return found

    path = CONFIGS / f"{name}.json"
    given = json.loads(path.read_text())
    assert repeated(load_config(path), given) == []
    assert "aspect_ratio" not in json.dumps(given.get("masks", {}))


def test_the_papers_two_models_differ_in_the_encoder_alone() -> None:
    large, huge = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in SHIPPED[1:3])
    assert large["model"].pop("encoder") == "vit_large"
    assert huge["model"].pop("encoder") == "vit_huge"
    assert (large.pop("output"), huge.pop("output")) == ("runs/vitl16", "runs/vith16")
    assert large == huge


def test_a_frozen_teacher_takes_no_notice_of_the_momentum() -> None:
    """A stored config names every key, so a momentum beside "frozen" must be accepted."""
    keys = ["teacher.mode=frozen", "teacher.checkpoint=runs/a", "teacher.momentum=[0.9, 1.0]"]
    config = load_config(CONFIGS / "tiny.json", keys)
    assert parse_config(config.model_dump(mode="json")) == config


def test_auto_precision() -> None:
    config = load_config(CONFIGS / "tiny.json", ["precision=auto"])
    assert config.precision_on("cuda") == "bf16"
    assert config.precision_on("cpu") == "fp32"
    config = load_config(CONFIGS / "tiny.json", ["precision=fp32"])
    assert config.precision_on("cuda") == "fp32"


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("optim.lr=1e-4", lambda c: c.optim.lr, 1e-4),
        ("optim.lr=1", lambda c: c.optim.lr, 1.0),
        ("optim.clip_grad=null", lambda c: c.optim.clip_grad, None),
        ("output=runs/two words", lambda c: c.output, "runs/two words"),
        ('output="7"', lambda c: c.output, "7"),
        ("output=a=b", lambda c: c.output, "a=b"),
        ("data.flip=false", lambda c: c.data.flip, False),
        ("data.area=[0.5, 1]", lambda c: c.data.area, (0.5, 1.0)),
        ("data.area[0]=0.5", lambda c: c.data.area, (0.5, 1.0)),
        ("masks.specs[1].max_keep=9", lambda c: c.masks.specs[1].max_keep, 9),
        ("masks.specs.1.max_keep=9", lambda c: c.masks.specs[1].max_keep, 9),
        ("model.encoder=vit_small", lambda c: c.model.encoder.width, 384),
        ('model.encoder={"width":96,"depth":1,"heads":3}', lambda c: c.model.encoder.width, 96),
        ("zero.stage=2", lambda c: c.zero.stage, 2),
    ],
)
def test_overrides(override: str, read, expected: object) -> None:
    found = read(load_config(CONFIGS / "vith16.json", [override]))
    assert found == expected
    assert type(found) is type(expected)


def test_overrides_apply_in_order_and_together() -> None:
    overrides = ["optim.lr=1e-4", "optim.lr=2e-4", "optim.global_batch=96", "optim.micro_batch=48"]
    config = load_config(CONFIGS / "vith16.json", overrides)
    assert (config.optim.lr, config.optim.micro_batch) == (2e-4, 48)


def test_overrides_reach_sections_and_lists_that_the_file_leaves_out() -> None:
    given = json.loads((CONFIGS / "tiny.json").read_text())
    assert "zero" not in given
    assert "flip" not in given["data"]
    overrides = ["zero.stage=0", "masks.specs[1].aspect_ratio[0]=0.5", "optim.betas[1]=0.95"]
    config = load_config(CONFIGS / "tiny.json", [*overrides[::2], "data.flip=false"])
    assert (config.zero.stage, config.optim.betas, config.data.flip) == (0, (0.9, 0.95), False)
    specs = load_config(CONFIGS / "vith16.json", overrides).masks.specs
    assert (specs[1].num_blocks, specs[1].aspect_ratio) == (2, (0.5, 1.5))


def test_a_manifest_is_stored_as_it_was_before_it_could_have_clips_of_its_own() -> None:
    """As its path, if it has none: so stored configs stay what they are."""
    data = {"manifests": ["a.csv", {"path": "b.csv"}, {"path": "c.csv", "frame_step": 2}]}
    config = load_config(CONFIGS / "tiny.json", [f"data={json.dumps(data)}"])
    stored = json.loads(config.model_dump_json())["data"]["manifests"]
    own = {"path": "c.csv", "num_frames": None, "frame_step": 2, "fps": None}
    assert stored == ["a.csv", "b.csv", own]
    assert config.data.lengths == (16,)
    assert [m.own for m in config.data.manifests] == [{}, {}, {"frame_step": 2, "fps": None}]


def test_two_ways_to_write_the_same_clips_are_stored_alike() -> None:
    def stored(data: dict) -> list:
        config = load_config(CONFIGS / "tiny.json", [f"data={json.dumps(data)}"])
        found = settings_of(config)
        assert found == settings_of(parse_config(found))
        return found["data"]["manifests"]

    def own(**clips: float) -> dict:
        return {"path": "b.csv", **dict.fromkeys(("num_frames", "frame_step", "fps")), **clips}

    by_step = {"num_frames": 8, "frame_step": 2}
    for given, expected in (
        ({"num_frames": 8}, "b.csv"),
        ({"num_frames": 8, "frame_step": 2}, "b.csv"),
        ({"num_frames": 4, "frame_step": 2}, own(num_frames=4)),
        ({"num_frames": 8, "fps": 5}, own(fps=5)),
    ):
        assert stored(by_step | {"manifests": ["a.csv", own(**given)]}) == ["a.csv", expected]
    for given, expected in (
        ({"fps": 5}, "b.csv"),
        ({"frame_step": 2}, own(frame_step=2)),  # not by time: other clips
        ({"fps": 6}, own(fps=6)),
    ):
        data = by_step | {"fps": 5, "manifests": ["a.csv", own(**given)]}
        assert stored(data) == ["a.csv", expected]


def test_every_field_is_documented() -> None:
    sections = (
        vjepa_fast.config.schema,
        vjepa_fast.config.networks,
        vjepa_fast.config.optim,
        vjepa_fast.config.masks,
    )
    values = [value for module in sections for value in vars(module).values()]
    models = {m for m in values if isinstance(m, type) and issubclass(m, Section)} - {Section}
    assert len(models) >= 14
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
