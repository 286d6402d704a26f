"""What a result must fit, and the best that was found within it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.errors import OutputError
from mcpmq.estimate.forecast import Layout
from mcpmq.mixed_precision.knapsack import Option
from mcpmq.recipe import Recipe, as_toml
from mcpmq.system.table import Row, Table, megabytes


@dataclass(frozen=True, slots=True)
class Budget:
    """What the result must fit: bytes of files, or memory on the device with a context of so many tokens."""

    file_nbytes: int | None = None
    memory_nbytes: int | None = None
    context: int = 4096
    sequential: bool = False  # the vision encoder is released before the language model is loaded

    @property
    def told(self) -> str:
        """For the name of a recipe."""
        return f"{self.file_nbytes or self.memory_nbytes}-bytes"

    def __str__(self) -> str:
        files = [] if self.file_nbytes is None else [f"files of {self.file_nbytes:,} bytes"]
        turns = ", the vision encoder released before the language model is loaded" if self.sequential else ""
        context = f"a context of {self.context:,} tokens{turns}"
        memory = [] if self.memory_nbytes is None else [f"{self.memory_nbytes:,} bytes of memory with {context}"]
        return " and ".join(files + memory)

    def needs(self, layout: Layout) -> dict[str, tuple[int, int]]:
        """Bytes that are allowed and bytes that are taken, of everything that was limited."""
        device, needs = layout.device, {}
        if self.file_nbytes is not None:
            needs["files"] = self.file_nbytes, layout.nbytes
        if self.memory_nbytes is not None:
            needs["memory"] = self.memory_nbytes, device.sequential if self.sequential else device.at_once
        return needs

    def exceeded_by(self, layout: Layout) -> int:
        """Bytes over the tightest limit; negative if it fits."""
        return max(taken - allowed for allowed, taken in self.needs(layout).values())


@dataclass(frozen=True, slots=True)
class Fitted:
    """The mix, what it will weigh, and the divergence that is expected of it: predicted, to be measured."""

    recipe: Recipe
    layout: Layout
    chosen: Mapping[str, Option]
    comments: Mapping[str, Sequence[str]]

    @property
    def loss(self) -> float:
        return sum(option.loss for option in self.chosen.values())

    def toml(self) -> str:
        """The recipe file."""
        return as_toml(self.recipe.written(), self.comments)

    def write(self, out: Path) -> None:
        """Write the recipe file.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            out.write_text(self.toml())
        except OSError as error:
            raise OutputError(f"`{out}` cannot be written: {error.strerror}", "name another file") from error

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "recipe": self.recipe.written(),
            "nbytes": self.layout.nbytes,
            "expected_kl_divergence": self.loss,
            "weights": {name: {"scheme": one.scheme, "expected_loss": one.loss} for name, one in self.chosen.items()},
        }

    def table(self) -> Table:
        """A row for every component."""
        rows: list[Row] = []
        for part in self.layout.parts:
            loss = sum(one.loss for name, one in self.chosen.items() if name.partition(".")[0] == part.component)
            share = loss / self.loss if self.loss else 0.0
            rows.append((part.component, [megabytes(part.nbytes), f"{part.bits:.2f}", f"{share:.0%}"]))
        rows.append(("all files", [megabytes(self.layout.nbytes), "", ""]))
        notes = [f"expected divergence of an answer token, predicted: {self.loss:.2g} nats"]
        return Table(f"recipe {self.recipe.name}", ["size", "bits", "of the expected loss"], rows, notes)
