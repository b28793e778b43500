"""Bad files and bad overrides: each gives one sentence, and the nearest key where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from vjepa_fast.config import load_config, parse_config, translate_stored
from vjepa_fast.config.messages import RENAMED, RENAMED_VALUES
from vjepa_fast.errors import UserError

CONFIGS = REPOSITORY / "configs"
TOP = (
    "one of seed, output, init, objective, data, model, masks, optim, teacher, precision, zero, "
    "compile, activation_checkpointing, log, checkpoint"
)
GIVEN_TWICE = "found twice in the same object, expected once; remove one"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (
            '{"seed": 0,\n "optim": {"lr" 1e-4}}',
            ", line 2, column 17: found bad JSON (expecting ':' delimiter), expected plain JSON",
        ),
        ('{"seed": 0', ", line 1, column 11: found bad JSON (expecting ',' delimiter), expected "),
        ("", ", line 1, column 1: found bad JSON (expecting value), expected plain JSON"),
        ("{'seed': 0}", ", line 1, column 2: found bad JSON (expecting property name enclosed in "),
        ("[1, 2]", ": found [1, 2], expected one JSON object; write "),
        ("null", ": found null, expected one JSON object; write "),
        (b"\xff\xfe\x00", ": found a file that is not JSON text ('utf-8' codec can't decode "),
        ("[" * 100_000, ": found a file that is not JSON text ("),
        ('{"seed": ' + "1" * 5000 + "}", ": found a file that is not JSON text ("),
    ],
    ids=[
        "colon",
        "unfinished",
        "empty",
        "quotes",
        "list",
        "null",
        "binary",
        "nested",
        "long number",
    ],
)
def test_bad_file(text: str | bytes, rest: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}{rest}")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "none.json")
    assert str(error.value).startswith(
        f"{tmp_path / 'none.json'}: found no such file, expected a JSON config; check the path"
    )
    with pytest.raises(UserError) as error:
        load_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: found an unreadable file (Is a directory), ")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"seed": 0, "seed": 0}', "seed"),
        ('{"optim": {"lr": 1, "eps": 1, "lr": 1}}', "lr"),
        ('{"masks": {"specs": [{}, {"max_keep": 1, "max_keep": 2}]}}', "max_keep"),
        ('{"data": {"flip": {}, "flip": {}}, "seed": 3}', "flip"),
    ],
)
def test_key_given_twice(text: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "bad.json")
    assert str(error.value) == f"{key}: {GIVEN_TWICE}"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lr", '--set: found "optim.lr", expected key=value; write e.g. --set optim.lr=1e-4'),
        ("=3", '--set: found "=3", expected key=value; write e.g. --set optim.lr=1e-4'),
        (
            "lr=3",
            f"lr: found an unknown key, expected {TOP}; did you mean optim.lr?",
        ),
        (
            "optim.lr.x=3",
            "optim.lr.x: found an unknown key, expected a key of the config; did you mean "
            "optim.lr?",
        ),
        (
            "modle.patch_size=3",
            "modle.patch_size: found an unknown key, expected a key of the config; did you mean "
            "model.patch_size?",
        ),
        (
            "data.crop=3",
            "data.crop: found an unknown key, expected one of manifests, weights, num_frames, "
            "frame_step, fps, clips_per_video, short_videos, crop_size, area, aspect_ratio, flip, "
            "backend, num_workers, prefetch, max_bad_fraction; did you mean data.crop_size?",
        ),
        (
            "masks.specs[2].max_keep=3",
            "masks.specs[2]: found no such item, expected an index into the list masks.specs; set "
            "masks.specs as a whole",
        ),
        (
            "optim.lr[0]=3",
            "optim.lr[0]: found no such item, expected an index into the list optim.lr; set "
            "optim.lr as a whole",
        ),
        (
            "model.encoder.depth=3",
            'model.encoder: found "vit_huge", expected an object to set depth in; set '
            "model.encoder as a whole",
        ),
        ("optim.lr=fast", 'optim.lr: found "fast", expected a number; write e.g. 0.000625'),
        ("optim.lr=", 'optim.lr: found "", expected a number; write e.g. 0.000625'),
        ("optim.lr=NaN", "optim.lr: found NaN, expected a finite number; write e.g. 0.000625"),
        (
            "optim.lr=1e999",
            "optim.lr: found Infinity, expected a finite number; write e.g. 0.000625",
        ),
        ("optim.lr={}", "optim.lr: found {}, expected a number; write e.g. 0.000625"),
        ('zero={"stage":1,"stage":2}', f"stage: {GIVEN_TWICE}"),
    ],
)
def test_bad_override(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(CONFIGS / "vith16.json", [override])
    assert str(error.value) == sentence


def test_data_that_is_no_object() -> None:
    with pytest.raises(UserError) as error:
        parse_config([1])
    assert str(error.value) == (
        'the config: found [1], expected an object in braces; write {"seed": …}'
    )


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_named(old: str, new: str, tmp_path: Path) -> None:
    section, key = old.split(".")
    data = json.loads((CONFIGS / "tiny.json").read_text())
    data.setdefault(section, {})[key] = 1
    (tmp_path / "old.json").write_text(json.dumps(data))
    sentence = f"{old}: found a key of an older version, expected {new}; rename it"
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "old.json")
    assert str(error.value) == sentence
    with pytest.raises(UserError) as error:
        load_config(CONFIGS / "tiny.json", [f"{old}=1"])
    assert str(error.value) == sentence


@pytest.mark.parametrize(("old", "new"), RENAMED_VALUES["data.short_videos"].items())
def test_a_renamed_value_is_named(old: str, new: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(CONFIGS / "tiny.json", [f"data.short_videos={old}"])
    assert str(error.value) == (
        f"data.short_videos: found \"{old}\", expected 'repeat_last', 'wrap' or 'drop'; write "
        f'"{new}", its name in this version'
    )


def test_a_stored_config_of_an_older_run_is_translated() -> None:
    config = load_config(
        CONFIGS / "tiny.json",
        [
            "teacher.momentum=[0.5, 0.75]",
            "optim.max_nonfinite_steps=3",
            "data.num_workers=5",
            "data.max_bad_fraction=0.25",
            "data.short_videos=wrap",
            "log.collapse_every=7",
        ],
    )
    stored = json.loads(config.model_dump_json())
    assert translate_stored(stored) == stored
    for old, new in RENAMED.items():
        section, key = new.split(".")
        value = stored[section].pop(key)
        section, key = old.split(".")
        stored[section][key] = value
    stored["data"]["short_videos"] = "loop"
    before = json.dumps(stored)
    assert parse_config(translate_stored(stored)) == config
    assert json.dumps(stored) == before
    older = {key: value for key, value in stored.items() if key not in ("teacher", "log")}
    assert parse_config(translate_stored(older)).teacher == config.teacher
    assert translate_stored({}) == {}


def test_paths_are_expanded_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file and in --set; what exists as it is written stays so."""
    monkeypatch.setenv("HOME", "/home_of_tests")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$DATA.csv").touch()
    overrides = [
        "output=~/run",
        'data.manifests=["~/a.csv", "$DATA/b.csv", "${DATA}x", "$DATA.csv", "c~.csv"]',
        "teacher.mode=frozen",
        "teacher.checkpoint=$DATA/run",
    ]
    config = load_config(CONFIGS / "tiny.json", overrides)
    assert config.output == "/home_of_tests/run"
    expected = ["/home_of_tests/a.csv", "/data/b.csv", "/datax", "$DATA.csv", "c~.csv"]
    assert [manifest.path for manifest in config.data.manifests] == expected
    assert config.teacher.checkpoint == "/data/run"
    with pytest.raises(UserError) as error:
        load_config(CONFIGS / "tiny.json", ["output=${NO_WHERE}/run"])
    assert str(error.value) == (
        "output: found ${NO_WHERE}/run, whose variable ${NO_WHERE} is not set, expected a path; "
        "set (export) it or write the path out"
    )
