"""The model section of a config: the shapes of encoder and predictor."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from vjepa_fast.config.fields import (
    Count,
    FieldError,
    Positive,
    Section,
    divisors,
    multiple,
    nearest,
    show,
)


@dataclass(frozen=True)
class EncoderPreset:
    """Size of a vision transformer; its MLP is `mlp_ratio` times as wide as its tokens."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


ENCODER_PRESETS: dict[str, EncoderPreset] = {
    "vit_tiny": EncoderPreset(width=192, depth=12, heads=3),
    "vit_small": EncoderPreset(width=384, depth=12, heads=6),
    "vit_base": EncoderPreset(width=768, depth=12, heads=12),
    "vit_large": EncoderPreset(width=1024, depth=24, heads=16),
    "vit_huge": EncoderPreset(width=1280, depth=32, heads=16),
    "vit_giant": EncoderPreset(width=1408, depth=40, heads=22, mlp_ratio=48 / 11),
    "vit_gigantic": EncoderPreset(width=1664, depth=48, heads=26, mlp_ratio=64 / 13),
}


def _check_heads(width: int, heads: int, key: str) -> None:
    if width % heads:
        raise FieldError(
            "width",
            f"found {width}, expected a multiple of its {heads} heads; choose e.g. "
            f"{multiple(width, heads)}, or set {key}.heads to {nearest(divisors(width), heads)}",
        )


class EncoderConfig(Section):
    """The shape of the encoder, and of the target encoder."""

    width: Count = Field(examples=[1024])
    """Features of a token."""
    depth: Count = Field(examples=[24])
    """Number of transformer blocks."""
    heads: Count = Field(examples=[16])
    """Number of attention heads, a divisor of the width."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the MLP divided by the width."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_heads(self.width, self.heads, "model.encoder")
        hidden = self.width * self.mlp_ratio
        if abs(hidden - round(hidden)) > 1e-6 * hidden:  # a ratio as 48/11 has no exact float
            raise FieldError(
                "mlp_ratio",
                f"found {self.mlp_ratio}, expected a whole hidden width from model.encoder.width "
                f"{self.width}; choose e.g. {max(1, round(self.mlp_ratio))}",
            )
        return self


def _preset_shape(value: Any) -> Any:
    """Replace a preset's name by its shape; leave anything else for EncoderConfig to check."""
    if not isinstance(value, str):
        return value
    if value not in ENCODER_PRESETS:
        raise ValueError(
            f"found {show(value)}, expected one of {', '.join(ENCODER_PRESETS)} or an object; "
            'write e.g. "vit_large" or {"width": 1024, "depth": 24, "heads": 16}'
        )
    return dict(vars(ENCODER_PRESETS[value]))


class PredictorConfig(Section):
    """The shape of the predictor, a narrow transformer."""

    width: Count = 384
    """Features of a token inside the predictor."""
    depth: Count = 12
    """Number of transformer blocks."""
    heads: Count | None = None
    """Number of attention heads; null: as many as the encoder has."""


class ModelConfig(Section):
    """Encoder, predictor, and how a clip becomes tokens."""

    encoder: Annotated[EncoderConfig, BeforeValidator(_preset_shape)] = Field(
        examples=["vit_large"]
    )
    """The encoder's shape: an object, or vit_tiny, vit_small, vit_base, vit_large, vit_huge,
    vit_giant or vit_gigantic."""
    patch_size: Count = 16
    """Height and width of a patch, in pixels."""
    tubelet_size: Count = 2
    """Frames per tubelet. A token is a tubelet of patch_size x patch_size pixels."""
    positions: Literal["sincos", "rope_tiled", "rope"] = "sincos"
    """How encoder and predictor know a token's place. sincos: a fixed table is added to the tokens
    (V-JEPA); rope_tiled: queries and keys are rotated in every block as in the released V-JEPA 2,
    whose tiled angles are not a true rotation; rope: the true rotation, for new runs."""
    uniform_power: bool = True
    """Features of the sincos table. true: time, height and width have equal fractions; false: time
    has half, height and width a quarter each."""
    predictor: PredictorConfig = PredictorConfig()
    """The predictor's shape."""
    mask_tokens: Literal["per_spec", "shared"] = "per_spec"
    """per_spec: the predictor has one mask token for each mask spec (V-JEPA); shared: one for each
    length of a clip, shared by all specs (V-JEPA 2)."""
    depth_scaled_init: bool = False
    """Divide the initial output projections of block l = 1, 2, … by sqrt(2 l). V-JEPA was trained
    without it, V-JEPA 2 with it."""

    @property
    def predictor_heads(self) -> int:
        """Attention heads of the predictor, by default as many as the encoder has."""
        return self.predictor.heads or self.encoder.heads

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_positions("encoder", self.encoder.width, self.encoder.heads)
        try:
            _check_heads(self.predictor.width, self.predictor_heads, "model.predictor")
        except FieldError as error:
            raise FieldError(f"predictor.{error.key}", str(error)) from None
        self._check_positions("predictor", self.predictor.width, self.predictor_heads)
        return self

    def _check_positions(self, network: str, width: int, heads: int) -> None:
        """Check that the width holds pairs of features for each of the three position axes.

        Rotary positions need a pair for each axis in every head. Of the sine-cosine table each axis
        has a third of the width, rounded up to pairs, and the last axis the rest; without
        uniform_power, time has half of the width, and height and width a quarter each.
        """
        if self.positions != "sincos":
            if width // heads < 6:
                raise FieldError(
                    f"{network}.heads",
                    f"found {heads} for the width {width}, expected heads of at least 6 features, "
                    f"a pair for each axis of positions {self.positions}; choose e.g. "
                    f"{max(d for d in divisors(width) if width // d >= min(6, width))}",
                )
            return
        if self.uniform_power and (width % 2 or width < 10):
            raise FieldError(
                f"{network}.width",
                f"found {width}, expected an even number of at least 10, so that each of the three "
                f"position axes has features; choose e.g. {max(12, width + 1)}",
            )
        if not self.uniform_power and width % 8:
            raise FieldError(
                f"{network}.width",
                f"found {width}, expected a multiple of 8, which the position table needs when "
                f"model.uniform_power is false; choose e.g. {multiple(width, 8)}",
            )
