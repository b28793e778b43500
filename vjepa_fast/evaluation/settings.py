"""The settings of a probe, and what follows from them before a feature is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.heads.spec import ProbeForm, ProbeRecipe
from vjepa_fast.evaluation.labels.grid import Grid
from vjepa_fast.evaluation.sources import Views
from vjepa_fast.models.encoder import VisionTransformer


@dataclass(frozen=True)
class ProbeSettings:
    """What is probed, how, and on what.

    Attributes:
        checkpoint: folder of a checkpoint or of a run.
        labels: columns to learn, label_<name> or value_<name>.
        train, test: manifests; None: the run's first one, and the test.csv beside it.
        validation: a manifest, or the share of the training videos that is held out; None: a tenth
            of them if there is a choice of heads, else none.
        probe: the heads: attention, a linear layer on the mean, or nearest neighbors.
        blocks: of an attentive head, see `AttentiveClassifier`.
        grid: shares of labels, draws, learning rates and weight decays.
        epochs, batch: passes over the labeled videos, and videos of an update.
        views: segments, crops, augmentation.
        num_frames, crop_size: of a clip, if other than the run's.
        baselines: "random", "pixels": what is probed alike, to compare with.
        neighbors: k of nearest neighbors.
        output: folder of the results; None: the run's, or that of a checkpoint outside a run.
        store: folder of the features, which is kept; None: one in `output` for the time being.
        num_workers: processes that decode; None: as in the run's config.
    """

    checkpoint: Path
    labels: tuple[str, ...]
    train: Path | None = None
    test: Path | None = None
    validation: Path | float | None = None
    probe: Literal["attentive", "linear", "knn"] = "attentive"
    blocks: int = 1
    grid: Grid = field(default_factory=Grid)
    epochs: int = 20
    batch: int = 256
    views: Views = field(default_factory=Views)
    num_frames: int | None = None
    crop_size: int | None = None
    baselines: tuple[str, ...] = ()
    neighbors: int = 20
    output: Path | None = None
    store: Path | None = None
    num_workers: int | None = None

    def form(self, encoder: VisionTransformer) -> ProbeForm:
        """The architecture of trained heads."""
        kind = "linear" if self.probe == "linear" else "attentive"
        return ProbeForm.of(kind, encoder.width, encoder.blocks[0].attn.heads, self.blocks)

    @property
    def recipe(self) -> ProbeRecipe:
        """How heads are trained: wide self-attention diverges without a warm-up."""
        warmup = self.epochs / 10 if self.blocks > 1 else 0.0
        return ProbeRecipe(self.epochs, self.batch, warmup, seed=self.grid.seed)


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
