"""A study: a JSON file that says which runs differ in what, and how they are probed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from vjepa_fast.config.fields import Count, FieldError, Location, Section
from vjepa_fast.config.load import read_json_object
from vjepa_fast.config.messages import sentence
from vjepa_fast.errors import UserError

FOLDER = Path("configs/studies")
_NAME = re.compile(r"\w[\w.+-]*")
_RUN_OF = re.compile(r"\{([\w.+-]+)\}")
Text = Annotated[str, Field(min_length=1)]


class Axis(Section):
    """What the variants differ in, where it is a number: the picture's horizontal axis."""

    name: Text
    """The axis' label."""
    values: dict[str, float]
    """The number of each variant."""
    log: bool = False
    """Whether the axis is logarithmic."""


class Study(Section):
    """A question, the runs that answer it, and the probes that compare them."""

    title: Text
    """Heading of the page."""
    question: Text
    """What is asked, in a sentence or two."""
    paper: Text
    """What a publication found, with its figures and where they are."""
    config: Location
    """The config of all runs."""
    set: list[str] = Field(default=[])
    """Settings of all runs, key=value as for --set."""
    variants: dict[str, list[str]] = Field(min_length=1)
    """The settings of each variant. {NAME} in them is the run folder of the variant NAME with the
    same seed, which is trained first."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(default=[0, 1, 2], min_length=1)
    """Each variant is trained with each seed."""
    probes: dict[str, list[str]] = Field(min_length=1)
    """Options of `vjepa-fast probe`, by a name of each probe."""
    probe_every: Count | None = None
    """Steps between checkpoints that are probed; null: only the last one is."""
    baselines: list[Text] = Field(default=[])
    """What is probed beside the runs of the first variant, as --baselines has it."""
    axis: Axis | None = None
    """The numbers that the variants stand for; null: they are names."""
    reading: list[Text] = Field(default=[])
    """What the results say, written after they were seen: a sentence each."""

    @field_validator("variants", "probes")
    @classmethod
    def _names(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"found the name {name!r}, which becomes a folder's, expected letters, digits "
                    "and, not first, . + -; rename it"
                )
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.axis and self.axis.values.keys() != self.variants.keys():
            raise FieldError(
                "axis.values",
                f"found {', '.join(self.axis.values)}, expected a number for each of "
                f"{', '.join(self.variants)}; add or remove some",
            )
        for name in self.variants:
            self.order_of(name)
        return self

    def needs(self, variant: str) -> list[str]:
        """The variants whose runs a variant's settings name."""
        named = _RUN_OF.findall(" ".join(self.variants[variant]))
        return list(dict.fromkeys(named))

    def order_of(self, variant: str, waiting: tuple[str, ...] = ()) -> list[str]:
        """The variant after those that it needs.

        Raises:
            FieldError: it needs an unknown variant, or itself.
        """
        found: list[str] = []
        for other in self.needs(variant):
            if other not in self.variants or other in (variant, *waiting):
                raise FieldError(
                    "variants",
                    f"found {{{other}}} in {variant}, expected another variant's name that does "
                    f"not need {variant}; name one of {', '.join(self.variants)}",
                )
            found += self.order_of(other, (*waiting, variant))
        return list(dict.fromkeys([*found, variant]))

    def settings(self, variant: str, runs: dict[str, Path]) -> list[str]:
        """The --set options of a variant's run, given the folders of the runs that it needs."""
        own = [_RUN_OF.sub(lambda m: str(runs[m[1]]), text) for text in self.variants[variant]]
        return [*self.set, *own]


def read_study(name: str) -> tuple[str, Study]:
    """Read a study.

    Args:
        name: of a file in `FOLDER`, without .json; or the path of a JSON file.

    Returns:
        Its name, that of the file, and the study.

    Raises:
        UserError: no such file, or a mistake in it.
    """
    path = Path(name)
    if path.suffix != ".json":
        path = FOLDER / f"{name}.json"
        if not path.exists():
            known = sorted(file.stem for file in FOLDER.glob("*.json"))
            raise UserError(
                f"STUDY: found {name}, but no {path}, expected one of {', '.join(known) or 'none'} "
                "or the path of a JSON file; name one"
            )
    try:
        return path.stem, Study.model_validate(read_json_object(path))
    except ValidationError as error:
        raise sentence(error, Study) from None
