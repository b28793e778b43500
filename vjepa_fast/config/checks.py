"""What must fit together between the keys of a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vjepa_fast.errors import UserError

if TYPE_CHECKING:
    from vjepa_fast.config.schema import Config


def divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def nearest(candidates: list[int], wanted: int) -> int:
    return min(candidates, key=lambda candidate: (abs(candidate - wanted), candidate))


def _multiple(number: int, of: int) -> int:
    """The multiple of `of` nearest to `number`, at least one."""
    return max(1, round(number / of)) * of


def check_combinations(config: Config) -> None:
    """Raises UserError for keys that are fine one by one but impossible together."""
    _check_grid(config)
    _check_widths(config)
    _check_batch(config)
    _check_masks(config)
    _check_manifests(config)
    _check_recomputation(config)
    _check_teacher(config)
    _check_zero(config)


def _check_recomputation(config: Config) -> None:
    if config.compile and config.activation_checkpointing == "selective":
        raise UserError(
            "activation_checkpointing: found selective with compile, expected none or full: the "
            "compiler itself computes norms and GELU again; set it to none"
        )


def _check_zero(config: Config) -> None:
    zero = config.zero
    if zero.offload_parameters and zero.stage != 3:
        raise UserError(
            f"zero.offload_parameters: found true at zero.stage {zero.stage}, expected it at stage "
            "3 alone, which shards the weights; set zero.stage to 3, or this to false"
        )
    if zero.offload_optimizer and not zero.stage:
        raise UserError(
            "zero.offload_optimizer: found true at zero.stage 0, expected stage 1, 2 or 3, which "
            "keep masters apart from the weights; set zero.stage to 1, or this to false"
        )
    if config.compile and zero.stage == 3:
        raise UserError(
            "zero.stage: found 3 with compile, expected 0, 1 or 2: gathering weights as they are "
            "used breaks the compiled blocks apart; set zero.stage to 2 or compile to false"
        )


def _check_teacher(config: Config) -> None:
    mode, checkpoint = config.teacher.mode, config.teacher.checkpoint
    if (mode == "frozen") != (checkpoint is not None):
        expected = "a run or a checkpoint folder" if mode == "frozen" else "null"
        raise UserError(
            f"teacher.checkpoint: found {'null' if checkpoint is None else checkpoint} with "
            f"teacher.mode {mode}, expected {expected}; a frozen target encoder comes from a "
            "checkpoint, an averaged one starts as the encoder"
        )


def _check_grid(config: Config) -> None:
    for key, size, part_key, part in (
        ("data.crop_size", config.data.crop_size, "model.patch_size", config.model.patch_size),
        (
            "data.num_frames",
            config.data.num_frames,
            "model.tubelet_size",
            config.model.tubelet_size,
        ),
    ):
        if size % part:
            raise UserError(
                f"{key}: found {size}, expected a multiple of {part_key} {part}; choose e.g. "
                f"{_multiple(size, part)}"
            )


def _check_widths(config: Config) -> None:
    encoder, predictor = config.model.encoder, config.model.predictor
    for key, width, heads in (
        ("model.encoder", encoder.width, encoder.heads),
        ("model.predictor", predictor.width, config.predictor_heads),
    ):
        if width % heads:
            raise UserError(
                f"{key}.width: found {width}, expected a multiple of its {heads} heads; choose "
                f"e.g. {_multiple(width, heads)}, or set {key}.heads to "
                f"{nearest(divisors(width), heads)}"
            )
        # The table holds sine and cosine pairs for three axes. Equal shares are rounded up to pairs
        # and the last axis takes what is left; otherwise time has half, the others a quarter each.
        if config.model.uniform_power and (width % 2 or width < 10):
            raise UserError(
                f"{key}.width: found {width}, expected an even number of at least 10, so that each "
                f"of the three position axes has a share; choose e.g. {max(12, width + 1)}"
            )
        if not config.model.uniform_power and width % 8:
            raise UserError(
                f"{key}.width: found {width}, expected a multiple of 8, which the position table "
                f"needs when model.uniform_power is false; choose e.g. {_multiple(width, 8)}"
            )
    if not (encoder.width * encoder.mlp_ratio).is_integer():
        raise UserError(
            f"model.encoder.mlp_ratio: found {encoder.mlp_ratio}, expected a whole hidden width "
            f"from model.encoder.width {encoder.width}; choose e.g. "
            f"{max(1, round(encoder.mlp_ratio))}"
        )


def fits_group(config: Config, micro_batch: int) -> bool:
    """Whether the groups of clips that are cut together fall evenly on micro-batches."""
    group = config.masks.truncate_group
    return config.masks.truncate == "none" or micro_batch % group == 0 or group % micro_batch == 0


def _check_batch(config: Config) -> None:
    total, micro = config.optim.global_batch, config.optim.micro_batch
    group = config.masks.truncate_group
    grouped = config.masks.truncate != "none"
    choices = divisors(total)
    if grouped and total % group == 0:
        choices = [divisor for divisor in choices if fits_group(config, divisor)]
    if total % micro:
        raise UserError(
            f"optim.micro_batch: {micro} does not divide optim.global_batch {total}; choose a "
            f"divisor, e.g. {nearest(choices, micro)}"
        )
    if grouped and total % group:
        raise UserError(
            f"masks.truncate_group: {group} does not divide optim.global_batch {total}; choose a "
            f'divisor, e.g. {nearest(divisors(total), group)}, or set masks.truncate to "none"'
        )
    if not fits_group(config, micro):
        raise UserError(
            f"optim.micro_batch: {micro} is neither a multiple nor a divisor of "
            f"masks.truncate_group {group}; choose e.g. {nearest(choices, micro)}"
        )


def _check_masks(config: Config) -> None:
    for index, spec in enumerate(config.masks.specs):
        try:
            spec.spec().check(config.grid)
        except ValueError as error:
            raise UserError(f"masks.specs[{index}]: {error}") from None
    try:
        config.masks.sampler(config.grid, config.seed)
    except ValueError as error:
        raise UserError(f"masks: {error}") from None


def _check_manifests(config: Config) -> None:
    weights, manifests = config.data.weights, config.data.manifests
    if weights is not None and len(weights) != len(manifests):
        raise UserError(
            f"data.weights: found a list of {len(weights)}, expected one weight for each of the "
            f"data.manifests ({len(manifests)}); add or remove weights, or write null"
        )
