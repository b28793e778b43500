"""transformers loads our folders, offline, and computes our features and predictions."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.exchange.runs import FIRST, SECOND, write_run
from tests.exchange.test_export import refused, visible
from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export import hf
from vjepa_fast.exchange.export.form import features, own_features, random_clip
from vjepa_fast.exchange.export.hf.second_generation import exact_ratio, second_generation
from vjepa_fast.exchange.export.run import export_run, write_checked
from vjepa_fast.exchange.export.source import open_source
from vjepa_fast.inference.clips import ClipList, Sampling, inspect_video, read_middle_clip
from vjepa_fast.models.positions import position_table
from vjepa_fast.models.predictor import Predictor
from vjepa_fast.models.sequences import pack_masks

TOLERANCE = 1e-5
# Heads of 44 features, of which 2 are not rotated; ViT-g's MLP; an odd border of the center crop.
GIANT = SECOND | {
    "encoder": {"width": 88, "depth": 3, "heads": 2, "mlp_ratio": 48 / 11},
    "predictor": {"width": 24, "depth": 2, "heads": 3},
}

# Runs the card's three lines where the folder lies, then the model on a video of whole frames.
USER = """
import re, sys
import torch
from safetensors.torch import load_file, save_file
found = {}
for folder in sys.argv[1:]:
    text = open(f"{folder}/README.md").read()
    (code,) = re.findall(r"```python\\n(.+?)```", text, re.S)
    assert len(code.splitlines()) == 3, code
    names = {}
    exec(code, names)
    model, video = names["model"], load_file("video.safetensors")["video"]
    with torch.no_grad():
        inputs = names["processor"](video, return_tensors="pt")
        found[folder] = model(**inputs).last_hidden_state
    print(folder, type(model).__name__, type(model).__module__.split(".")[0], model.dtype)
save_file(found, "features.safetensors")
"""


def run_user(folder, names):
    done = subprocess.run(
        [sys.executable, "-c", USER, *names],
        cwd=folder,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(folder / "modules"),
            "PYTHONPATH": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), load_file(folder / "features.safetensors")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Folder with runs and their exports, and what a user's process found for one video."""
    folder = tmp_path_factory.mktemp("exports")
    models = {"giant": GIANT, "fir-st 0.5": FIRST}
    for name, model in models.items():
        write_run(folder / f"run {name}", model)
        export_run(folder / f"run {name}", "transformers", folder / name)
    generator = torch.Generator().manual_seed(0)
    # short side int(24 · 256 / 224) = 27: nothing is resized
    video = torch.randint(0, 256, (8, 27, 41, 3), dtype=torch.uint8, generator=generator)
    save_file({"video": video}, folder / "video.safetensors")
    printed, found = run_user(folder, list(models))
    return folder, video, printed, found


def test_a_users_three_lines(exports):
    """The second generation is transformers' own model, the first our file."""
    folder, _, printed, _ = exports
    assert printed == [
        "giant VJEPA2Model transformers torch.float32",
        "fir-st 0.5 VJEPAModel transformers_modules torch.float32",
    ]
    common = ["README.md", "config.json", "model.safetensors", "video_preprocessor_config.json"]
    assert visible(folder / "giant") == common
    assert visible(folder / "fir-st 0.5") == sorted([*common, "modeling_vjepa.py"])


@pytest.mark.parametrize("name", ["giant", "fir-st 0.5"])
def test_features_are_ours(exports, name):
    """Of a video that went through the processor there, and was cropped here."""
    folder, video, _, found = exports
    own = video[None, :, 1:25, 8:32]
    expected = features(open_source(folder / f"run {name}").build_encoder(), own)
    assert (found[name] - expected).abs().max() <= TOLERANCE
    assert expected.std(dim=1).min() > 1e-3  # not all tokens alike


def test_config_holds_the_models_numbers(exports):
    config = json.loads((exports[0] / "giant" / "config.json").read_text())
    expected = {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "dtype": "float32",
        "patch_size": 8,
        "tubelet_size": 2,
        "crop_size": 24,
        "frames_per_clip": 8,
        "hidden_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "pred_hidden_size": 24,
        "pred_num_hidden_layers": 2,
        "pred_num_attention_heads": 3,
        "pred_num_mask_tokens": 1,
        "pred_mlp_ratio": 4.0,
    }
    assert {key: config[key] for key in expected} == expected
    assert int(88 * config["mlp_ratio"]) == 384


def test_ratios_that_truncate():
    """transformers takes int(width · ratio), which is one less for many plain quotients."""
    sizes = [(width, hidden) for width in range(8, 200, 3) for hidden in range(width, 4 * width)]
    assert any(int(width * (hidden / width)) != hidden for width, hidden in sizes)
    assert all(int(width * exact_ratio(width, hidden)) == hidden for width, hidden in sizes)


@pytest.mark.parametrize("count", [1, 3])
def test_the_predictor_predicts_what_ours_predicts(count, tmp_path):
    """With the mask token that transformers takes by default, of context and targets."""
    from transformers import AutoModel

    imported = None if count == 1 else {"file": "x.pt"}
    run = write_run(tmp_path / "run", GIANT, mask_tokens=count, imported=imported)
    export_run(run, "transformers", tmp_path / "out")
    source = open_source(run)
    theirs = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert theirs.predictor.embeddings.mask_tokens.shape == (count, 1, 1, 24)

    generator = torch.Generator().manual_seed(1)
    order = torch.stack([torch.randperm(36, generator=generator) for _ in range(2)])
    context, target = order[:, :20].sort().values, order[:, 20:30].sort().values
    tokens = torch.randn(2, 36, 88, generator=generator)
    lengths = torch.tensor([[20, 20]]), torch.tensor([[10, 10]])
    masks = pack_masks(
        context.reshape(-1), lengths[0], target.reshape(-1), lengths[1], 36, mask_token=1 % count
    )
    ours = Predictor(
        encoder_width=88,
        width=24,
        depth=2,
        heads=3,
        grid=(4, 3, 3),
        num_mask_tokens=count,
        positions="rope_tiled",
    )
    ours.load_state_dict({name: value.read() for name, value in source.part("predictor").items()})
    with torch.no_grad():
        expected = theirs.predictor(tokens, [context], [target]).last_hidden_state
        kept = torch.gather(tokens, 1, context[..., None].expand(-1, -1, 88))
        found = ours(kept.reshape(-1, 88), masks)
    assert (found.view_as(expected) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("model", "sections", "sentence"),
    [
        (SECOND, {}, "The predictor's one mask token is the trained one"),
        (
            SECOND,
            {"data": {"manifests": ["a", {"path": "b", "num_frames": 16}]}},
            "2 mask tokens belong to clips of 8 and 16 frames, in this order; transformers takes "
            "number 1",
        ),
        (SECOND | {"mask_tokens": "per_spec"}, {}, "2 mask tokens belong to the mask specs"),
    ],
    ids=["one length", "two lengths", "per spec"],
)
def test_the_card_says_which_mask_token_is_which(model, sections, sentence, tmp_path):
    run = write_run(tmp_path / "run", model, **sections)
    export_run(run, "transformers", tmp_path / "out")
    assert sentence in (tmp_path / "out" / "README.md").read_text()


def test_an_imported_file_keeps_its_mask_tokens(tmp_path):
    run = write_run(tmp_path / "run", SECOND, mask_tokens=10, imported={"file": "vitl.pt"})
    export_run(run, "transformers", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    expected = open_source(run).part("predictor")["mask_tokens"].read()
    assert torch.equal(weights["predictor.embeddings.mask_tokens"][:, 0, 0], expected)
    assert "takes number 1 by default" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("height", "width"), [(27, 41), (48, 27), (64, 48), (97, 131)])
def test_our_center_view_of_a_file_is_that_of_the_processor(height, width, tmp_path):
    """Equal pixels where the short side is 27; elsewhere both resize, each in its way."""
    from transformers import VJEPA2VideoProcessor

    rows, columns = np.mgrid[:height, :width]
    frames = [
        np.stack([columns * 5 + i, rows * 5, (rows + columns) * 2], -1).clip(0, 255).astype("u1")
        for i in range(32)
    ]
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:  # RGB, which is decoded without a conversion
        stream = container.add_stream("ffv1", rate=25)
        stream.pix_fmt, stream.height, stream.width = "bgr0", height, width
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    clip = read_middle_clip(path, Sampling(8, 24))
    shown = ClipList(inspect_video(path), Sampling(8, 24)).plan(0).frames
    whole = torch.from_numpy(np.stack([frames[i] for i in shown]))
    processor = VJEPA2VideoProcessor(crop_size=24, do_normalize=False, do_rescale=False)
    theirs = processor(whole, return_tensors="pt")["pixel_values_videos"][0].permute(0, 2, 3, 1)
    largest = (theirs.float() - clip.float()).abs().max().item()
    assert largest == 0 if min(height, width) == 27 else 0 < largest <= 12


def test_a_network_that_amplifies_roundings(tmp_path):
    """Rounding alone is more than 1e-5, so the check compares in fp64; a wrong weight shows."""
    model = SECOND | {"encoder": {"width": 96, "depth": 12, "heads": 2}}
    source = open_source(write_run(tmp_path / "run", model, std=0.5))
    form = second_generation(source)
    done = write_checked(form, source, tmp_path / "out")
    video = random_clip(source)
    scale = own_features(source, video).abs().max().item()
    assert 1e-5 * scale < done.tolerance <= 0.01 * scale

    def write(folder):
        form.write(folder)
        weights = load_file(folder / "model.safetensors")
        query = "encoder.layer.11.attention.query.weight"
        weights[query] = weights[query].flip(0)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(UserError, match="found features that differ from ours by"):
        write_checked(replace(form, write=write), source, tmp_path / "wrong")


def test_true_rotations_are_refused(tmp_path):
    run = write_run(tmp_path / "run", SECOND | {"positions": "rope"})
    assert refused(tmp_path, run, "transformers") == (
        "--to transformers: found a model with positions rope, expected rope_tiled or sincos, "
        "since VJEPA2Model rotates by tiled angles; use --to safetensors, or "
        "train with model.positions=rope_tiled"
    )


def test_an_encoder_without_a_predictor_is_refused(tmp_path):
    run = write_run(tmp_path / "run", SECOND, predictor=False, imported={"file": "x.pt"})
    sentence = refused(tmp_path, run, "transformers")
    assert "since VJEPA2Model would start with a random predictor" in sentence


@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["first", "second"])
@pytest.mark.parametrize("name", ["torchvision", "transformers"])
def test_packages_that_are_missing(model, name, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", model)
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    assert refused(tmp_path, run, "transformers") == (
        f"--to transformers: found no module {name}, expected {name}; run pip install -c "
        "constraints.txt -e '.[hf]'"
    )


def test_a_torchvision_that_does_not_import(tmp_path, monkeypatch):
    """As PyPI's does beside a CPU build of torch."""
    run = write_run(tmp_path / "run", SECOND)
    (tmp_path / "lib" / "torchvision").mkdir(parents=True)
    (tmp_path / "lib" / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path / "lib")
    for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    assert refused(tmp_path, run, "transformers") == (
        "--to transformers: found a torchvision that does not import (operator torchvision::nms "
        f"does not exist), expected one that was built for torch {torch.__version__}; install both "
        "from the same index"
    )


MODELLING = Path(hf.__file__).with_name("modeling_vjepa.py")


def test_the_modelling_file_needs_torch_and_transformers_alone():
    tree = ast.parse(MODELLING.read_text())
    tops = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert {name.split(".")[0] for name in tops} == {"torch", "transformers"}


@pytest.mark.parametrize("uniform", [True, False])
def test_the_modelling_files_position_table(uniform):
    from vjepa_fast.exchange.export.hf.modeling_vjepa import position_table as theirs

    for width, grid in ((24, (4, 3, 3)), (1024, (8, 14, 14)), (384, (2, 5, 7))):
        assert (theirs(width, grid, uniform) - position_table(width, grid, uniform)).abs().max() < (
            1e-6
        )


def test_the_modelling_file_on_other_clips(exports):
    """Shorter ones are encoded as ours are; others are refused."""
    from vjepa_fast.exchange.export.hf.modeling_vjepa import VJEPAConfig, VJEPAModel

    folder, video, _, _ = exports
    config = VJEPAConfig.from_pretrained(folder / "fir-st 0.5")
    model = VJEPAModel.from_pretrained(folder / "fir-st 0.5", config=config).eval()
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    clip = video[None, :4, 1:25, 8:32]
    pixels = ((clip / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
        last, states = model(pixels, output_hidden_states=True, return_dict=False)
    expected = features(open_source(folder / "run fir-st 0.5").build_encoder(), clip)
    assert (output.last_hidden_state - expected).abs().max() <= TOLERANCE
    assert torch.equal(last, output.last_hidden_state) and len(states) == 3
    assert model(pixels).hidden_states is None
    for shape in ((1, 10, 3, 24, 24), (1, 8, 3, 32, 24), (1, 1, 3, 24, 24)):
        with pytest.raises(ValueError, match="expected 2 to 8 frames of 24 x 24"):
            model(torch.zeros(shape))
