"""The gate file: bounds on metrics of a report, in TOML."""

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mcpmq.errors import GateError

ARTIFACT = "artifact"  # the table for what is no matter of one kind of sample: sizes and memory


class Bound(BaseModel):
    """What a metric may be: at most, at least, or both.

    `on` says what is held against it: the value itself, or an end of its 95 % interval. The unfavourable end demands
    that a difference is proved to be small, the favourable one complains only of what is proved to be large.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    at_most: float | None = None
    at_least: float | None = None
    on: Literal["value", "low", "high"] = "value"

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("neither `at_most` nor `at_least`")
        return self

    def __str__(self) -> str:
        least = [] if self.at_least is None else [f"at least {self.at_least:g}"]
        most = [] if self.at_most is None else [f"at most {self.at_most:g}"]
        return " and ".join(least + most)

    def holds(self, value: float) -> bool:
        """Whether a value is within; what is not a number is not."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


Bounds = dict[str, dict[str, Bound]]  # of every kind of sample, or of ARTIFACT, by metric


class Gate(BaseModel):
    """Allowed differences from the original, and from the same artifact in a baseline report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifacts: str = "*"  # glob over names such as `gguf phone-int4`
    original: Bounds = {}
    baseline: Bounds = {}

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a gate file.

        Raises:
            GateError: it is missing, no TOML, or says something that is no bound.
        """
        try:
            gate = cls.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise GateError(f"`{file}` cannot be read: {error}", "see the README for how a gate is written") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise GateError(f"`{file}`: {where}: {first['msg']}", "see the README for how a gate is written") from error
        if not any(bounds for kinds in (gate.original, gate.baseline) for bounds in kinds.values()):
            raise GateError(f"`{file}` bounds nothing", "a gate that allows everything is none")
        return gate
