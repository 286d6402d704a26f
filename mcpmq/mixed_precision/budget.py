"""The limits of a search, and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.estimate.forecast import FormatEstimate
from mcpmq.mixed_precision.knapsack import Option
from mcpmq.recipe import Recipe, to_toml
from mcpmq.system.durable_file import write_durably
from mcpmq.system.output import output_errors
from mcpmq.system.table import Row, Table, format_megabytes

SCORE_NOTE = (
    "The rank score orders recipes of one model and one calibration set; it is not a forecast of the KL divergence."
)


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of an artifact: bytes of its files, or bytes of device memory with a context of this many tokens."""

    file_nbytes: int | None = None
    memory_nbytes: int | None = None
    context: int = 4096
    sequential: bool = False  # the vision encoder is freed before the language model loads

    @property
    def label(self) -> str:
        """The part of a recipe's name for this budget."""
        return f"{self.file_nbytes or self.memory_nbytes}-bytes"

    def __str__(self) -> str:
        limits = []
        if self.file_nbytes is not None:
            limits.append(f"{self.file_nbytes:,} bytes of files")
        if self.memory_nbytes is not None:
            freed = ", with vision freed before the language model loads" if self.sequential else ""
            limits.append(f"{self.memory_nbytes:,} bytes of memory at a context of {self.context:,} tokens{freed}")
        return " and ".join(limits)

    def usage(self, estimate: FormatEstimate) -> dict[str, tuple[int, int]]:
        """Return the limit and the estimated use in bytes of every limited resource, `file size` and `memory`."""
        device, usage = estimate.device, {}
        if self.file_nbytes is not None:
            usage["file size"] = self.file_nbytes, estimate.nbytes
        if self.memory_nbytes is not None:
            nbytes = device.sequential_nbytes if self.sequential else device.concurrent_nbytes
            usage["memory"] = self.memory_nbytes, nbytes
        return usage

    def excess_nbytes(self, estimate: FormatEstimate) -> int:
        """Return the bytes above the tightest limit; negative below it."""
        return max(used - limit for limit, used in self.usage(estimate).values())


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The recipe of a search with its size and score.

    `options` are by weight, with the numbers of layers after a removal, and `comments` by glob.
    """

    recipe: Recipe
    estimate: FormatEstimate
    options: Mapping[str, Option]
    comments: Mapping[str, Sequence[str]]
    removed: tuple[str, ...] = ()  # layers of the original

    @property
    def rank_score(self) -> float:
        """The sum of the estimated losses of all weights: a smaller score predicts a smaller mean KLD.

        Scores order the recipes of one model and one calibration set. The measured KLD is larger, by factors of 2 to
        20 on the reference checkpoint, because errors of different weights add up and engines add their own.
        """
        return sum(option.loss for option in self.options.values())

    def to_toml(self) -> str:
        """Return the text of the recipe file."""
        return to_toml(self.recipe.to_dict(), self.comments)

    def write(self, out: Path) -> None:
        """Write the recipe file.

        Raises:
            OutputError: the file cannot be written.
        """
        with output_errors(out):
            write_durably(out, self.to_toml())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the result."""
        return {
            "recipe": self.recipe.to_dict(),
            "nbytes": self.estimate.nbytes,
            "rank_score": self.rank_score,
            "removed": list(self.removed),
            "weights": {name: {"scheme": one.scheme, "rank_score": one.loss} for name, one in self.options.items()},
        }

    def to_table(self) -> Table:
        """Return a table with a row for every component."""
        rows: list[Row] = []
        for part in self.estimate.components:
            loss = sum(one.loss for name, one in self.options.items() if name.partition(".")[0] == part.component)
            share = loss / self.rank_score if self.rank_score else 0.0
            cells = [format_megabytes(part.nbytes), f"{part.bits_per_weight:.2f}", f"{share:.0%}"]
            rows.append((part.component, cells))
        rows.append(("all files", [format_megabytes(self.estimate.nbytes), "", ""]))
        notes = [f"rank score, predicted: {self.rank_score:.2g}. {SCORE_NOTE}"]
        notes += [f"layers: {self.recipe.layers}"] if self.recipe.layers else []
        return Table(f"recipe {self.recipe.name}", ["size", "bits per weight", "share of score"], rows, notes)
