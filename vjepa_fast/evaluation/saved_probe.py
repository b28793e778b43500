"""A trained probe as one safetensors file, with what it is in the header.

probe_digit.safetensors     beside probe.json
    metadata["vjepa_fast"]  JSON: kind, format, width, heads, blocks, norm_eps and crc32 of the
                            classifier, and what the caller of `save_probe` adds
    tensors                 fp32, by the names of `AttentiveClassifier`, which are the published
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vjepa_fast.errors import UserError
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.weights import load_exactly, weights_checksum

FORMAT = 1
_KIND = "attentive probe"
_KEY = "vjepa_fast"
_MAX_NAME = 50  # characters of a label in a file's name, which may have 255 bytes
_OTHERWISE = "expected a file that vjepa-fast probe wrote; run it again"


def probe_file_name(label: str) -> str:
    """Name of the file that holds the probe of a label; two labels never share one."""
    name = re.sub(r"[^\w.=+-]+", "_", label)
    if len(name) > _MAX_NAME or name != label:
        digest = hashlib.sha256(label.encode("utf-8", "surrogateescape")).hexdigest()
        name = f"{name[:_MAX_NAME]}-{digest[:8]}"
    return f"probe_{name}.safetensors"


def save_probe(path: Path, classifier: AttentiveClassifier, header: Mapping[str, object]) -> None:
    """Write a classifier; an older file of that name stays until the new one is complete.

    Args:
        path: of the file.
        classifier: fp32, on any device.
        header: JSON data. "classes" is required: the number in the manifest of each class, in the
            order of the logits; [] for a probe of one value, which is standardized by "mean" and
            "std". `write_results` also gives "label", "names", "test", "encoder" and others.

    Raises:
        UserError: the file cannot be written, e.g. because the disk is full.
        ValueError: not one class for each logit.
    """
    outputs = classifier.linear.out_features
    if (len(header["classes"]) or 1) != outputs:
        raise ValueError(
            f"classes: found {len(header['classes'])}, expected {outputs}, one for each logit"
        )
    tensors = {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}
    header = dict(header) | {
        "kind": _KIND,
        "format": FORMAT,
        "width": classifier.width,
        "heads": classifier.heads,
        "blocks": classifier.num_blocks,
        "norm_eps": classifier.norm_eps,
    }
    header["crc32"] = _checksum(header, tensors)
    content = safetensors.torch.save(tensors, {_KEY: json.dumps(header)})
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: found that the probe cannot be written ({error.strerror}), expected room for "
            f"{len(content) / 1e6:.1f} MB in a folder of yours; make room and probe again"
        ) from None


def load_probe(path: Path) -> tuple[AttentiveClassifier, dict]:
    """Read what `save_probe` wrote.

    Returns:
        the classifier in eval mode, fp32, on the host; its header.

    Raises:
        UserError: no such file, another kind of file, another format, or a damaged one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY, "")
            header = json.loads(text) if text else {}
            if not isinstance(header, dict) or header.get("kind") != _KIND:
                raise UserError(f"{path}: found weights that are no attentive probe, {_OTHERWISE}")
            if header.get("format") != FORMAT:
                raise UserError(
                    f"{path}: found probe format {header.get('format')}, expected {FORMAT}; read "
                    "it with the version of vjepa_fast that wrote it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: found no readable probe ({reason}), {_OTHERWISE}") from None
    if header.pop("crc32", None) != _checksum(header, tensors):
        raise UserError(f"{path}: found other bytes than were written, {_OTHERWISE}")
    classifier = AttentiveClassifier(
        header["width"],
        header["heads"],
        len(header["classes"]) or 1,
        header["blocks"],
        header["norm_eps"],
    )
    load_exactly(classifier, tensors, str(path))
    return classifier.eval(), header


def _checksum(header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> int:
    text = json.dumps(header, sort_keys=True)
    return zlib.crc32(text.encode(), weights_checksum(tensors))
