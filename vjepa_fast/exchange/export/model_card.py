"""The model card of an export, README.md, made from the run. It names no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from vjepa_fast import __version__
from vjepa_fast.config import Config
from vjepa_fast.exchange.export.form import Form
from vjepa_fast.exchange.export.source import Source
from vjepa_fast.exchange.export.video_counts import video_counts

_NETWORKS = {
    "target_encoder": "target encoder (the exponential moving average of the trained encoder)",
    "encoder": "trained encoder",
}


def model_card(source: Source, form: Form, name: str) -> str:
    """The text of README.md.

    Args:
        source: what was exported.
        form: how.
        name: of the export's folder.
    """
    generation = "V-JEPA" if source.generation == 1 else "V-JEPA 2"
    if source.config.model.positions == "rope":
        generation = "V-JEPA 2, with true rotations"
    sections = [
        _head(form),
        f"# {name}: {generation}, {form.title}",
        f"Written by vjepa_fast {__version__} ({_generation_note(source)}).",
        _lines("## What it is", _model(source)),
        _lines("## Files", form.parts),
        f"## How to load it\n\nIn the folder that holds `{name}`:\n\n"
        f"```python\n{form.load.replace('NAME', name)}```",
        _lines("## Data and training", _training(source)),
    ]
    probe = _probe(source.run / "probe.json", source.checkpoint.state["step"])
    if probe and source.network == source.result:
        sections.append(_lines("## Probe", probe))
    return "\n\n".join(sections) + "\n"


def _lines(title: str, items: list[str] | tuple[str, ...]) -> str:
    return "\n".join([title, "", *(f"- {item}" for item in items)])


def _head(form: Form) -> str:
    tags = "".join(f"- {tag}\n" for tag in ("v-jepa", "video", *form.tags))
    return (
        "---\n"
        f"library_name: {form.library}\n"
        f"tags:\n{tags}"
        "# license: yours to choose; weights that started from others' keep the terms of theirs\n"
        "---"
    )


def _generation_note(source: Source) -> str:
    imported = source.imported
    if imported is not None:
        return f"from weights that were imported from {Path(str(imported.get('file'))).name}"
    return f"from a pretraining run, step {source.checkpoint.state['step']:,}"


def _model(source: Source) -> list[str]:
    model, data = source.config.model, source.config.data
    encoder, frames = model.encoder, source.num_frames
    grid = " x ".join(map(str, source.config.grid_of(frames)))
    items = [
        f"Exported network: the {_network(source)}.",
        f"Encoder: {_blocks(encoder.depth, encoder.width, encoder.heads)}, positions "
        f"{model.positions}.",
        f"Clip: {frames} frames, {_pace(data.fps, data.frame_step)}, of {data.crop_size} x "
        f"{data.crop_size} pixels, which are {grid} "
        f"tokens of {model.tubelet_size} x {model.patch_size} x {model.patch_size} pixels.",
        "Pixels: 0 … 255 divided by 255, minus ImageNet's mean, divided by its standard deviation.",
    ]
    if source.has_predictor:
        predictor = model.predictor
        items.append(
            "Predictor of the run: "
            f"{_blocks(predictor.depth, predictor.width, model.predictor_heads)}."
        )
    return items


def _network(source: Source) -> str:
    parts = (source.imported or {}).get("parts", [])
    if len({"encoder", "target_encoder"}.intersection(parts)) == 1:
        return "imported file's only encoder"
    return _NETWORKS[source.network]


def _pace(fps: float | None, frame_step: int | None) -> str:
    if fps is not None:
        return f"{fps:g} a second"
    return f"one frame in {frame_step}" if frame_step != 1 else "every frame"


def _blocks(depth: int, width: int, heads: int) -> str:
    return f"depth {depth}, width {width}, attention heads {heads}"


def _training(source: Source) -> list[str]:
    if source.imported is not None:
        name = Path(str(source.imported.get("file"))).name
        return [f"As described where `{name}` comes from; vjepa_fast only converted it."]
    config = source.config
    data, optim = config.data, config.optim
    weights = data.weights or [None] * len(data.manifests)
    counts = video_counts(source)
    items = [f"{len(data.manifests)} manifest{'s' * (len(data.manifests) > 1)} of videos."]
    for number, (manifest, weight) in enumerate(zip(data.manifests, weights, strict=True), 1):
        own = {"num_frames": data.num_frames, "frame_step": data.frame_step, "fps": data.fps}
        own |= manifest.own
        pace = _pace(own["fps"], own["frame_step"])
        share = "by its number of videos" if weight is None else f"weight {weight:g}"
        videos = f"{counts[number - 1]:,} videos, " if counts else ""
        items.append(
            f"Manifest {number}: {videos}{own['num_frames']} frames a clip, {pace}; {share}."
        )
    if config.init.checkpoint is not None:
        items.append(
            "Initial weights: "
            + ", ".join(
                f"{part.replace('_', ' ')} from {getattr(config.init, part)}"
                for part in ("encoder", "predictor", "target_encoder")
                if part != "target_encoder" or config.objective == "features"
            )
            + "; the checkpoint is another run's or an imported one."
        )
    clipping = "none" if optim.clip_grad is None else f"{optim.clip_grad:g}"
    after = f"{optim.lr_schedule} to {optim.final_lr:g}"
    if optim.lr_schedule == "constant":
        after = "constant"
    items += [
        f"Step {source.checkpoint.state['step']:,} of {optim.steps:,}, "
        f"{optim.global_batch:,} clips a step.",
        f"AdamW, learning rate {optim.lr:g} after {optim.warmup_steps:,} steps, then {after}; "
        f"weight decay {optim.weight_decay:g} to {optim.final_weight_decay:g}; gradient clipping "
        f"{clipping}.",
        _target(config),
    ]
    for number, spec in enumerate(config.masks.specs, 1):
        text = json.dumps(json.loads(spec.model_dump_json(exclude_none=True)))
        items.append(f"Mask spec {number}: `{text}`.")
    return items


def _target(config: Config) -> str:
    """What is predicted."""
    if config.objective == "pixels":
        return "Pixels are predicted; there is no target encoder."
    if config.teacher.mode == "frozen":
        return "Target encoder: frozen."
    start, end = config.teacher.momentum
    return f"Target encoder: momentum {start:g} to {end:g}."


def _probe(path: Path, step: int) -> list[str]:
    """What probe.json says; nothing if there is none, or it is of another version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            f"{label}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in accuracy.items())
            for label, accuracy in found["accuracy"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    note = "" if found.get("step") == step else ", which is not the exported one"
    blocks = found.get("blocks", 1)  # earlier versions had one
    kinds = {"linear": "a linear probe", "knn": "nearest neighbors"}  # earlier versions had neither
    attentive = f"an attentive probe of {blocks} block{'s' * (blocks != 1)}"
    kind = kinds.get(found.get("probe"), attentive)
    return [f"Test scores of {kind} at step {found.get('step')}{note}.", *rows]
