"""A search chooses limits of images and a vocabulary with their measured losses, or leaves the model unchanged."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress, limit_images
from mcpmq.compression_tables import ImagesTable, VocabularyTable
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError, RecipeError
from mcpmq.estimate.forecast import forecast
from mcpmq.mixed_precision import Budget, Structure, prepare_search
from mcpmq.mixed_precision.compression_cost import CostMeter
from mcpmq.mixed_precision.prepared import PreparedSearch
from mcpmq.mixed_precision.structure import open_candidates
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from mcpmq.runners.torch import open_checkpoint
from mcpmq.system.progress import silent
from mcpmq.vocabulary import trim_vocabulary
from tests.commands import Command
from tests.compression.test_layers import logits_of

BASE = Recipe.load("phone-int4")
ONE_SLICE = ImagesTable(max_slice_nums=1)
FEW_TOKENS = VocabularyTable(max_tokens=288)
STRUCTURE = Structure(images=(ONE_SLICE,), image_sizes=((448, 448),), vocabularies=(FEW_TOKENS,))
LARGE = Budget(memory_nbytes=10**9, context=2048)


@pytest.fixture(scope="module")
def samples(tiny_set: Path) -> SampleSet:
    """Ten samples, of which some have images with several slices."""
    return SampleSet.open(tiny_set)


@pytest.fixture(scope="module")
def prepared(small_checkpoint: Path, samples: SampleSet) -> Iterator[PreparedSearch]:
    """A search with measured losses."""
    checkpoint = Checkpoint.open(small_checkpoint)
    with prepare_search(checkpoint, BASE, "gguf", LARGE, samples, 1, silent, structure=STRUCTURE) as search:
        yield search


def _smallest_nbytes(prepared: PreparedSearch) -> int:
    """Return the memory of the smallest artifact without structured compression."""
    return prepared.space.smallest.device.concurrent_nbytes


def test_choices_that_do_not_pay_leave_the_model_unchanged(prepared: PreparedSearch) -> None:
    """With enough memory nothing is lost, and the recipe has no table of structured compression."""
    found = prepared.best()

    assert not found.structure
    assert found.recipe.images is None
    assert found.recipe.vocabulary is None
    assert found.rank_score == 0
    assert found.estimate.device.context == LARGE.context


def test_less_memory_than_all_schemes_need_is_met_by_structure(
    prepared: PreparedSearch, small_checkpoint: Path, samples: SampleSet
) -> None:
    """Below the smallest artifact of schemes, images are limited; the recipe has the forecast bytes and the costs."""
    budget = replace(LARGE, memory_nbytes=_smallest_nbytes(prepared) - 10_000)

    found = prepared.best(budget)

    with pytest.raises(RecipeError, match="no recipe is within the limit"):
        prepared.best(budget, structured=False)
    [saved] = [one.saved_tokens for one in prepared.space.candidates.values() if one.part == "images"]
    assert found.recipe.images == ONE_SLICE
    assert found.estimate.device.context == LARGE.context - saved
    assert found.estimate.device.concurrent_nbytes <= (budget.memory_nbytes or 0)
    with compress(Checkpoint.open(small_checkpoint), found.recipe, samples) as view:
        [estimate] = forecast(make_plan(view, found.recipe), ["gguf"], LARGE.context - saved).formats
    assert estimate.device == found.estimate.device
    [cost] = [one for name, one in found.costs.items() if "images" in name]
    assert (
        f"# Chosen, because that loses less than fewer bits elsewhere: images: {ONE_SLICE}; {cost}." in found.to_toml()
    )
    assert Recipe.model_validate(found.recipe.to_dict()) == found.recipe


def test_a_vocabulary_saves_exact_bytes(prepared: PreparedSearch, small_checkpoint: Path, samples: SampleSet) -> None:
    """The smallest artifact with fewer tokens is found to the byte, and one byte less is an error."""
    [name] = [name for name, one in prepared.space.candidates.items() if one.part == "vocabulary"]
    nbytes = prepared.space.nbytes.smallest[name].nbytes
    budget = Budget(file_nbytes=nbytes, context=LARGE.context)

    found = prepared.best(budget)

    assert found.recipe.vocabulary == FEW_TOKENS
    assert found.recipe.images is None  # saves no byte of files
    assert found.estimate.nbytes == nbytes < prepared.space.smallest.nbytes
    with compress(Checkpoint.open(small_checkpoint), found.recipe, samples) as view:
        [estimate] = forecast(make_plan(view, found.recipe), ["gguf"], LARGE.context).formats
    assert estimate.nbytes == nbytes
    with pytest.raises(RecipeError, match="no recipe is within the limit"):
        prepared.best(replace(budget, file_nbytes=nbytes - 1))


def test_the_front_has_both_kinds_of_recipes(prepared: PreparedSearch) -> None:
    """Scores fall with memory; with structured compression they are never larger, and reach smaller memory."""
    memory = int(0.998 * _smallest_nbytes(prepared) / 0.9)  # one of the factors of the front is below the smallest
    search = replace(prepared, search=replace(prepared.search, budget=replace(LARGE, memory_nbytes=memory)))

    points = search.front()

    schemes, structured = ([one for one in points if (one.structure is None) == alone] for alone in (True, False))
    for several in (schemes, structured):
        assert [one.rank_score for one in several] == sorted((one.rank_score for one in several), reverse=True)
    assert structured[0].nbytes < schemes[0].nbytes
    for one in schemes:
        assert min(two.rank_score for two in structured if two.nbytes <= one.nbytes * 1.001) <= one.rank_score * 1.01
    found = replace(search.best(), front=points)
    assert found.to_dict()["front"]["resource"] == "memory"
    assert "# Rank score of the best recipes by memory:" in found.to_toml()
    assert len(found.front_table().rows) == len(points)
    assert found.front_table().columns[1] == "with structure"


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=-1, keepdims=True)))


def test_the_cost_of_limits_is_the_divergence_of_all_samples(
    prepared: PreparedSearch, small_checkpoint: Path, samples: SampleSet
) -> None:
    """It is the mean KLD over all answer tokens, which is 0 at those of samples whose images do not change."""
    checkpoint = Checkpoint.open(small_checkpoint)
    total, tokens = 0.0, 0
    with limit_images(checkpoint, ONE_SLICE) as view:
        for sample in samples:
            rows = []
            for one in (checkpoint, view):
                encoded = one.family.open_processor(one.path).encode_turns(sample.id, sample.turns)
                rows.append(_log_softmax(logits_of(open_checkpoint(one, 1), [encoded])[0]))
            total += float((np.exp(rows[0]) * (rows[0] - rows[1])).sum())
            tokens += len(rows[0])
    [cost] = [cost for name, cost in prepared.space.costs.items() if "images" in name]

    assert cost.kl_divergence == pytest.approx(total / tokens, rel=1e-2)
    assert 0 < cost.share < 1
    assert cost.answer_tokens < tokens


def test_the_cost_of_a_vocabulary_is_the_probability_that_it_lacks(
    prepared: PreparedSearch, small_checkpoint: Path, samples: SampleSet
) -> None:
    """Held-out answers of kept tokens have -log of the kept probability, others the increase of their loss."""
    checkpoint, (_, held_out) = Checkpoint.open(small_checkpoint), samples.split_holdout()
    total, tokens = 0.0, 0
    with trim_vocabulary(checkpoint, FEW_TOKENS) as view:
        assert view.vocabulary is not None
        for sample in held_out:
            before, after = (
                one.family.open_processor(one.path).encode_turns(sample.id, sample.turns) for one in (checkpoint, view)
            )
            full = _log_softmax(logits_of(open_checkpoint(checkpoint, 1), [before])[0])
            tokens += len(full)
            if (view.vocabulary.new_ids[before.tokens] >= 0).all():
                total -= float(np.log(np.exp(full[:, view.vocabulary.ids]).sum(axis=-1)).sum())
                continue
            trimmed = _log_softmax(logits_of(open_checkpoint(view, 1), [after])[0])
            losses = [
                -float(rows[np.arange(len(rows)), inputs.answer_tokens].sum())
                for rows, inputs in ((full, before), (trimmed, after))
            ]
            total += max(0.0, losses[1] - losses[0])
    [cost] = [cost for name, cost in prepared.space.costs.items() if "vocabulary" in name]

    assert cost.kl_divergence == pytest.approx(total / tokens, rel=1e-2)
    assert math.isfinite(cost.kl_divergence)
    assert cost.samples == len(held_out) == 2


def test_limits_without_effect_on_the_set_are_an_error(small_checkpoint: Path, samples: SampleSet) -> None:
    """A loss that no sample measures is not taken to be 0."""
    checkpoint = Checkpoint.open(small_checkpoint)
    text = SampleSet(samples.path, tuple(one for one in samples if not one.has_vision))

    with (
        open_candidates(checkpoint, replace(STRUCTURE, vocabularies=()), LARGE, text, silent) as candidates,
        pytest.raises(DatasetError, match=r"changes none of the 4 samples .* cannot be measured"),
    ):
        CostMeter(checkpoint, text, 1, silent).costs(candidates)


BAD = [
    (
        replace(STRUCTURE, vocabularies=()),
        Budget(file_nbytes=10**7),
        BASE,
        r"limits of images \(max_slice_nums 1\) change no file",
    ),
    (Structure(images=(ONE_SLICE,)), LARGE, BASE, "limits of images are given without their sizes"),
    (Structure(image_sizes=((8, 8),)), LARGE, BASE, "sizes of images are given without their limits"),
    (
        STRUCTURE,
        replace(LARGE, context=8),
        BASE,
        r"images of 448 x 448 pixels have \d+ tokens, more than the context of 8",
    ),
    (
        replace(STRUCTURE, images=(ImagesTable(max_slice_nums=9),)),
        LARGE,
        BASE,
        r"max_slice_nums 9 saves no token: images of 448 x 448 pixels have (\d+) tokens, and \1 with the limit",
    ),
    (
        STRUCTURE,
        LARGE,
        BASE.model_copy(update={"images": ONE_SLICE}),
        r"has \[images\], and the search is to choose it",
    ),
    (
        STRUCTURE,
        LARGE,
        BASE.model_copy(update={"vocabulary": FEW_TOKENS}),
        r"has \[vocabulary\], and the search is to choose it",
    ),
    (Structure(vocabularies=(FEW_TOKENS,) * 17), LARGE, BASE, "17 candidates are given"),
    (STRUCTURE, replace(LARGE, memory_nbytes=1000), BASE, r"a memory of 1,000 bytes is not possible"),
]


@pytest.mark.parametrize(("structure", "budget", "base", "message"), BAD)
def test_bad_choices_are_errors_before_measurements(
    small_checkpoint: Path, samples: SampleSet, structure: Structure, budget: Budget, base: Recipe, message: str
) -> None:
    """The error has the numbers, and a hint."""
    checkpoint = Checkpoint.open(small_checkpoint)

    with pytest.raises(RecipeError, match=message) as caught:
        prepare_search(checkpoint, base, "gguf", budget, samples, 1, silent, structure=structure).__enter__()

    assert caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-limits", "slices=3"], "`slices=3` is not KEY=N"),
        (["--image-limits", "max_slice_nums=0"], "is not a list of valid numbers"),
        (["--image-limits", "max_slice_nums=2", "--image-size", "448"], "`448` is not WIDTHxHEIGHT"),
        (["--vocabularies", "Klingon"], "`Klingon` is not one of languages"),
    ],
)
def test_bad_options_are_usage_errors(
    mcpmq: Command, small_checkpoint: Path, tiny_set: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    """A value that is not valid is named."""
    words = ["search", small_checkpoint, tmp_path / "a.toml", "-f", "gguf", "--max-memory", "1MB"]

    ran = mcpmq(*words, "--calibration", tiny_set, *options)

    assert ran.exit_code == 2
    assert message in " ".join(ran.stderr.replace("│", " ").split())


def test_an_importance_matrix_measures_no_structure(mcpmq: Command, small_checkpoint: Path, tmp_path: Path) -> None:
    """Structured compression is chosen with measured losses only."""
    words = ["search", small_checkpoint, tmp_path / "a.toml", "-f", "gguf", "--max-size", "1MB", "--imatrix", tmp_path]

    ran = mcpmq(*words, "--vocabularies", "en")

    assert ran.exit_code == 2
    assert "give --calibration" in " ".join(ran.stderr.split())
