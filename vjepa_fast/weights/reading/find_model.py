"""The model that weights belong to, from the weights and from what is known beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vjepa_fast.errors import UserError
from vjepa_fast.weights.reading.check_weights import (
    ANOTHER,
    encoder_shape,
    predictor_shape,
    require_exactly,
    require_this_kind,
)
from vjepa_fast.weights.reading.clip_size import Clip, clip_of_table, require_table, require_tokens
from vjepa_fast.weights.reading.names import TABLE, UNUSED_TABLE, Named
from vjepa_fast.weights.weight_file import PUBLISHED_PACE, Weight, WeightFile

Kind = Literal["published", "transformers", "safetensors"]
Generation = Literal[1, 2]
# Heads of the encoders of jepa and vjepa2, by width. Nothing in the weights shows them.
ENCODER_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
PREDICTOR_HEADS = {384: 12}  # of the second generation; in the first, the encoder's
_NO_PREDICTOR = {"width": 384, "depth": 12, "mask_tokens": 1}  # shape of the published ones
_MEANING = {
    "--heads": "the encoder's attention heads",
    "--predictor-heads": "the predictor's attention heads",
    "--crop-size": "the size of a clip",
    "--num-frames": "the frames of a clip",
}
_RELEASED = (
    "released V-JEPA 2 models take 64 frames of 256 px, or of 384 px where their name says so"
)
# Released files of the second generation hold position tables too, which its encoder ignores.
_SECOND_MASK_TOKENS, _SECOND_WIDTHS = 10, (1408, 1664)


@dataclass(frozen=True)
class Known:
    """What is known of a model and its clips beside the weights; None: not known.

    Attributes:
        num_frames: frames per clip, in the order of the mask tokens.
        generation: 1 (a sine-cosine table) or 2 (rotary positions).
        by: who knows generation and clip, for the report.
        positions: of a model with a config; otherwise the generation's.
        uniform_power: of such a model, in the first generation.
        pace: of our own exports, see `WeightFile`.
    """

    heads: int | None = None
    predictor_heads: int | None = None
    crop_size: int | None = None
    num_frames: tuple[int, ...] | None = None
    generation: Generation | None = None
    by: str = "the options given"
    positions: Literal["sincos", "rope_tiled", "rope"] | None = None
    uniform_power: bool = True
    pace: dict[str, float] | None = None


def weight_file(path: Path, kind: Kind, named: Named, known: Known) -> WeightFile:
    """Check all weights, and find the model that they belong to.

    Raises:
        UserError: they are of another model, incomplete, contradict each other or what is known, or
            something is not known.
    """
    parts = {part: weights for part, weights in named.parts.items() if weights}
    encoder = require_this_kind(path, parts)
    shape = encoder_shape(path, encoder, parts[encoder])
    width = shape["width"]
    narrow = predictor_shape(path, parts["predictor"]) if "predictor" in parts else None
    table = named.tables.get(encoder)
    generation, by = _generation(path, width, narrow, known, has_table=bool(named.tables))
    recognized = {"generation": f"{generation}, by {by}"}
    first = generation == 1

    clip = None
    if table is not None:
        clip = clip_of_table(table, width, shape["patch_size"], shape["tubelet_size"])
    if first and named.tables:
        clip = _first_clip(path, named, known, clip, shape)
        recognized["clip"] = "its position table"
    heads = known.heads or ENCODER_HEADS.get(width)
    predictor_heads = known.predictor_heads
    if narrow is None:
        narrow = _NO_PREDICTOR
        fits = first and heads and narrow["width"] % heads == 0
        predictor_heads = predictor_heads or (heads if fits else PREDICTOR_HEADS[narrow["width"]])
    elif predictor_heads is None:
        predictor_heads = heads if first else PREDICTOR_HEADS.get(narrow["width"])
    crop_size = known.crop_size or (clip and clip.crop_size)
    num_frames = known.num_frames or (clip and clip.num_frames)
    _require_known(
        path,
        {
            "--heads": heads,
            "--predictor-heads": predictor_heads or (first and heads is None),  # follows from heads
            "--crop-size": crop_size,
            "--num-frames": num_frames,
        },
    )
    assert heads and predictor_heads and crop_size and num_frames
    if "clip" not in recognized:
        all_known = known.crop_size and known.num_frames
        recognized["clip"] = (
            known.by if all_known else "a position table that the model does not use"
        )
    require_tokens(path, crop_size, num_frames, shape["patch_size"], shape["tubelet_size"])
    _require_divisor(path, "--heads", "encoder", width, heads)
    if "predictor" in parts:
        _require_divisor(path, "--predictor-heads", "predictor", narrow["width"], predictor_heads)
        tokens = _by_length(path, parts["predictor"]["mask_tokens"], num_frames)
        parts["predictor"] = parts["predictor"] | {"mask_tokens": tokens}
    model = {
        "encoder": {
            "width": width,
            "depth": shape["depth"],
            "heads": heads,
            "mlp_ratio": shape["hidden"] / width,
        },
        "patch_size": shape["patch_size"],
        "tubelet_size": shape["tubelet_size"],
        "positions": known.positions or ("sincos" if first else "rope_tiled"),
        "uniform_power": clip.uniform_power if first and clip else known.uniform_power,
        "predictor": {
            "width": narrow["width"],
            "depth": narrow["depth"],
            "heads": predictor_heads,
        },
        "mask_tokens": "per_spec" if first else "shared",
        "depth_scaled_init": not first,
    }
    parts = require_exactly(path, parts, model, narrow["mask_tokens"])
    return WeightFile(
        path=path,
        kind=kind,
        generation=generation,
        model=model,
        num_frames=tuple(sorted(num_frames)),
        crop_size=crop_size,
        pace=known.pace or PUBLISHED_PACE[generation],
        parts=parts,
        left_out={
            name: UNUSED_TABLE if reason == TABLE and not first else reason
            for name, reason in named.left_out.items()
        },
        recognized=recognized,
    )


def _generation(
    path: Path, width: int, predictor: dict[str, int] | None, known: Known, *, has_table: bool
) -> tuple[Generation, str]:
    """The generation, and by what it is recognized."""
    if known.generation is not None:
        return known.generation, known.by
    if not has_table:
        return 2, "the absence of a position table"
    if width in _SECOND_WIDTHS:
        return 2, f"the width {width} (its position table is not used)"
    if predictor is None:
        raise UserError(
            f"{path}: found an encoder with a position table and no predictor, which is of either "
            "generation, since released V-JEPA 2 files hold a table that is not used, expected "
            "--generation; give 1 for V-JEPA, 2 for V-JEPA 2"
        )
    if predictor["mask_tokens"] == _SECOND_MASK_TOKENS:
        return 2, f"{_SECOND_MASK_TOKENS} mask tokens (its position table is not used)"
    return 1, f"a position table and {predictor['mask_tokens']} mask tokens"


def _first_clip(
    path: Path, named: Named, known: Known, clip: Clip | None, shape: dict[str, int]
) -> Clip:
    """The clip of the tables that the first generation adds to its tokens."""
    without = [part for part, found in named.parts.items() if found and part not in named.tables]
    if without:
        raise UserError(
            f"{path}: found a position table in the {' and the '.join(named.tables)} and none in "
            f"the {' and the '.join(without)}, expected it in every part; {ANOTHER}"
        )
    if clip is None:
        name = next(iter(named.tables.values())).name
        raise UserError(
            f"{path}: found a position table {name} that is learned, interpolated or not of square "
            "clips, expected the fixed sine-cosine table of V-JEPA; give the file as its training "
            "wrote it, or --generation 2 if it has rotary positions"
        )
    if len(known.num_frames or ()) > 1:
        raise UserError(
            f"--num-frames: found {len(known.num_frames or ())} lengths, expected one, since "
            f"{path} is of the first generation, whose mask tokens belong to mask specs; leave it "
            "out"
        )
    for flag, said, has in (
        ("--crop-size", (known.crop_size,), (clip.crop_size,)),
        ("--num-frames", known.num_frames or (None,), clip.num_frames),
    ):
        if said not in ((None,), has):
            raise UserError(
                f"{flag}: found {said[0]}, expected {has[0]}, since {path} has the position table "
                "of such clips; leave it out (continued training may set another one)"
            )
    side = clip.crop_size // shape["patch_size"]
    grid = (clip.num_frames[0] // shape["tubelet_size"], side, side)
    for part, table in named.tables.items():
        norm = named.parts[part].get("norm.weight")
        width = norm.shape[0] if norm and norm.shape else 0
        require_table(table, width, grid, clip.uniform_power)
    return clip


def _require_known(path: Path, values: dict[str, object]) -> None:
    """Ask for all that is not known at once."""
    missing = [flag for flag, value in values.items() if not value]
    if not missing:
        return
    hint = f" ({_RELEASED})" if "--crop-size" in missing else ""
    hidden = " or ".join(_MEANING[flag] for flag in missing)
    raise UserError(
        f"{path}: found weights that do not show {hidden}, "
        f"expected {' '.join(missing)}; give what they were trained with{hint}"
    )


def require_agreement(source: Path, known: Known, told: Mapping[str, Any]) -> None:
    """What the user says of a model agrees with its config.

    Args:
        source: the config's file.
        known: what the user says.
        told: what the config says, by the names of `Known`.

    Raises:
        UserError: they differ.
    """
    for name, value in told.items():
        said = getattr(known, name)
        if value is not None and said not in (None, value):
            pair = (",".join(map(str, x)) if isinstance(x, tuple) else x for x in (said, value))
            found, expected = pair
            raise UserError(
                f"--{name.replace('_', '-')}: found {found}, expected {expected}, as {source} "
                "says; leave it out"
            )


def _require_divisor(path: Path, flag: str, part: str, width: int, heads: int) -> None:
    if width % heads:
        raise UserError(
            f"{flag}: found {heads} heads, expected a divisor of {width}, the width of the {part} "
            f"in {path}; give the number that it was trained with"
        )


def _by_length(path: Path, tokens: Weight, lengths: tuple[int, ...]) -> Weight:
    """Mask tokens, of which token i is that of clips of lengths[i], by ascending length."""
    if tokens.shape[0] < len(lengths):
        raise UserError(
            f"--num-frames: found {len(lengths)} lengths, expected at most {tokens.shape[0]}, the "
            f"number of mask tokens in {path}; give the lengths that it was trained on"
        )
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    order += range(len(lengths), tokens.shape[0])
    if order == sorted(order):
        return tokens
    if len(tokens.pieces) == len(order):
        return replace(tokens, pieces=tuple(tokens.pieces[i] for i in order))
    return replace(tokens, pieces=(lambda: tokens.read()[order],))


def told_pace(path: Path, pace: object) -> dict[str, float] | None:
    """The pace that a file of ours tells, or None if it tells none.

    Raises:
        UserError: it is none.
    """
    if pace is None:
        return None
    known = isinstance(pace, dict) and len(pace) == 1 and {*pace} <= {"frame_step", "fps"}
    value = next(iter(pace.values())) if known else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UserError(
            f"{path}: found the pace {pace!r}, expected a frame_step or fps above 0; export it "
            "again"
        )
    return dict(pace)
