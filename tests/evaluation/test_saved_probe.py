"""A trained probe is a file that gives the same logits, or a sentence that says what it is."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from tests.evaluation.test_four_blocks import make
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.saved_probe import load_probe, probe_file_name, save_probe
from vjepa_fast.weights import weights_checksum

HEADER = {"label": "digit", "classes": [0, 7, 9_999_999_999], "encoder": {"crc32": 5}}


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_saved_probe_gives_the_same_logits(tmp_path: Path, blocks: int) -> None:
    file, tokens = tmp_path / "probe_digit.safetensors", torch.randn(2, 5, 24)
    probe = make(24, 3, blocks, classes=3, norm_eps=1e-3)
    save_probe(file, probe, HEADER)
    loaded, header = load_probe(file)
    own = {"kind": "attentive probe", "format": 1, "blocks": blocks, "heads": 3}
    assert header == HEADER | own | {"width": 24, "norm_eps": 1e-3}
    assert torch.equal(loaded(tokens), probe(tokens)) and not loaded.training
    with safe_open(file, "pt") as tensors:
        assert set(tensors.keys()) == probe.state_dict().keys()
    save_probe(file, make(24, 3, 1, classes=3, seed=1), HEADER)  # in place of the other
    assert load_probe(file)[1]["blocks"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_each_logit_has_a_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^classes: found 3, expected 5, one for each logit"):
        save_probe(tmp_path / "probe", make(24, 3, 1), HEADER)
    assert not list(tmp_path.iterdir())


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_probe(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: found ") and "\n" not in sentence
    assert sentence.endswith(
        (
            ", expected a file that vjepa-fast probe wrote; run it again",
            "; read it with the version of vjepa_fast that wrote it",
        )
    )
    return sentence.removeprefix(f"{path}: found ")


def damaged(content: bytes, kind: str) -> bytes:
    """A probe's file with one mistake."""
    if kind == "truncated":
        return content[:-100]
    if kind == "truncated in its header":
        return content[:100]
    if kind == "a bit":
        return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    if kind == "a number of the header":
        assert content.count(b'\\"heads\\": 3') == 1
        return content.replace(b'\\"heads\\": 3', b'\\"heads\\": 2')
    return b""


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("truncated", "no readable probe (Error while deserializing header: "),
        ("truncated in its header", "no readable probe (Error while deserializing header: "),
        ("nothing", "no readable probe (Error while deserializing header: "),
        ("a bit", "other bytes than were written, "),
        ("a number of the header", "other bytes than were written, "),
    ],
)
def test_damaged_files(tmp_path: Path, kind: str, sentence: str) -> None:
    file = tmp_path / "probe.safetensors"
    save_probe(file, make(24, 3, 4, classes=3), HEADER)
    file.write_bytes(damaged(file.read_bytes(), kind))
    assert refused(file).startswith(sentence)


@pytest.mark.parametrize(
    "metadata",
    [None, {"format": "pt"}, {"vjepa_fast": '{"kind": "encoder"}'}, {"vjepa_fast": "[1]"}],
    ids=str,
)
def test_other_weights(tmp_path: Path, metadata: dict | None) -> None:
    save_file({"linear.weight": torch.ones(2, 3)}, tmp_path / "w.safetensors", metadata)
    assert refused(tmp_path / "w.safetensors").startswith("weights that are no attentive probe, ")


def test_a_header_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(save({"a": torch.ones(2)}, {"vjepa_fast": "{"}))
    assert refused(tmp_path / "w.safetensors").startswith("no readable probe (Expecting property")


def test_a_later_format(tmp_path: Path) -> None:
    header = json.dumps({"kind": "attentive probe", "format": 2})
    (tmp_path / "w.safetensors").write_bytes(save({"a": torch.ones(2)}, {"vjepa_fast": header}))
    assert refused(tmp_path / "w.safetensors").startswith("probe format 2, expected 1; ")


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").startswith("no readable probe (No such file")
    assert refused(tmp_path).startswith("no readable probe (")
    (tmp_path / "probe.json").write_text("{}")
    assert refused(tmp_path / "probe.json").startswith("no readable probe (")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond this size fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_probe_that_cannot_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    file = tmp_path / "probe.safetensors"
    save_probe(file, make(24, 3, 1, classes=3), HEADER)
    before = file.read_bytes()
    with largest_file(10_000), pytest.raises(UserError) as caught:
        save_probe(file, make(24, 3, 4, classes=3), HEADER)
    assert str(caught.value) == (
        f"{file}: found that the probe cannot be written (File too large), expected room for 0.1 "
        "MB in a folder of yours; make room and probe again"
    )
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        save_probe(tmp_path / "none" / "probe", make(24, 3, 1, classes=3), HEADER)


def test_names_of_files() -> None:
    assert probe_file_name("digit") == "probe_digit.safetensors"
    labels = [
        "a b",
        "a_b",
        "a/b",
        "../b",
        "x" * 300,
        "x" * 301,
        "Größe",
        "𠀀" * 300,
        "\udcff",
        "a\nb",
        "",
    ]
    names = [probe_file_name(label) for label in labels]
    assert len(set(names)) == len(names)
    for name in names:
        assert "/" not in name and len(name.encode()) < 256 and name.startswith("probe_")


def test_the_checksum_is_of_names_and_values() -> None:
    a, b = torch.randn(3, 2), torch.randn(4)
    found = weights_checksum({"a": a, "b": b})
    assert found == weights_checksum({"b": b.clone(), "a": a.T.contiguous().T})
    for other in ({"a": a}, {"a": a, "c": b}, {"a": a + 1e-3, "b": b}):
        assert weights_checksum(other) != found
