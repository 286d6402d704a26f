"""Gate files: bounds on the metrics of a report, in TOML."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator

from mcpmq.errors import GateError
from mcpmq.system.text_file import decode_text, read_toml

GATE_HINT = "an example of a gate: [original.image] and, on the next line, kl_divergence = { at_most = 0.01 }"
TABLE_HEADER, KEY = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]"), re.compile(r"\s*([\w.\"'-]+(?:\s*\.\s*[\w\"'-]+)*)\s*=")
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


Reference: TypeAlias = Literal["original", "baseline"]
Bounds = dict[str, dict[str, Bound]]  # by group of samples, or ARTIFACT, and metric


class Gate(BaseModel):
    """Allowed differences from the original, and from the same artifact in a baseline report."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifacts: str = "*"  # glob over names such as `gguf phone-int4`
    original: Bounds = {}
    baseline: Bounds = {}
    _file: Path | None = PrivateAttr(None)
    _lines: dict[tuple[str, ...], int] = PrivateAttr(default_factory=dict)  # by keys from the root

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
        gate._file, gate._lines = file, _key_lines(decode_text(file.read_bytes()))
        return gate

    @property
    def file(self) -> Path | None:
        """The file that the gate was read from."""
        return self._file

    def bounds(self, reference: Reference) -> Iterator[tuple[str, str, Bound]]:
        """Yield group, metric and bound of all bounds against a reference, in the order of the file."""
        for group, by_metric in (self.original if reference == "original" else self.baseline).items():
            yield from ((group, metric, bound) for metric, bound in by_metric.items())

    def line(self, reference: Reference, group: str, metric: str) -> int:
        """Return the line of a bound in the file, or of the innermost table around it."""
        keys = (reference, group, metric)
        return next((self._lines[keys[:end]] for end in (3, 2, 1) if keys[:end] in self._lines), 1)


def _key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the first line of every key of a valid TOML file; keys inside of inline tables have none."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header, key = TABLE_HEADER.match(line), KEY.match(line)
        if header:
            table = _keys(header[1])
        found = table if header else (*table, *_keys(key[1])) if key else ()
        for end in range(1, len(found) + 1):
            lines.setdefault(found[:end], number)
    return lines


def _keys(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
