"""Writes a probe's results: probe.json, probe.png and the heads themselves."""

from __future__ import annotations

import json

from vjepa_fast.data.manifest.replaced import replaced_atomically
from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.heads.spec import places
from vjepa_fast.evaluation.kinds import PRETRAINED
from vjepa_fast.evaluation.labels.targets import TEST, TRAIN, Target
from vjepa_fast.evaluation.places import RESULT
from vjepa_fast.evaluation.probe import KindResult, Probing
from vjepa_fast.evaluation.report.pictures import MOST_CLASSES, Curve, Matrix, draw_probe
from vjepa_fast.evaluation.report.selection import best_heads, summary, whole_grid
from vjepa_fast.evaluation.results import confusion_matrix, json_data
from vjepa_fast.evaluation.saved_probe import probe_file_name, save_probe
from vjepa_fast.weights import weights_checksum

PICTURE = "probe.png"


def write_results(probing: Probing) -> dict:
    """Write all that a probe leaves into its folder; by one process.

    Returns:
        the content of probe.json: "checkpoint", "step", "probe", "blocks" and other settings;
        "videos" by split: {"manifest", "used", "left_out"}; "targets" by label: its classes, or
        mean, std and error_of_median of its values; "chance" of classes, see `Target`; "results":
        for each kind of features, label and share of labels, the scores of the heads that
        validation chose, see `selection.summary`; "accuracy" {label: {kind: the main score at the
        largest share}}; "grid": every head, see `selection.whole_grid`; "confusion" by label;
        "saved": file of each label's probe, of the checkpoint's features, the largest share and the
        first draw that is not left out.

    Raises:
        UserError: a file cannot be written.
    """
    settings, specs = probing.settings, probing.specs
    rows = [
        {"features": kind.name, **row}
        for kind in probing.results
        for row in summary(specs, kind.validation, kind.test)
    ]
    most = max(settings.grid.shares)
    result = {
        "checkpoint": str(probing.checkpoint.folder),
        "step": probing.checkpoint.state["step"],
        **_settings(probing),
        "videos": {split: _videos(probing, split) for split in probing.entries},
        "targets": {target.name: _target(target) for target in probing.targets},
        "chance": {t.name: t.chance for t in probing.targets if not t.has_values},
        "accuracy": {
            target.name: {
                row["features"]: row["test"][main_name(target)]["mean"]
                for row in rows
                if (row["label"], row["share"]) == (target.name, most)
            }
            for target in probing.targets
        },
        "results": rows,
        "grid": [
            {"features": kind.name, **head}
            for kind in probing.results
            for head in whole_grid(specs, kind.validation, kind.test, kind.losses)
        ],
    }
    matrices = _matrices(probing, most)
    result["confusion"] = {name: matrix.counts.tolist() for name, matrix in matrices.items()}
    result["saved"] = _save_heads(probing, most)
    result = json_data(result)
    picture = probing.output / PICTURE
    try:
        if draw_probe(picture, list(matrices.values()), _curves(probing.targets, rows)):
            result["picture"] = PICTURE
        else:
            picture.unlink(missing_ok=True)  # of another probe
        text = json.dumps(result, indent=2) + "\n"
        with replaced_atomically(probing.output / RESULT) as file:  # last: it names the others
            file.write(text)
    except OSError as error:
        raise UserError(
            f"{probing.output}: found that results cannot be written ({error.strerror}), expected "
            "room and a folder of yours; make room and run the same command, which goes on from "
            f"{probing.work.name}"
        ) from None
    return result


def main_name(target: Target) -> str:
    """The score that heads are compared by."""
    return "r2" if target.has_values else "top1"


def _settings(probing: Probing) -> dict:
    settings, grid, sampling = probing.settings, probing.settings.grid, probing.encoder.sampling
    augment = settings.views.augment
    found = {
        "probe": settings.probe,
        "blocks": settings.blocks,
        "neighbors": settings.neighbors if settings.probe == "knn" else None,
        "seed": grid.seed,
        "encoder_crc32": f"{probing.encoder.checksum:08x}",
        "precision": str(probing.encoder.dtype).removeprefix("torch."),
        "label_shares": list(grid.shares),
        "draws": grid.draws if min(grid.shares) < 1 else 1,
        "drawn": "the same share of every class" if grid.balanced else "of all videos alike",
        "validation": None if probing.held_out is None else len(probing.held_out),
        "num_frames": sampling.num_frames,
        "crop_size": sampling.crop_size,
        "segments": settings.views.segments,
        "crops": settings.views.crops,
        "frame_step": None if sampling.fps else sampling.frame_step,
        "fps": sampling.fps,
        "augment": augment is not None,
        "flip": augment is not None and augment.flip,
        "frame_positions": settings.views.frame_positions,
    }
    if settings.probe != "knn":
        found |= {
            "lr": list(grid.lrs),
            "weight_decay": list(grid.weight_decays),
            "epochs": settings.epochs,
            "batch": settings.batch,
        }
    return found


def _videos(probing: Probing, split: str) -> dict:
    entries, left_out = probing.entries[split], probing.sources.left_out.get(split, {})
    used = set(range(len(entries)))
    if split == TRAIN:
        used = {row for rows in probing.labeled for row in rows.tolist()}
    return {
        "manifest": str(probing.manifests[split]),
        "videos": len(entries),
        "used": len(used - left_out.keys()),
        "left_out": {entries[row].path: reason for row, reason in sorted(left_out.items())},
    }


def _target(target: Target) -> dict:
    if target.has_values:
        return {
            "mean": target.mean,
            "std": target.std,
            "error_of_median": target.error_of_median,
        }
    tested = set(target.truth[TEST].tolist())
    return {
        "classes": list(target.classes),
        "names": list(target.names),
        "not_in_test": [name for i, name in enumerate(target.names) if i not in tested],
    }


def _chosen(probing: Probing, kind: KindResult, target: Target, share: float) -> int:
    """The index of the head that validation chose for the first draw that is not left out."""
    return best_heads(probing.specs, kind.validation, kind.test)[target.name, share][0]


def _matrices(probing: Probing, share: float) -> dict[str, Matrix]:
    kind = probing.results[0]
    found = {}
    for target in probing.targets:
        if target.has_values or target.outputs > MOST_CLASSES:
            continue
        head = _chosen(probing, kind, target, share)
        place = places(probing.specs)[head]
        said = kind.predictions[target.name]
        counts = confusion_matrix(said.guesses[place], said.truth, target.outputs).numpy()
        title = f"{target.name}: {kind.name}, top-1 {kind.test[head]['top1']:.3f}"
        if share < 1:
            title += f"\n{100 * share:g} % of the labels, draw {probing.specs[head].draw}"
        found[target.name] = Matrix(title, target.names, counts)
    return found


def _curves(targets: list[Target], rows: list[dict]) -> list[Curve]:
    curves = []
    for target in targets:
        score = main_name(target)
        for kind in dict.fromkeys(row["features"] for row in rows):
            own = [r for r in rows if r["label"] == target.name and r["features"] == kind]
            own.sort(key=lambda row: row["share"])
            means = [row["test"][score]["mean"] for row in own]
            stds = [row["test"][score]["std"] or 0.0 for row in own]
            curves.append(
                Curve(target.name, score, kind, [row["share"] for row in own], means, stds)
            )
    return curves


def _save_heads(probing: Probing, share: float) -> dict[str, str]:
    """Save the probe of each label; only attentive ones, which exports can hold."""
    kind, settings = probing.results[0], probing.settings
    if settings.probe != "attentive" or kind.name != PRETRAINED:
        return {}
    checkpoint, encoder, saved = probing.checkpoint, probing.encoder, {}
    state = checkpoint.weights("encoder", checkpoint.result_weights)
    for target in probing.targets:
        head = _chosen(probing, kind, target, share)
        header = {
            "label": target.name,
            "classes": list(target.classes),
            "names": list(target.names),
            "mean": target.mean,
            "std": target.std,
            "draw": probing.specs[head].draw,
            "label_share": share,
            "test": dict(kind.test[head]),
            "encoder": {
                "checkpoint": checkpoint.folder.name,
                "step": checkpoint.state["step"],
                "weights": checkpoint.result_weights,
                "crc32": weights_checksum(state),
            },
            "num_frames": encoder.sampling.num_frames,
            "crop_size": encoder.sampling.crop_size,
            "segments": settings.views.segments,
            "frame_positions": settings.views.frame_positions,
        }
        saved[target.name] = probe_file_name(target.name)
        file = probing.output / saved[target.name]
        save_probe(file, kind.stack.single(head), json_data(header))
    return saved
