"""Search the recipe of least estimated loss whose artifact, to the byte, is within a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression.layers import without_layers
from mcpmq.errors import RecipeError
from mcpmq.estimate.forecast import FormatEstimate, forecast
from mcpmq.formats import FormatName
from mcpmq.mixed_precision.annotate import annotate
from mcpmq.mixed_precision.assignment import LOSS_TOLERANCE, merge_globs, to_globs
from mcpmq.mixed_precision.budget import SCORE_NOTE, Budget, SearchResult
from mcpmq.mixed_precision.candidates import CANDIDATE_SCHEMES
from mcpmq.mixed_precision.knapsack import NO_REMOVALS, Limit, Option, Removal, Removals, min_nbytes, solve
from mcpmq.mixed_precision.removal_choice import renumbered
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from mcpmq.scheme import Scheme, parse_scheme
from mcpmq.system.table import format_megabytes

VISION_COMPONENTS = ("vision", "projector")  # all others are in the language model
HEADER = "Recipe of least estimated loss"  # beginning of the first comment of a recipe file
MAX_ITERATIONS = 8  # header sizes depend on the recipe, so the excess of a solution lowers the limit of the next


@dataclass(frozen=True, slots=True)
class RecipeSearch:
    """A search over the schemes of all weights of a checkpoint in one format."""

    checkpoint: Checkpoint
    base: Recipe
    format_name: FormatName
    budget: Budget

    def estimate(self, weights: Mapping[str, str]) -> FormatEstimate:
        """Return the exact size of an assignment; smoothing is off because sizes do not depend on it."""
        recipe = self.recipe(weights).model_copy(update={"smooth": "none"})
        plan = make_plan(self.checkpoint, recipe)
        return forecast(plan, [self.format_name], self.budget.context).formats[0]

    def recipe(self, weights: Mapping[str, str]) -> Recipe:
        """Return the base recipe with other schemes, by common name."""
        name = f"search-{self.budget.label}-{self.format_name}"
        return Recipe.model_validate({**self.base.to_dict(), "name": name, "weights": to_globs(weights)})

    def sizes(self, schemes: Mapping[str, Sequence[Scheme | None]]) -> dict[str, dict[str, int]]:
        """Return the bytes of every weight on every candidate scheme.

        Each scheme needs one forecast, in which all weights that support the scheme are on it.
        """
        sizes: dict[str, dict[str, int]] = {weight: {} for weight in schemes}
        for text in (*CANDIDATE_SCHEMES[self.format_name], "keep"):
            scheme = parse_scheme(text)
            assignment = {
                weight: text if scheme in candidates else str(candidates[0] or "keep")
                for weight, candidates in schemes.items()
            }
            for weight in self.estimate(assignment).files.weights:
                if scheme in schemes.get(weight.name, ()):
                    sizes[weight.name][text] = weight.nbytes
        return sizes

    def check_budget(self, sizes: Mapping[str, Mapping[str, int]]) -> FormatEstimate:
        """Return the estimate of the smallest possible assignment.

        Raises:
            RecipeError: it exceeds the budget.
        """
        smallest = self.estimate({weight: min(one, key=one.__getitem__) for weight, one in sizes.items()})
        for resource, (limit, used) in self.budget.usage(smallest).items():
            if used > limit:
                raise RecipeError(
                    f"a {resource} of {limit:,} bytes is not possible: the smallest possible is {used:,} bytes",
                    f"allow {format_megabytes(used)}" + (", or a shorter context" if resource == "memory" else ""),
                )
        return smallest

    def solve(
        self,
        options: Mapping[str, Sequence[Option]],
        smallest: FormatEstimate,
        source: str,
        removals: Removals = NO_REMOVALS,
    ) -> SearchResult:
        """Return the best recipe within the budget; `source` names the data of the losses.

        Raises:
            RecipeError: no assignment is within the budget when headers are counted.
        """
        reserve = 0
        for iteration in range(MAX_ITERATIONS):
            assignment = solve(options, self.limits(options, smallest, reserve), removals)
            if assignment is None:
                break
            assignment = merge_globs(assignment, options)
            removed = [one for one in removals.layers if one.weights[0] not in assignment]
            with without_layers(self.checkpoint, [one.layer for one in removed]) as view:
                shorter = replace(self, checkpoint=view)
                result = shorter._result(*renumbered(self.checkpoint, removed, assignment, options), source, removed)
            if (excess := self.budget.excess_nbytes(result.estimate)) <= 0:
                return result
            reserve += excess << iteration  # more than the excess, because the solution may be below its limit
        raise RecipeError("no recipe is within the limit when file headers are counted", "raise the limit slightly")

    def _result(
        self,
        assignment: Mapping[str, Option],
        options: Mapping[str, Sequence[Option]],
        source: str,
        removed: Sequence[Removal],
    ) -> SearchResult:
        """Return the recipe of an assignment of the weights that the checkpoint has."""
        schemes = {weight: option.scheme for weight, option in assignment.items()}
        recipe, estimate = self.recipe(schemes), self.estimate(schemes)
        comments = annotate(recipe, options, self._summary(estimate, assignment, source, removed))
        return SearchResult(recipe, estimate, assignment, comments, tuple(one.layer for one in removed))

    def _summary(
        self,
        estimate: FormatEstimate,
        assignment: Mapping[str, Option],
        source: str,
        removed: Sequence[Removal],
    ) -> list[str]:
        loss = sum(option.loss for option in assignment.values()) + sum(one.loss for one in removed)
        names = ", ".join(one.layer for one in removed)
        layers = [f"Removed, because that loses less than fewer bits elsewhere: {names}."] if removed else []
        return [
            f"{HEADER} as {self.format_name} within {self.budget}.",
            f"Files: {estimate.nbytes:,} bytes. Rank score: {loss:.2g}, predicted from {source}.",
            SCORE_NOTE,
            *layers,
            f"At most {LOSS_TOLERANCE:.1%} of the loss was accepted to have fewer lines.",
            "Edit freely: the last line that matches a weight wins.",
        ]

    def limits(self, options: Mapping[str, Sequence[Option]], smallest: FormatEstimate, reserve: int) -> list[Limit]:
        """Return limits on weights alone; all other bytes are known from the smallest assignment."""
        limits, resident_ratio, device = [], smallest.files.runtime.resident_ratio, smallest.device
        components = dict.fromkeys(name.partition(".")[0] for name in options)
        language = tuple(name for name in components if name not in VISION_COMPONENTS)
        if self.budget.file_nbytes is not None:
            free = self.budget.file_nbytes - reserve - smallest.nbytes
            limits.append(_limit(options, VISION_COMPONENTS + language, free))
        if (memory := self.budget.memory_nbytes) is not None:
            parts = {VISION_COMPONENTS: device.vision_nbytes, language: device.language_nbytes}
            used = parts if self.budget.sequential else {VISION_COMPONENTS + language: device.concurrent_nbytes}
            for part, nbytes in used.items():
                limits.append(_limit(options, part, (memory - reserve - nbytes) / resident_ratio))
        return limits


def _limit(options: Mapping[str, Sequence[Option]], components: tuple[str, ...], free_nbytes: float) -> Limit:
    """Return the limit of components whose smallest weights leave this many bytes free."""
    return Limit(components, int(min_nbytes(options, Limit(components, 0)) + free_nbytes))
