"""Gate files: bounds on the metrics of a report, in TOML."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mcpmq.errors import GateError
from mcpmq.system.text_file import read_toml

GATE_HINT = "an example of a gate: [original.image] and, on the next line, kl_divergence = { at_most = 0.01 }"
ARTIFACT = "artifact"  # the group of sizes and memory, which no samples have


class Bound(BaseModel):
    """The upper limit, the lower limit, or both limits of a metric.

    `on` selects the value, or the low or high end of its 95 % interval. With the unfavorable end a small difference
    must be significant to pass; with the favorable end a large difference must be significant to fail.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    at_most: float | None = None
    at_least: float | None = None
    on: Literal["value", "low", "high"] = "value"

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("neither `at_most` nor `at_least`")
        return self

    def __str__(self) -> str:
        least = [] if self.at_least is None else [f"at least {self.at_least:g}"]
        most = [] if self.at_most is None else [f"at most {self.at_most:g}"]
        return " and ".join(least + most)

    def holds(self, value: float) -> bool:
        """Return whether a value is within the limits; NaN is not."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


Bounds = dict[str, dict[str, Bound]]  # by group of samples, or ARTIFACT, and metric


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
            GateError: the file is missing, is not valid TOML, or has an invalid bound or none.
        """
        content = read_toml(file, GateError, GATE_HINT)
        try:
            gate = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise GateError(f"`{file}`: {field}: {first['msg']}", GATE_HINT) from error
        if not any(bounds for groups in (gate.original, gate.baseline) for bounds in groups.values()):
            raise GateError(f"`{file}` has no bounds", "add at least one bound")
        return gate
