"""Good configs: what loads, what overrides do, what the shipped recipes say."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

import vjepa_fast.config.masks
import vjepa_fast.config.schema
from tests.helpers.paths import GOLDEN, REPOSITORY
from vjepa_fast.config import load_config, parse_config
from vjepa_fast.config.fields import Section
from vjepa_fast.errors import UserError
from vjepa_fast.training.batches import split_batch
from vjepa_fast.training.schedules import make_schedules

CONFIGS = REPOSITORY / "configs"
SHIPPED = ["tiny", "vitl16", "vith16", "vith16_384"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_load_and_survive_a_round_trip(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.json")
    written = json.dumps(config.model_dump(mode="json"))
    assert parse_config(json.loads(written)) == config


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_say_everything(name: str) -> None:
    """No number of a recipe hides in a default (an encoder's preset stands for its shape)."""

    def missing(model: BaseModel, given: object, prefix: str) -> list[str]:
        if isinstance(given, str):
            return []
        lost = [f"{prefix}{key}" for key, value in model if value is not None and key not in given]
        for key, value in model:
            values = value if isinstance(value, list) else [value]
            givens = given.get(key) if isinstance(value, list) else [given.get(key)]
            for item, item_given in zip(values, givens, strict=True):
                if isinstance(item, BaseModel):
                    lost += missing(item, item_given or {}, f"{prefix}{key}.")
        return lost

    path = CONFIGS / f"{name}.json"
    assert missing(load_config(path), json.loads(path.read_text()), "") == []


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
    assert (predictor.width, predictor.depth, config.predictor_heads) == (384, 12, 16)
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


def test_published_batches_per_gpu_are_the_truncation_groups() -> None:
    """Cut to the smallest count per GPU: 128 GPUs with 24 clips each, 240 with 10 at 384 px."""
    for name, group, world in (("vitl16", 24, 128), ("vith16", 24, 128), ("vith16_384", 10, 240)):
        config = load_config(CONFIGS / f"{name}.json")
        assert config.masks.truncate_group == config.optim.micro_batch == group
        assert split_batch(config, world) == (group, 1)


def test_schedules_of_the_papers_recipe() -> None:
    """The recipe as shipped gives the published trainer's numbers (first, peak and last step)."""
    schedules = make_schedules(load_config(CONFIGS / "vith16.json"))
    rows = json.loads((GOLDEN / "schedules.json").read_text())["vith16"]
    for step, lr, weight_decay, momentum in rows["rows"]:
        found = (schedules.lr(step), schedules.weight_decay(step), schedules.momentum(step))
        assert found == pytest.approx((lr, weight_decay, momentum), rel=1e-9, abs=0)


def test_tiny_runs_short_and_on_two_processes() -> None:
    """The commands of the README: 20 steps, with one process and with two."""
    config = load_config(CONFIGS / "tiny.json", ["optim.steps=20"])
    assert (split_batch(config, 1), split_batch(config, 2)) == ((32, 1), (16, 1))


def test_defaults_are_the_papers() -> None:
    """A config needs little: the rest is the paper's recipe."""
    config = parse_config(
        {
            "output": "run",
            "data": {"manifests": ["videos.csv"]},
            "model": {"encoder": "vit_large"},
            "masks": {"specs": [{"num_blocks": 8, "spatial_scale": [0.15, 0.15]}]},
            "optim": {
                "steps": 90_000,
                "global_batch": 3072,
                "micro_batch": 24,
                "lr": 6.25e-4,
                "warmup_steps": 12_000,
            },
        }
    )
    paper = load_config(CONFIGS / "vitl16.json")
    assert config.optim == paper.optim
    assert config.model == paper.model
    assert config.masks.specs[0] == paper.masks.specs[0]
    assert config.zero == paper.zero


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


def test_overrides_reach_sections_that_the_file_leaves_out(tmp_path: Path) -> None:
    data = json.loads((CONFIGS / "tiny.json").read_text())
    del data["zero"]
    (tmp_path / "short.json").write_text(json.dumps(data))
    assert load_config(tmp_path / "short.json", ["zero.stage=0"]).zero.stage == 0


@pytest.mark.parametrize("world", [1, 2, 4, 8, 64, 128, 256, 3072])
def test_worlds_that_fit(world: int) -> None:
    """A share of less than a micro-batch goes at once: 12 clips on each of 256 processes."""
    config = load_config(CONFIGS / "vith16.json")
    micro, accumulated = split_batch(config, world)
    assert micro == min(24, 3072 // world)
    assert micro * accumulated * world == 3072


@pytest.mark.parametrize(
    ("batch", "world", "sentence"),
    [
        (
            3072,
            96,
            "optim.micro_batch: 24 clips on each of 96 processes do not divide optim.global_batch "
            "3072; set optim.micro_batch to e.g. 8",
        ),
        (
            3072,
            192,
            "optim.micro_batch: 24 clips on each of 192 processes do not divide "
            "optim.global_batch 3072; set optim.micro_batch to e.g. 8",
        ),
        (
            3072,
            7,
            "optim.global_batch: 3072 clips do not divide among 7 processes; use a number of "
            "processes that divides them, e.g. 4",
        ),
        (
            3360,
            11,
            "optim.global_batch: 3360 clips do not divide among 11 processes; use a number of "
            "processes that divides them, e.g. 10",
        ),
    ],
)
def test_worlds_that_do_not_fit(batch: int, world: int, sentence: str) -> None:
    config = load_config(CONFIGS / "vith16.json", [f"optim.global_batch={batch}"])
    with pytest.raises(UserError) as error:
        split_batch(config, world)
    assert str(error.value) == sentence


def test_the_number_of_processes_suggested_works() -> None:
    config = load_config(CONFIGS / "tiny.json")
    for world, expected in ((3, 2), (6, 4), (12, 8), (64, 32)):
        with pytest.raises(UserError, match=f"e.g. {expected}$"):
            split_batch(config, world)
        split_batch(config, expected)


def test_every_field_is_documented() -> None:
    values = [*vars(vjepa_fast.config.schema).values(), *vars(vjepa_fast.config.masks).values()]
    models = {m for m in values if isinstance(m, type) and issubclass(m, Section)} - {Section}
    assert len(models) >= 14
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
