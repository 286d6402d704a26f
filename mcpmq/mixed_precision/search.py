"""Search the recipe of least estimated loss whose artifact, to the byte, is within a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import RecipeError
from mcpmq.estimate.forecast import FormatEstimate, forecast
from mcpmq.formats import FormatName
from mcpmq.mixed_precision.annotate import annotate
from mcpmq.mixed_precision.assignment import LOSS_TOLERANCE, merge_globs, to_globs
from mcpmq.mixed_precision.budget import Budget
from mcpmq.mixed_precision.candidates import CANDIDATE_SCHEMES
from mcpmq.mixed_precision.choices import NO_CHOICES, Choices, Limit, Option, Options
from mcpmq.mixed_precision.compression_cost import Cost
from mcpmq.mixed_precision.knapsack import solve
from mcpmq.mixed_precision.removal_choice import renumbered
from mcpmq.mixed_precision.resources import StructureBytes, resources
from mcpmq.mixed_precision.result import SCORE_NOTE, SearchResult
from mcpmq.mixed_precision.structure import Candidates, Chosen
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from mcpmq.scheme import Scheme, parse_scheme
from mcpmq.system.table import format_megabytes

HEADER = "Recipe of least estimated loss"  # beginning of the first comment of a recipe file
MAX_ITERATIONS = 8  # header sizes depend on the recipe, so the excess of a solution lowers the limit of the next
Sizes = Mapping[str, Mapping[str, int]]  # bytes by weight and scheme


@dataclass(frozen=True, slots=True)
class Space:
    """The choices of a search: options of weights with the smallest artifact, and structured compression."""

    options: Options
    smallest: FormatEstimate
    source: str  # of the losses
    choices: Choices = NO_CHOICES
    nbytes: StructureBytes = field(default_factory=StructureBytes)
    candidates: Candidates = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def without_structure(self) -> "Space":
        """The choices of schemes alone."""
        return Space(self.options, self.smallest, self.source)


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
        return forecast(plan, [self.format_name], self.budget.device_context).formats[0]

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

    def smallest(self, sizes: Sizes) -> FormatEstimate:
        """Return the estimate of the smallest possible assignment."""
        return self.estimate({weight: min(one, key=one.__getitem__) for weight, one in sizes.items()})

    def check_budget(self, sizes: Sizes, savings: Mapping[str, float] | None = None) -> FormatEstimate:
        """Return the estimate of the smallest possible assignment, without structured compression.

        `savings` are the bytes that structured compression saves at most, by resource.

        Raises:
            RecipeError: it exceeds the budget.
        """
        smallest = self.smallest(sizes)
        for resource, (limit, largest) in self.budget.usage(smallest).items():
            used = largest - int((savings or {}).get(resource, 0))
            if used > limit:
                raise RecipeError(
                    f"a {resource} of {limit:,} bytes is not possible: the smallest possible is {used:,} bytes",
                    f"allow {format_megabytes(used)}" + (", or a shorter context" if resource == "memory" else ""),
                )
        return smallest

    def solve(self, space: Space) -> SearchResult:
        """Return the best recipe within the budget.

        Raises:
            RecipeError: no assignment is within the budget when headers are counted.
        """
        reserve = 0
        for iteration in range(MAX_ITERATIONS):
            solution = solve(space.options, self.limits(space, reserve), space.choices)
            if solution is None:
                break
            chosen = Chosen.of(solution, space.candidates)
            options = {**space.options, **solution.dependent_options}
            assignment = merge_globs(solution.options, options)
            with chosen.view(self.checkpoint) as view:
                compressed = replace(self, checkpoint=view, base=self.base.model_copy(update=chosen.tables))
                budget = replace(self.budget, saved_tokens=chosen.saved_tokens)
                names = renumbered(self.checkpoint, chosen.removed, assignment, options)
                result = replace(compressed, budget=budget)._result(*names, space, chosen)
            if (excess := budget.excess_nbytes(result.estimate)) <= 0:
                return result
            reserve += excess << iteration  # more than the excess, because the solution may be below its limit
        raise RecipeError("no recipe is within the limit when file headers are counted", "raise the limit slightly")

    def _result(self, assignment: Mapping[str, Option], options: Options, space: Space, chosen: Chosen) -> SearchResult:
        """Return the recipe of an assignment of the weights that the checkpoint has."""
        schemes = {weight: option.scheme for weight, option in assignment.items()}
        recipe, estimate = self.recipe(schemes), self.estimate(schemes)
        costs = {one.name: space.costs[one.name] for one in chosen.candidates if one.name in space.costs}
        [resource, *_] = self.budget.usage(estimate)
        result = SearchResult(recipe, estimate, assignment, {}, chosen, costs, resource=resource)
        return replace(result, comments=annotate(recipe, options, self._summary(result, space.source)))

    def _summary(self, result: SearchResult, source: str) -> list[str]:
        estimate, reason = result.estimate, "because that loses less than fewer bits elsewhere"
        layers = [f"Removed, {reason}: {', '.join(result.removed)}."] if result.removed else []
        costs = [f"Chosen, {reason}: {name}; {cost}." for name, cost in result.costs.items()]
        return [
            f"{HEADER} as {self.format_name} within {self.budget}.",
            f"Files: {estimate.nbytes:,} bytes. Rank score: {result.rank_score:.2g}, predicted from {source}.",
            SCORE_NOTE,
            *layers,
            *costs,
            f"At most {LOSS_TOLERANCE:.1%} of the loss was accepted to have fewer lines.",
            "Edit freely: the last line that matches a weight wins.",
        ]

    def limits(self, space: Space, reserve: int) -> list[Limit]:
        """Return limits on weights alone, with the bytes of structured compression."""
        limits = []
        for one in resources(self.budget, space.options, space.smallest.files.runtime):
            limit = one.limit(space.options, space.smallest, reserve)
            charges = space.nbytes.charges(one, space.options, space.choices)
            limits.append(replace(limit, charges=charges))
        return limits
