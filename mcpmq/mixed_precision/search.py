"""The search: what every mix weighs to the byte, the limits on the weights alone, and the best mix within them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import RecipeError
from mcpmq.estimate.forecast import Layout, forecast
from mcpmq.formats import FormatName
from mcpmq.mixed_precision.annotate import comments_on
from mcpmq.mixed_precision.assignment import TOLERATED, as_globs, simpler
from mcpmq.mixed_precision.budget import Budget, Fitted
from mcpmq.mixed_precision.candidates import CANDIDATES
from mcpmq.mixed_precision.knapsack import Limit, Option, choose, least
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from mcpmq.scheme import Scheme, parse_scheme
from mcpmq.system.table import megabytes

SEEING = ("vision", "projector")  # all other components read and write
TRIES = 8  # sizes of headers depend a little on the recipe: what it turned out too large is taken off the budget


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for."""

    checkpoint: Checkpoint
    base: Recipe
    name: FormatName
    budget: Budget

    def layout(self, weights: Mapping[str, str]) -> Layout:
        """What a mix will weigh, to the byte; smoothing changes numbers, not sizes, and is not for every mix."""
        recipe = self.recipe(weights).model_copy(update={"smooth": "none"})
        plan = make_plan(self.checkpoint, recipe)
        return forecast(plan, [self.name], self.budget.context).layouts[0]

    def recipe(self, weights: Mapping[str, str]) -> Recipe:
        """The same methods with other schemes."""
        title = f"fit-{self.budget.told}-{self.name}"
        return Recipe.model_validate({**self.base.written(), "name": title, "weights": as_globs(weights)})

    def sizes(self, schemes: Mapping[str, Sequence[Scheme | None]]) -> dict[str, dict[str, int]]:
        """Bytes of every weight on every scheme, from forecasts with as many weights as can on one of them."""
        sizes: dict[str, dict[str, int]] = {weight: {} for weight in schemes}
        for text in (*CANDIDATES[self.name], "keep"):
            wanted = parse_scheme(text)
            given = {weight: text if wanted in held else str(held[0] or "keep") for weight, held in schemes.items()}
            for weight in self.layout(given).files.weights:
                if wanted in schemes.get(weight.name, ()):
                    sizes[weight.name][text] = weight.nbytes
        return sizes

    def refuse_hopeless(self, sizes: Mapping[str, Mapping[str, int]]) -> Layout:
        """The smallest mix there is.

        Raises:
            RecipeError: it does not fit.
        """
        smallest = self.layout({weight: min(several, key=several.__getitem__) for weight, several in sizes.items()})
        for what, (allowed, taken) in self.budget.needs(smallest).items():
            if taken > allowed:
                raise RecipeError(
                    f"{what} of {allowed:,} bytes cannot be met: the smallest possible is {taken:,} bytes",
                    f"allow {megabytes(taken)}" + (", or a shorter context" if what == "memory" else ""),
                )
        return smallest

    def best(self, options: Mapping[str, Sequence[Option]], smallest: Layout, origin: str) -> Fitted:
        """The best mix that fits to the byte: what a header turned out larger is taken off the limits."""
        slack = 0
        for attempt in range(TRIES):
            chosen = choose(options, self.limits(options, smallest, slack))
            if chosen is None:
                break
            chosen = simpler(chosen, options)
            schemes = {weight: option.scheme for weight, option in chosen.items()}
            recipe, layout = self.recipe(schemes), self.layout(schemes)
            if (excess := self.budget.exceeded_by(layout)) <= 0:
                return Fitted(
                    recipe, layout, chosen, comments_on(recipe, options, self._summary(layout, chosen, origin))
                )
            slack += excess << attempt  # the mix may have left more of the limit than it is to give back
        raise RecipeError("no mix fits to the byte", "allow a little more")

    def _summary(self, layout: Layout, chosen: Mapping[str, Option], origin: str) -> list[str]:
        loss = sum(option.loss for option in chosen.values())
        return [
            f"The mix of least loss as {self.name} within {self.budget}: {layout.nbytes:,} bytes of files.",
            f"Expected divergence of an answer token: {loss:.2g} nats, predicted from {origin}.",
            f"For fewer lines {TOLERATED:.1%} of it were given up at most.",
            "Edit freely: the last line that matches a weight wins.",
        ]

    def limits(self, options: Mapping[str, Sequence[Option]], smallest: Layout, slack: int) -> list[Limit]:
        """Of the weights alone: what all else takes is known from the smallest mix."""
        limits, resident, device = [], smallest.files.runtime.resident, smallest.device
        reading = tuple({name.partition(".")[0]: None for name in options if not name.startswith(SEEING)})
        if self.budget.file_nbytes is not None:
            left = self.budget.file_nbytes - slack - smallest.nbytes
            limits.append(_limit(options, SEEING + reading, left))
        if (memory := self.budget.memory_nbytes) is not None:
            parts = {SEEING: device.seeing, reading: device.reading}
            taken = parts if self.budget.sequential else {SEEING + reading: device.at_once}
            left_of = {components: memory - slack - nbytes for components, nbytes in taken.items()}
            limits += [_limit(options, components, left / resident) for components, left in left_of.items()]
        return limits


def _limit(options: Mapping[str, Sequence[Option]], components: tuple[str, ...], left: float) -> Limit:
    """For components of which the smallest weights would leave so many bytes."""
    return Limit(components, int(least(options, Limit(components, 0)) + left))
