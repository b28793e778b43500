"""The choice of Triton or reference for an op, its log line, and the import time of the kernels."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vjepa_fast
from vjepa_fast.kernels import _dispatch as dispatch
from vjepa_fast.kernels import gather_tokens

PACKAGE = Path(vjepa_fast.__file__).parent

CUDA, CPU = (SimpleNamespace(device=torch.device(name)) for name in ("cuda", "cpu"))


@pytest.fixture(autouse=True)
def forget():
    dispatch._choose.cache_clear()
    yield
    dispatch._choose.cache_clear()


@pytest.mark.parametrize(
    ("setting", "tensor", "interpreted", "triton"),
    [
        (None, CUDA, False, True),
        (None, CPU, False, False),
        (None, CPU, True, False),
        ("auto", CUDA, False, True),
        ("auto", CPU, False, False),
        ("reference", CUDA, False, False),
        ("reference", CPU, True, False),
        ("triton", CUDA, False, True),
        ("triton", CPU, True, True),
    ],
)
def test_choice(monkeypatch, setting, tensor, interpreted, triton):
    monkeypatch.delenv("VJEPA_FAST_KERNELS", raising=False)
    if setting is not None:
        monkeypatch.setenv("VJEPA_FAST_KERNELS", setting)
    monkeypatch.setattr(dispatch, "INTERPRETED", interpreted)
    assert dispatch.use_triton("some_op", tensor) is triton


def test_triton_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    monkeypatch.setenv("VJEPA_FAST_KERNELS", "triton")
    sentence = r"^VJEPA_FAST_KERNELS: found 'triton' and a tensor on cpu, expected one on cuda; .*"
    with pytest.raises(ValueError, match=sentence + "TRITON_INTERPRET=1"):
        gather_tokens(torch.zeros(1, 2, 3), torch.zeros(1, 1, dtype=torch.int64))


@pytest.mark.parametrize("setting", ["", "Triton", "cuda", "1"])
def test_another_value_is_rejected(monkeypatch, setting):
    monkeypatch.setenv("VJEPA_FAST_KERNELS", setting)
    sentence = rf"^VJEPA_FAST_KERNELS: found '{setting}', expected 'auto', 'triton' or 'reference';"
    with pytest.raises(ValueError, match=sentence):
        dispatch.use_triton("some_op", CPU)


def test_the_choice_is_logged_once_by_name(monkeypatch, caplog):
    monkeypatch.delenv("VJEPA_FAST_KERNELS", raising=False)
    caplog.set_level(logging.INFO, logger="vjepa_fast.kernels")
    for _ in range(3):
        dispatch.use_triton("some_op", CPU)
        dispatch.use_triton("some_op", CUDA)
        dispatch.use_triton("another_op", CPU)
    assert [record.getMessage() for record in caplog.records] == [
        "some_op on cpu: PyTorch reference",
        "some_op on cuda: Triton",
        "another_op on cpu: PyTorch reference",
    ]
    assert {record.name for record in caplog.records} == {"vjepa_fast.kernels"}


def test_a_change_of_the_variable_is_noticed(monkeypatch):
    for setting, triton in (("reference", False), ("auto", True), ("reference", False)):
        monkeypatch.setenv("VJEPA_FAST_KERNELS", setting)
        assert dispatch.use_triton("some_op", CUDA) is triton


@pytest.mark.parametrize(
    ("device", "kernels", "check", "checked"),
    [
        ("cpu", "auto", "0", True),
        ("cpu", "reference", "0", True),
        ("cpu", "triton", "0", False),  # the interpreter stands in for a GPU
        ("cpu", "triton", "1", True),
        ("cuda", "auto", "0", False),
        ("cuda", "auto", "1", True),
    ],
)
def test_where_index_values_are_checked(monkeypatch, device, kernels, check, checked):
    monkeypatch.setenv("VJEPA_FAST_KERNELS", kernels)
    monkeypatch.setenv("VJEPA_FAST_CHECK_INDEX", check)
    assert dispatch.checks_index_values({"cpu": CPU, "cuda": CUDA}[device]) is checked


IMPORT = """
import sys
import torch, triton, triton.language
before = set(sys.modules)
import vjepa_fast.kernels
print(vjepa_fast.__file__, *(set(sys.modules) - before))
"""


def test_importing_the_kernels_loads_nothing_beyond_torch_and_triton(tmp_path):
    """So it costs little: the modules of the folder, and parts of torch, triton and Python."""
    copy = shutil.copytree(PACKAGE / "kernels", tmp_path / "vjepa_fast" / "kernels")
    shutil.copy(PACKAGE / "__init__.py", copy.parent)
    command = [sys.executable, "-c", IMPORT]
    file, *modules = subprocess.check_output(command, cwd=tmp_path, text=True).split()
    assert file.startswith(str(tmp_path))
    files = {f"vjepa_fast.kernels.{path.stem}" for path in copy.glob("*.py")}
    assert {name for name in modules if name.startswith("vjepa_fast.")} == {
        "vjepa_fast.kernels",
        *(files - {"vjepa_fast.kernels.__init__"}),
    }
    tops = {name.partition(".")[0] for name in modules} - {"vjepa_fast", "torch", "triton"}
    assert tops <= sys.stdlib_module_names
