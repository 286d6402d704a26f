"""Prepare a search that also chooses layers to remove, limits of images and a vocabulary."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from mcpmq.checkpoint import TOKEN_TABLES
from mcpmq.compression.layers import layer_counts, required_layers
from mcpmq.estimate.forecast import FormatEstimate
from mcpmq.mixed_precision.choices import Choices, Removal, Setting
from mcpmq.mixed_precision.compression_cost import CostMeter
from mcpmq.mixed_precision.layer_removal import RemovalMeter, open_meter
from mcpmq.mixed_precision.prepared import (
    CandidateSchemes,
    EstimateLosses,
    PreparedSearch,
    WeightLosses,
    candidates_of,
    options_of,
)
from mcpmq.mixed_precision.removal_choice import measure_choices
from mcpmq.mixed_precision.resources import StructureBytes, cache_charges
from mcpmq.mixed_precision.search import RecipeSearch, Sizes, Space
from mcpmq.mixed_precision.structure import (
    ALL_IMAGES,
    ALL_TOKENS,
    Candidates,
    Structure,
    open_candidates,
)

LAYER_SAMPLES = 24  # evenly spread over the calibration set


@contextmanager
def prepare_structured(
    search: RecipeSearch,
    losses: EstimateLosses,
    structure: Structure,
    meter: CostMeter,
    source: str,
    begin_stage: Callable[[], None],
) -> Iterator[PreparedSearch]:
    """Check the budget, then estimate all losses; the views of the checkpoint are valid inside of the `with` block.

    Raises:
        FormatError: the format stores all weights on one scheme.
        RecipeError: choices are not valid, or the smallest possible result exceeds the budget.
        CheckpointError: the tokenizer cannot be trimmed.
        DatasetError: the loss of a choice cannot be measured on the calibration set.
    """
    structure.check(search.base, search.budget)
    schemes, calibration = candidates_of(search), meter.calibration
    with open_candidates(search.checkpoint, structure, search.budget, calibration, meter.progress) as candidates:
        sizes, trimmed = search.sizes(schemes), _trimmed_searches(search, candidates)
        by_vocabulary = {name: _table_sizes(one, schemes) for name, one in trimmed.items()}
        smallest = search.smallest(sizes)
        estimates = {name: one.smallest({**sizes, **by_vocabulary[name]}) for name, one in trimmed.items()}
        nbytes = _structure_bytes(search, smallest, estimates, candidates, structure)
        search.check_budget(sizes, _savings(search, sizes, smallest, nbytes, structure))
        found = losses(schemes)
        begin_stage()
        costs = meter.costs(candidates)
        parts = _parts(sizes, by_vocabulary, found, {name: one.kl_divergence for name, one in costs.items()})
        choices = Choices(parts=parts)
        space = Space(options_of(sizes, found), smallest, source, choices, nbytes, candidates, costs)
        with _removals(meter, list(schemes), structure) as (removals, layer_meter):
            choices = replace(choices, layers=removals, most=structure.max_removed)
            yield PreparedSearch(search, replace(space, choices=choices), layer_meter)


def _trimmed_searches(search: RecipeSearch, candidates: Candidates) -> dict[str, RecipeSearch]:
    """Return the search with each of the vocabularies."""
    return {
        name: replace(search, checkpoint=one.view, base=search.base.model_copy(update={one.part: one.table}))
        for name, one in candidates.items()
        if one.part == "vocabulary"
    }


def _table_sizes(search: RecipeSearch, schemes: CandidateSchemes) -> dict[str, dict[str, int]]:
    """Return the bytes of embedding and head on their candidate schemes."""
    return {name: sizes for name, sizes in search.sizes(schemes).items() if name in TOKEN_TABLES}


def _structure_bytes(
    search: RecipeSearch,
    smallest: FormatEstimate,
    estimates: Mapping[str, FormatEstimate],
    candidates: Candidates,
    structure: Structure,
) -> StructureBytes:
    layers = _removable(search) if structure.max_removed else []
    saved = {name: one.saved_tokens for name, one in candidates.items() if one.saved_tokens}
    cache = cache_charges(search.checkpoint, smallest.files.runtime, search.budget.context, layers, saved)
    return StructureBytes({ALL_TOKENS: smallest, **estimates}, cache)


def _removable(search: RecipeSearch) -> list[str]:
    architecture = search.checkpoint.architecture
    required = required_layers(architecture)
    names = (f"{part}.layers.{number}" for part, count in layer_counts(architecture).items() for number in range(count))
    return [name for name in names if name not in required]


def _savings(
    search: RecipeSearch, sizes: Sizes, smallest: FormatEstimate, nbytes: StructureBytes, structure: Structure
) -> dict[str, float]:
    """Return the bytes that structured compression saves at most, by resource."""
    ratio, by_layer = smallest.files.runtime.resident_ratio, dict.fromkeys(_removable(search), 0)
    for name, one in sizes.items():
        layer = ".".join(name.split(".")[:3])
        if layer in by_layer:
            by_layer[layer] += min(one.values())
    layers = sum(sorted(by_layer.values(), reverse=True)[: structure.max_removed])
    single = {names[0]: charge for names, charge in nbytes.cache.items() if len(names) == 1}
    cached = sorted(single.pop(name) for name in by_layer if name in single)[: structure.max_removed]
    cache = -sum(cached) - min(single.values(), default=0.0)
    savings = {}
    for resource, (_, used) in search.budget.usage(smallest).items():
        trimmed = max(used - search.budget.usage(one)[resource][1] for one in nbytes.smallest.values())
        savings[resource] = trimmed + (layers if resource == "file size" else layers * ratio + cache)
    return savings


def _parts(
    sizes: Sizes, by_vocabulary: Mapping[str, Sizes], found: WeightLosses, losses: Mapping[str, float]
) -> tuple[tuple[Setting, ...], ...]:
    """Return the settings of images and of the vocabulary; the first of each part changes nothing."""
    images = [Setting(name, loss) for name, loss in losses.items() if name not in by_vocabulary]
    vocabularies = [Setting(name, losses[name], options_of(one, found)) for name, one in by_vocabulary.items()]
    tables = {name: sizes[name] for name in TOKEN_TABLES if name in sizes}
    parts = (Setting(ALL_IMAGES), *images), (Setting(ALL_TOKENS, 0.0, options_of(tables, found)), *vocabularies)
    return tuple(part for part in parts if len(part) > 1)


@contextmanager
def _removals(
    meter: CostMeter, weights: list[str], structure: Structure
) -> Iterator[tuple[tuple[Removal, ...], RemovalMeter | None]]:
    """Measure the loss without each removable layer."""
    if not structure.max_removed:
        yield (), None
        return
    samples = meter.calibration.spread(LAYER_SAMPLES)
    with open_meter(meter.checkpoint, samples, meter.threads, meter.progress, meter.device) as layers:
        yield measure_choices(layers, weights, structure.max_removed, meter.progress), layers
