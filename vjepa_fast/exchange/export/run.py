"""Exports a run: writes one form into a hidden folder, checks it, and gives it its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from vjepa_fast.errors import UserError
from vjepa_fast.exchange.export.form import Form
from vjepa_fast.exchange.export.model_card import model_card
from vjepa_fast.exchange.export.source import Network, Source, open_source
from vjepa_fast.exchange.new_folder import require_new, write_new_folder

FormName = Literal["transformers", "published", "safetensors"]


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        source: what was exported.
        title: what it is.
        files: names and bytes of its files.
        difference, tolerance: largest difference of its features from ours on a random clip, and
            the one that is allowed.
    """

    source: Source
    title: str
    files: dict[str, int]
    difference: float
    tolerance: float


def export_run(
    run: Path,
    form: FormName,
    output: Path,
    probe: Path | None = None,
    network: Network | None = None,
) -> Exported:
    """Export a run's newest checkpoint, or a checkpoint, into a new folder.

    Args:
        run: folder of the run or of the checkpoint, also of an imported one.
        form: "transformers", "published" or "safetensors".
        output: the folder to make.
        probe: a trained probe to export with the encoder, for "transformers".
        network: the encoder to export; None: the run's result, see `Checkpoint.result_weights`.
            "published" holds both.

    Raises:
        UserError: the folder exists, the disk is too full, the form cannot hold this model, a
            package is missing, there is no intact checkpoint, or what was written does not compute
            what we compute. Nothing is left behind.
    """
    output = output.absolute()
    require_new(output)
    if network is not None and form == "published":
        raise UserError(
            f"--network: found {network} with --to published, whose file holds both networks, "
            "expected another form; leave the option out"
        )
    source = open_source(run, network)
    prepared = _prepare(form, source, probe)
    return write_checked(prepared, source, output)


def write_checked(form: Form, source: Source, output: Path) -> Exported:
    """Write a prepared form; the folder appears when it is complete and checked.

    Raises:
        UserError: see `export_run`.
    """
    found, allowed = write_new_folder(
        output, form.size, lambda folder: _fill(folder, form, source, output)
    )
    files = {path.name: path.stat().st_size for path in sorted(output.iterdir())}
    return Exported(source, form.title, files, found, allowed)


def _prepare(form: FormName, source: Source, probe: Path | None) -> Form:
    if probe is not None and form != "transformers":
        raise UserError(
            f"--probe: found it with --to {form}, expected --to transformers, the form that holds "
            "a classifier; remove one of the two"
        )
    if form == "safetensors":
        from vjepa_fast.exchange.export.safetensors_form import safetensors_form

        return safetensors_form(source)
    if form == "published":
        from vjepa_fast.exchange.export.published_form import published_form

        return published_form(source)
    return _transformers_form(source, probe)


def _transformers_form(source: Source, probe: Path | None) -> Form:
    from vjepa_fast.exchange.export.hf.folder import require_transformers

    require_transformers()
    if probe is not None:
        from vjepa_fast.exchange.export.hf.classifier import classifier

        return classifier(source, probe)
    if source.generation == 2:
        from vjepa_fast.exchange.export.hf.second_generation import second_generation

        return second_generation(source)
    from vjepa_fast.exchange.export.hf.first_generation import first_generation

    return first_generation(source)


def _fill(folder: Path, form: Form, source: Source, output: Path) -> tuple[float, float]:
    """Write and check everything."""
    form.write(folder)
    card = model_card(source, form, output.name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    try:
        found, allowed = form.check(folder)
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
        raise UserError(
            f"{output}: found that what was written does not load ({reason}), expected it to; "
            "nothing is left of it, please report it"
        ) from error
    if found > allowed:
        raise UserError(
            f"{output}: found features that differ from ours by {found:.2g}, expected at most "
            f"{allowed:.2g}; nothing is left of it, please report it"
        )
    return found, allowed
