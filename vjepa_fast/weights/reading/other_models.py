"""Models that look like V-JEPA and are not: what to call them in an error."""

from __future__ import annotations

from collections.abc import Collection

# A part of a tensor's name, or a key of a config, and the model that has it.
_MARKS = {
    "norms_block": "V-JEPA 2.1",
    "patch_embed_img": "V-JEPA 2.1",
    "img_mod_embed": "V-JEPA 2.1",
    "video_mod_embed": "V-JEPA 2.1",
    "predictor_proj_context": "V-JEPA 2.1",
    "hierarchical_layers": "V-JEPA 2.1",
    "img_temporal_dim_size": "V-JEPA 2.1",
    "action_encoder": "V-JEPA 2-AC",
    "state_encoder": "V-JEPA 2-AC",
    "extrinsics_encoder": "V-JEPA 2-AC",
}


def other_vjepa(names: Collection[str]) -> str | None:
    """The relative of V-JEPA whose tensors (or config) have these names, or None."""
    for name in names:
        for part in name.split("."):
            if part in _MARKS:
                return _MARKS[part]
    return None


def listed(names: Collection[str], most: int = 5) -> str:
    """Names for a message: the first ones, and the number of the others."""
    first = ", ".join(list(names)[:most])
    return f"{first} and {len(names) - most} more" if len(names) > most else first


def counted(what: str, names: Collection[str]) -> str:
    """Number and names, as "2 unknown tensors (a, b)"."""
    return f"{len(names)} {what}{'s' * (len(names) != 1)} ({listed(names)})"
