"""Compares a checkpoint's encoder with the untrained encoder and raw pixels by probing."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from vjepa_fast.config import Config, parse_config, translate_stored
from vjepa_fast.config.model import build_model
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.evaluation.features import (
    Clips,
    all_features,
    encoder_features,
    labeled_planner,
    load_clips,
    pixel_features,
)
from vjepa_fast.evaluation.saved_probe import probe_file_name, save_probe
from vjepa_fast.evaluation.train_probe import (
    label_split,
    make_recipe,
    number_classes,
    probe_accuracy,
    train_probe,
)
from vjepa_fast.inference.load import load_target_encoder
from vjepa_fast.models.encoder import VisionTransformer
from vjepa_fast.training.checkpoint.format import Checkpoint
from vjepa_fast.weights import weights_checksum

PRETRAINED, RANDOM, PIXELS = "pretrained encoder", "random encoder", "raw pixels"
LOW_SHOT_DRAWS = 3  # as in the paper
_SHOWN = 20  # untrained classes that a warning names
log = logging.getLogger("vjepa_fast")


def test_manifest_beside(manifest: Path) -> Path:
    """Path of the test.csv beside a training manifest.

    Raises:
        UserError: there is none.
    """
    test = manifest.with_name("test.csv")
    if not test.is_file() and manifest.is_file():  # else the manifest is the mistake
        raise UserError(
            f"{manifest.parent}: found no test.csv, expected one beside {manifest.name} to test "
            "the probe on; name one with --test"
        )
    return test


def run_probe(
    path: Path,
    labels: Sequence[str],
    train: Path | None = None,
    test: Path | None = None,
    label_fraction: float = 1.0,
    blocks: int = 1,
) -> dict:
    """Train the same attentive probe on three kinds of frozen features, for each label.

    With a fraction of the labels this is V-JEPA's low-shot evaluation (section 5, table 7): the
    mean over three draws of the labeled clips.

    Args:
        path: a checkpoint's folder or a run's.
        labels: label columns to probe for.
        train, test: manifests; by default the run's first one and the test.csv beside it.
        label_fraction: fraction of each class's training clips that carry a label, in (0, 1].
        blocks: of the probe, see `AttentiveClassifier`.

    Returns:
        checkpoint, step, label_fraction, blocks; accuracy {label: {kind: fraction}}; draws {label:
        {kind: [fraction]}}; classes {label: [the number in the manifest of each class that the
        probe knows]}; chance {label: fraction}; videos {"train" and "test": {"used": their number,
        "left_out": paths of those that cannot be decoded}}; saved {label: file name of the probe of
        the checkpoint's encoder and the first draw}. All that is also written to probe.json, with
        these probes beside it, in the run's folder, or in the checkpoint's own if it is in no run;
        `file` is its path.

    Raises:
        UserError: no such checkpoint, manifest or label; too many videos cannot be decoded; a probe
            cannot be written.
    """
    checkpoint = Checkpoint.find(path.resolve())
    config = parse_config(translate_stored(checkpoint.state["config"]))
    if train is None and checkpoint.imported:
        raise UserError(
            f"--train: found none for {checkpoint.folder}, whose weights were imported from "
            f"{checkpoint.imported['file']} without videos, expected a manifest to train the probe "
            "on; name one"
        )
    train = train or Path(config.data.manifests[0].path)
    test = test or test_manifest_beside(train)
    train_clips, test_clips = _load(config, train, test, labels)
    classes = {label: _numbered(train_clips, test_clips, label) for label in labels}
    encoder = load_target_encoder(checkpoint)
    draws, probes = _train(config, encoder, train_clips, test_clips, labels, label_fraction, blocks)
    result = {
        "checkpoint": str(checkpoint.folder),
        "step": checkpoint.state["step"],
        "label_fraction": label_fraction,
        "blocks": blocks,
        "accuracy": {
            label: {kind: sum(found) / len(found) for kind, found in by_kind.items()}
            for label, by_kind in draws.items()
        },
        "draws": draws,
        "classes": classes,
        "chance": {label: _chance(train_clips, test_clips, label) for label in labels},
        "videos": {
            name: {"used": len(clips.video), "left_out": list(clips.left_out)}
            for name, clips in (("train", train_clips), ("test", test_clips))
        },
        "saved": {label: probe_file_name(label) for label in labels},
    }
    in_run = checkpoint.folder.parent.name == "checkpoints"
    out = (checkpoint.folder.parents[1] if in_run else checkpoint.folder) / "probe.json"
    shared = {
        "encoder": _identity(checkpoint, encoder),
        "label_fraction": label_fraction,
        "num_frames": config.data.num_frames,
        "crop_size": config.data.crop_size,
    }
    for label, probe in probes.items():
        header = {
            "label": label,
            "classes": classes[label],
            "draw": 0,
            "accuracy": draws[label][PRETRAINED][0],
        }
        save_probe(out.with_name(result["saved"][label]), probe, header | shared)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")  # it names the others
    return result | {"file": str(out)}


def _identity(checkpoint: Checkpoint, encoder: VisionTransformer) -> dict:
    """Which encoder a probe reads: names for people, the checksum for programs."""
    return {
        "checkpoint": checkpoint.folder.name,
        "step": checkpoint.state["step"],
        "weights": checkpoint.result_weights,
        "crc32": weights_checksum(encoder.state_dict()),
    }


def _load(config: Config, train: Path, test: Path, labels: Sequence[str]) -> tuple[Clips, Clips]:
    """Decode both manifests as the run was configured."""
    data = config.data
    window = {"num_frames": data.num_frames, "frame_step": data.frame_step, "fps": data.fps}
    for manifest in (train, test):  # both are checked before one is decoded, which may take hours
        labeled_planner(manifest, labels, **window)
    train_clips, test_clips = (
        load_clips(
            manifest,
            labels,
            **window,
            crop_size=data.crop_size,
            num_workers=data.num_workers,
            max_bad_fraction=data.max_bad_fraction,
        )
        for manifest in (train, test)
    )
    return train_clips, test_clips


def _train(
    config: Config,
    encoder: VisionTransformer,
    train: Clips,
    test: Clips,
    labels: Sequence[str],
    label_fraction: float,
    blocks: int,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, AttentiveClassifier]]:
    """Train all probes.

    Returns:
        test accuracies {label: {kind of features: [one for each draw of labeled clips]}};
        {label: the probe of this encoder and the first draw}.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = config.model
    kinds = {
        PRETRAINED: encoder_features(encoder.to(device)),
        RANDOM: encoder_features(build_model(config).make_target_encoder().to(device)),
        PIXELS: pixel_features(model.patch_size, model.tubelet_size),
    }
    recipe = make_recipe(model.encoder.width, model.encoder.heads, blocks)
    seeds = [config.seed + draw for draw in range(1 if label_fraction == 1.0 else LOW_SHOT_DRAWS)]
    numbered = {name: number_classes(train.labels[name], test.labels[name])[1:] for name in labels}
    labeled = {
        name: [label_split(classes, label_fraction, seed) for seed in seeds]
        for name, (classes, _) in numbered.items()
    }
    used = torch.cat([clips for draws in labeled.values() for clips in draws]).unique()
    all_tested = torch.arange(len(test.video))
    found: dict[str, dict[str, list[float]]] = {label: {} for label in labels}
    probes = {}
    for kind, featurize in kinds.items():
        train_features = all_features(featurize, train.video, used, device, kind)
        test_features = all_features(featurize, test.video, all_tested, device, kind)
        for label in labels:
            train_classes, test_classes = (classes.to(device) for classes in numbered[label])
            found[label][kind] = []
            for seed, clips in zip(seeds, labeled[label], strict=True):
                probe = train_probe(
                    train_features,
                    train_classes[used.to(device)],
                    recipe,
                    seed=seed,
                    name=f"{kind}, {label}",
                    labeled=torch.searchsorted(used, clips).to(device),
                )
                accuracy = probe_accuracy(probe, test_features, test_classes)
                found[label][kind].append(accuracy)
                if kind == PRETRAINED and seed == seeds[0]:
                    probes[label] = probe[-1]
    return found, probes


def _numbered(train: Clips, test: Clips, label: str) -> list[int]:
    """The labels of the classes to train; warns of test clips of other classes."""
    classes, _, tested = number_classes(train.labels[label], test.labels[label])
    unknown = test.labels[label][tested < 0]
    if len(unknown):
        names = unknown.unique().tolist()
        shown = ", ".join(map(str, names[:_SHOWN])) + ", …" * (len(names) > _SHOWN)
        log.warning(
            "label_%s: found %d of %d test videos of %d classes that no training video has (%s); "
            "they count as wrong",
            label,
            len(unknown),
            len(tested),
            len(names),
            shown,
        )
    return classes


def _chance(train: Clips, test: Clips, label: str) -> float:
    """Test accuracy of always predicting the most frequent training class."""
    frequent = train.labels[label].mode().values
    return (test.labels[label] == frequent).float().mean().item()
