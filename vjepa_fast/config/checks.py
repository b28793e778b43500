"""Checks of a config that involve more than one section."""

from __future__ import annotations

from vjepa_fast.config.fields import divisors, multiple, nearest
from vjepa_fast.config.schema import Config
from vjepa_fast.errors import UserError

_WHY_GROUPS = "whose clips have one length, since data.manifests have several"


def check_config(config: Config) -> None:
    """Check what the sections cannot check alone.

    Raises:
        UserError: keys that are valid one by one but impossible together.
    """
    _check_grid(config)
    _check_batch(config)
    _check_masks(config)
    check_compile(config.compile, config.activation_checkpointing, config.zero.stage)
    _check_probe(config)
    _check_objective(config)


def fits_group(config: Config, micro_batch: int) -> bool:
    """Whether one of truncation group and micro-batch is a multiple of the other; with clips of
    several lengths, whether the group is a multiple of the micro-batch, which then has one length.
    """
    group = config.masks.truncate_group
    if len(config.data.lengths) > 1:
        return group % micro_batch == 0
    return config.masks.truncate == "none" or micro_batch % group == 0 or group % micro_batch == 0


def _check_grid(config: Config) -> None:
    data, model = config.data, config.model
    frames = [("data.num_frames", data.num_frames)] + [
        (f"data.manifests[{i}].num_frames", manifest.num_frames)
        for i, manifest in enumerate(data.manifests)
        if manifest.num_frames is not None
    ]
    for key, size, part_key, part in (
        ("data.crop_size", data.crop_size, "model.patch_size", model.patch_size),
        *((key, count, "model.tubelet_size", model.tubelet_size) for key, count in frames),
    ):
        if size % part:
            raise UserError(
                f"{key}: found {size}, expected a multiple of {part_key} {part}; choose e.g. "
                f"{multiple(size, part)}"
            )


def _check_batch(config: Config) -> None:
    total, micro = config.optim.global_batch, config.optim.micro_batch
    group = config.masks.truncate_group
    several = len(config.data.lengths) > 1
    grouped = several or config.masks.truncate != "none"
    choices = divisors(total)
    if grouped and total % group == 0:
        choices = [divisor for divisor in choices if fits_group(config, divisor)]
    if total % micro:
        raise UserError(
            f"optim.micro_batch: found {micro}, expected a divisor of optim.global_batch {total}; "
            f"choose e.g. {nearest(choices, micro)}"
        )
    if grouped and total % group:
        raise UserError(
            f"masks.truncate_group: found {group}, expected a divisor of optim.global_batch "
            f"{total}; choose e.g. {nearest(divisors(total), group)}"
            + ("" if several else ', or set masks.truncate to "none"')
        )
    clips = config.data.clips_per_video
    if several and group % clips:
        raise UserError(
            f"data.clips_per_video: found {clips}, expected a divisor of masks.truncate_group "
            f"{group}, {_WHY_GROUPS}; choose e.g. {nearest(divisors(group), clips)}"
        )
    if several and not fits_group(config, micro):
        raise UserError(
            f"optim.micro_batch: found {micro}, expected a divisor of masks.truncate_group "
            f"{group}, {_WHY_GROUPS}; choose e.g. {nearest(choices, micro)}"
        )
    if not fits_group(config, micro):
        raise UserError(
            f"optim.micro_batch: found {micro}, expected a multiple or a divisor of "
            f"masks.truncate_group {group}; choose e.g. {nearest(choices, micro)}"
        )


def _check_masks(config: Config) -> None:
    for num_frames in config.data.lengths:
        try:
            config.masks.sampler(config.grid_of(num_frames), config.seed)
        except ValueError as error:  # its messages begin with the sampler's argument, e.g. specs[0]
            raise UserError(f"masks.{error}") from None


def check_compile(compiled: bool, activation_checkpointing: str, stage: int) -> None:
    """Raise UserError where `compile` is set beside what it does not go with."""
    if compiled and activation_checkpointing == "selective":
        raise UserError(
            "activation_checkpointing: found selective with compile, expected none or full, since "
            "the compiler itself recomputes norms and GELU; set it to none"
        )
    if compiled and stage == 3:
        raise UserError(
            "zero.stage: found 3 with compile, expected 0, 1 or 2, since gathering the weights "
            "layer by layer breaks the compiled graphs; set zero.stage to 2 or compile to false"
        )


def _check_probe(config: Config) -> None:
    if config.log.probe_every and config.result_weights == "master" and config.zero.stage == 3:
        without = "objective pixels"
        if config.objective == "features":
            without = "a frozen target encoder"
        raise UserError(
            f"zero.stage: found 3 with log.probe_every and {without}, expected 0, 1 or 2, since no "
            "process holds the trained encoder as a whole; set zero.stage to 2 or log.probe_every "
            "to null"
        )


def _check_objective(config: Config) -> None:
    if config.objective == "pixels" and config.teacher.mode == "frozen":
        raise UserError(
            "teacher.mode: found frozen with objective pixels, expected no target encoder, since "
            'pixels are predicted; remove the teacher section, or set objective to "features"'
        )
