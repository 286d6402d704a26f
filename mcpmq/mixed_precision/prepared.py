"""A search with measured losses, which can be solved for several budgets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mcpmq.errors import RecipeError
from mcpmq.mixed_precision.budget import Budget
from mcpmq.mixed_precision.candidates import candidate_schemes, check_mixed_format
from mcpmq.mixed_precision.choices import Option
from mcpmq.mixed_precision.front import FACTORS, FrontPoint, pareto_front
from mcpmq.mixed_precision.layer_removal import RemovalMeter
from mcpmq.mixed_precision.result import SearchResult
from mcpmq.mixed_precision.search import RecipeSearch, Sizes, Space
from mcpmq.scheme import Scheme

CandidateSchemes = Mapping[str, Sequence[Scheme | None]]  # by weight
WeightLosses = Mapping[str, Mapping[str, float]]  # by weight and scheme
EstimateLosses = Callable[[CandidateSchemes], WeightLosses]


@dataclass(frozen=True, slots=True)
class PreparedSearch:
    """A search with the losses of its choices."""

    search: RecipeSearch
    space: Space
    meter: RemovalMeter | None = None  # of layers

    def best(self, budget: Budget | None = None, *, structured: bool = True) -> SearchResult:
        """Return the best recipe of a budget, by default that of the search; the loss of its layers is measured.

        Raises:
            RecipeError: no recipe is within the budget.
        """
        result = self._solve(budget or self.search.budget, structured=structured)
        if not result.removed:
            return result
        assert self.meter is not None
        layers = self.meter.table(result.removed)
        return replace(result, recipe=result.recipe.model_copy(update={"layers": layers}))

    def _solve(self, budget: Budget, *, structured: bool) -> SearchResult:
        search = replace(self.search, budget=budget)
        return search.solve(self.space if structured else self.space.without_structure)

    def front(self) -> tuple[FrontPoint, ...]:
        """Return the best recipes around the budget, with schemes alone and with structured compression."""
        alone = pareto_front(self._points(structured=False))
        choices = self.space.choices
        return (*alone, *(pareto_front(self._points(structured=True)) if choices.layers or choices.parts else ()))

    def _points(self, *, structured: bool) -> Iterator[FrontPoint]:
        for factor in FACTORS:
            budget = self.search.budget.scaled(factor)
            try:
                found = self._solve(budget, structured=structured)
            except RecipeError:  # smaller than the smallest recipe
                continue
            structure = str(found.structure) if structured else None
            yield FrontPoint(budget.used_nbytes(found.estimate), found.rank_score, structure)


def prepare(search: RecipeSearch, losses: EstimateLosses, source: str) -> PreparedSearch:
    """Check the budget, then estimate the losses of schemes, without structured compression.

    Raises:
        FormatError: the format stores all weights on one scheme.
        RecipeError: the recipe quantizes activations, or the smallest possible result exceeds the budget.
    """
    schemes = candidates_of(search)
    sizes = search.sizes(schemes)
    smallest = search.check_budget(sizes)
    return PreparedSearch(search, Space(options_of(sizes, losses(schemes)), smallest, source))


def candidates_of(search: RecipeSearch) -> CandidateSchemes:
    """Return the candidate schemes of every weight.

    Raises:
        FormatError: the format stores all weights on one scheme.
        RecipeError: the recipe quantizes activations.
    """
    checkpoint, base = search.checkpoint, search.base
    check_mixed_format(search.format_name, checkpoint.architecture.language)
    if base.activations:
        raise RecipeError(
            f"recipe `{base.name}` quantizes activations, which needs `int8-row` weights",
            "remove [activations] from the recipe",
        )
    specs = [spec for spec in checkpoint.specs if spec.role != "other"]
    return {spec.name: candidate_schemes(checkpoint, spec, search.format_name) for spec in specs}


def options_of(sizes: Sizes, losses: WeightLosses) -> dict[str, list[Option]]:
    """Return the options of every weight."""
    return {
        weight: [Option(scheme, nbytes, losses[weight][scheme]) for scheme, nbytes in by_scheme.items()]
        for weight, by_scheme in sizes.items()
    }
