"""Sweep files: checkpoints, recipes, formats and sample sets whose combinations are the cells of a sweep, in TOML."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mcpmq.artifact import FormatName
from mcpmq.errors import SweepError
from mcpmq.system.text_file import read_toml

SWEEP_HINT = (
    'an example of a sweep: checkpoints = "model", recipes = ["phone-int4", "phone-int8"], formats = ["gguf", "onnx"]'
    ' and eval_set = "heldout", on a line each'
)


def _listed(value: Any) -> Any:
    """Return one value as a list of it."""
    return value if isinstance(value, list | tuple) else [value]


Texts = Annotated[tuple[str, ...], BeforeValidator(lambda value: tuple(_listed(value)))]
Counts = Annotated[
    tuple[Annotated[int, Field(ge=0, strict=True)], ...], BeforeValidator(lambda value: tuple(_listed(value)))
]


@dataclass(frozen=True, slots=True)
class Combination:
    """The inputs of one cell, as they are in the file; `samples` is the number of calibration samples, None for all."""

    checkpoint: str
    recipe: str
    format: FormatName
    calibration: str | None
    samples: int | None
    seed: int


class SweepFile(BaseModel):
    """The axes of a sweep, and the sets and gates that all cells share.

    Paths are relative to the folder of the file; a name without such a path is a built-in recipe or a hub id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoints: Texts = Field(min_length=1)
    recipes: Texts = Field(min_length=1)
    formats: Annotated[tuple[FormatName, ...], BeforeValidator(lambda value: tuple(_listed(value)))] = Field(
        min_length=1
    )
    eval_set: str
    eval_samples: Annotated[int, Field(ge=1, strict=True)] | None = None
    calibration: Texts = ()
    samples: Counts = ()  # numbers of calibration samples to draw
    seeds: Counts = ()  # of the draws
    gates: Texts = ()
    baseline: str | None = None  # a report, for the gates

    @model_validator(mode="after")
    def _check_draws(self) -> Self:
        if self.seeds and not self.samples:
            raise ValueError("`seeds` select which samples are drawn, and `samples` is missing")
        if 0 in self.samples:
            raise ValueError("`samples` has 0")
        if (self.samples or self.seeds) and not self.calibration:
            raise ValueError("`samples` are drawn from a calibration set, and `calibration` is missing")
        if self.baseline and not self.gates:
            raise ValueError("`baseline` is for gates, and `gates` is missing")
        return self

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a sweep file; its paths are absolute in the result.

        Raises:
            SweepError: the file is missing, not valid TOML, or has an invalid or missing key.
        """
        content = read_toml(file, SweepError, SWEEP_HINT)
        try:
            return cls.model_validate(content)._relative_to(file.absolute().parent)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise SweepError(f"`{file}`: {key}{': ' if key else ''}{first['msg']}", SWEEP_HINT) from error

    def combinations(self) -> Iterator[Combination]:
        """Yield all combinations, those of one checkpoint and recipe together."""
        draws = [
            (one, count, seed)
            for one in self.calibration or (None,)
            for count in self.samples or (None,)
            for seed in self.seeds or (0,)
        ]
        for checkpoint, recipe, (calibration, count, seed), name in product(
            self.checkpoints, self.recipes, draws, self.formats
        ):
            yield Combination(checkpoint, recipe, name, calibration, count, seed)

    def _relative_to(self, folder: Path) -> Self:
        def located(name: str) -> str:
            return str(folder / name) if (folder / name).exists() else name

        paths = {
            key: tuple(map(located, getattr(self, key))) for key in ("checkpoints", "recipes", "calibration", "gates")
        }
        baseline = self.baseline and located(self.baseline)
        return self.model_copy(update={**paths, "eval_set": located(self.eval_set), "baseline": baseline})
