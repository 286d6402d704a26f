"""The result of a search: a recipe with its size and score, and the best recipes of other limits."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mcpmq.estimate.forecast import FormatEstimate
from mcpmq.mixed_precision.choices import Option
from mcpmq.mixed_precision.compression_cost import Cost
from mcpmq.mixed_precision.front import FrontPoint, front_comments, front_dicts, front_table
from mcpmq.mixed_precision.structure import NOTHING, Chosen
from mcpmq.recipe import Recipe, to_toml
from mcpmq.system.durable_file import write_durably
from mcpmq.system.output import output_errors
from mcpmq.system.table import Row, Table, format_megabytes

SCORE_NOTE = (
    "The rank score orders recipes of one model and one calibration set; it is not a forecast of the KL divergence."
)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The recipe of a search with its size and score.

    `options` are by weight, with the numbers of layers after a removal, and `comments` by glob. `costs` are those of
    the chosen limits of images and vocabulary, by name.
    """

    recipe: Recipe
    estimate: FormatEstimate
    options: Mapping[str, Option]
    comments: Mapping[str, Sequence[str]]
    structure: Chosen = NOTHING
    costs: Mapping[str, Cost] = field(default_factory=dict)
    front: Sequence[FrontPoint] = ()
    resource: str = "file size"  # of the front

    @property
    def removed(self) -> tuple[str, ...]:
        """The removed layers of the original."""
        return self.structure.removed

    @property
    def rank_score(self) -> float:
        """The sum of the estimated losses of all weights and of structured compression: smaller predicts a smaller KLD.

        Scores order the recipes of one model and one calibration set. The measured KLD is larger, by factors of 4 to
        40 on the reference checkpoint, because errors of different weights add up and engines add their own.
        """
        return sum(option.loss for option in self.options.values()) + self.structure.loss

    def to_toml(self) -> str:
        """Return the text of the recipe file."""
        summary = [*self.comments.get("", ()), *front_comments(self.front, self.resource)]
        return to_toml(self.recipe.to_dict(), {**self.comments, "": summary})

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
            "context": self.estimate.device.context,
            "rank_score": self.rank_score,
            "removed": list(self.removed),
            "structured_compression": {name: asdict(cost) for name, cost in self.costs.items()},
            "weights": {name: {"scheme": one.scheme, "rank_score": one.loss} for name, one in self.options.items()},
            "front": {"resource": self.resource, "points": front_dicts(self.front)},
        }

    def to_table(self) -> Table:
        """Return a table with a row for every component."""
        rows: list[Row] = []
        for part in self.estimate.components:
            loss = sum(one.loss for name, one in self.options.items() if name.partition(".")[0] == part.component)
            rows.append(
                (part.component, [format_megabytes(part.nbytes), f"{part.bits_per_weight:.2f}", self._share(loss)])
            )
        if self.structure:
            rows.append(("structured compression", ["", "", self._share(self.structure.loss)]))
        rows.append(("all files", [format_megabytes(self.estimate.nbytes), "", ""]))
        notes = [f"rank score, predicted: {self.rank_score:.2g}. {SCORE_NOTE}"]
        notes += [f"layers: {self.recipe.layers}"] if self.recipe.layers else []
        notes += [f"{name}; {cost}" for name, cost in self.costs.items()]
        return Table(f"recipe {self.recipe.name}", ["size", "bits per weight", "share of score"], rows, notes)

    def _share(self, loss: float) -> str:
        return f"{loss / self.rank_score if self.rank_score else 0.0:.0%}"

    def front_table(self) -> Table:
        """Return the best recipes of other limits."""
        return front_table(self.front, self.resource)
