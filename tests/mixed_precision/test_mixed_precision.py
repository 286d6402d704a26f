"""A search finds a recipe within its budget, to the byte, and writes it with comments."""

import shutil
from collections.abc import Mapping
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import pytest

from mcpmq import mixed_precision
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.convert import convert
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError, FormatError, RecipeError
from mcpmq.estimate.forecast import forecast
from mcpmq.evaluate import Settings
from mcpmq.export import export
from mcpmq.formats import FormatName
from mcpmq.mixed_precision import Budget, SearchResult, search_recipe
from mcpmq.mixed_precision.candidates import CANDIDATE_SCHEMES, candidate_schemes
from mcpmq.mixed_precision.choices import Option
from mcpmq.mixed_precision.layer_error import QuantError
from mcpmq.mixed_precision.search import RecipeSearch, Space
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.scheme import parse_scheme
from mcpmq.system.progress import silent
from mcpmq.system.torch_threads import torch_threads
from tests.fake_releases import report_for

BASE = Recipe.load("phone-int4")
Options = Mapping[str, list[Option]]


def _search(checkpoint: Path, name: FormatName, budget: Budget) -> tuple[RecipeSearch, Options]:
    """A search and its options, with made-up losses: smaller options have a larger loss."""
    opened = Checkpoint.open(checkpoint)
    search = RecipeSearch(opened, BASE, name, budget)
    schemes = {spec.name: candidate_schemes(opened, spec, name) for spec in opened.specs if spec.role != "other"}
    options = {
        weight: [Option(scheme, nbytes, (len(weight) % 7 + 1) / nbytes**2) for scheme, nbytes in several.items()]
        for weight, several in search.sizes(schemes).items()
    }
    return search, options


def _best(checkpoint: Path, name: FormatName, budget: Budget) -> SearchResult:
    search, options = _search(checkpoint, name, budget)
    sizes = {weight: {one.scheme: one.nbytes for one in several} for weight, several in options.items()}
    return search.solve(Space(options, search.check_budget(sizes), "nothing"))


@pytest.mark.parametrize(("name", "nbytes"), [("gguf", 1_600_000), ("gguf", 2_000_000), ("onnx", 1_900_000)])
def test_the_artifact_of_a_searched_recipe_is_within_the_limit(
    tiny_checkpoint: Path, tmp_path: Path, name: FormatName, nbytes: int
) -> None:
    """The artifact has the estimated size, at least 95 % of the limit, and the recipe file gives the same plan."""
    result = _best(tiny_checkpoint, name, Budget(file_nbytes=nbytes))
    result.write(tmp_path / "mine.toml")

    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load(str(tmp_path / "mine.toml")))
    artifact = export(quantize(plan, tmp_path / "codes"), name, tmp_path / "out")
    written = sum(artifact.nbytes_by_component().values())

    assert written == result.estimate.nbytes
    assert nbytes * 0.95 < written <= nbytes
    chosen = {weight: option.scheme for weight, option in result.options.items()}
    assert {step.name: str(step.scheme or "keep") for step in plan.tensors if step.name in chosen} == chosen


def test_a_larger_limit_never_has_a_larger_loss(tiny_checkpoint: Path) -> None:
    """The loss falls from the smallest possible limit to one above the size of the original."""
    losses = [
        _best(tiny_checkpoint, "gguf", Budget(file_nbytes=nbytes)).rank_score
        for nbytes in (1_500_000, 1_700_000, 2_000_000, 4_000_000)
    ]

    assert losses == sorted(losses, reverse=True)


def test_a_search_reaches_three_and_a_half_bits_for_the_language_matrices(tiny_checkpoint: Path) -> None:
    """With a small limit they have types of 256 columns: at most 3.5 bits on average, and not less than 2.6."""
    result = _best(tiny_checkpoint, "gguf", Budget(file_nbytes=1_200_000))

    specs = Checkpoint.open(tiny_checkpoint).specs
    weights = {spec.name: prod(spec.shape) for spec in specs if spec.name.startswith("language.layers.")}
    chosen = {name: option for name, option in result.options.items() if name in weights}
    bits = 8 * sum(option.nbytes for option in chosen.values()) / sum(weights[name] for name in chosen)
    assert 2.6 < bits <= 3.5
    assert len({option.scheme for option in chosen.values()}) > 1


def test_a_limit_below_the_smallest_possible_size_is_an_error(tiny_checkpoint: Path) -> None:
    """The error has the smallest possible size: this limit is met, and one byte less is an error."""
    search, options = _search(tiny_checkpoint, "gguf", Budget(file_nbytes=1))
    sizes = {weight: {one.scheme: one.nbytes for one in several} for weight, several in options.items()}

    with pytest.raises(RecipeError, match=r"the smallest possible is ([\d,]+) bytes") as caught:
        search.check_budget(sizes)

    floor = int(str(caught.value).split("possible is ")[1].split(" ")[0].replace(",", ""))
    assert _best(tiny_checkpoint, "gguf", Budget(file_nbytes=floor)).estimate.nbytes == floor
    with pytest.raises(RecipeError, match="the smallest possible"):
        _best(tiny_checkpoint, "gguf", Budget(file_nbytes=floor - 1))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_a_memory_limit_includes_the_cache(tiny_checkpoint: Path, name: FormatName, sequential: bool) -> None:
    """Estimated device memory, with the cache and one pass, is within the limit; a longer context may exceed it."""
    phone = forecast(make_plan(Checkpoint.open(tiny_checkpoint), BASE), [name], 512).formats[0].device
    allowed = int(1.02 * (phone.sequential_nbytes if sequential else phone.concurrent_nbytes))

    result = _best(tiny_checkpoint, name, Budget(memory_nbytes=allowed, context=512, sequential=sequential))
    device = result.estimate.device

    assert (device.sequential_nbytes if sequential else device.concurrent_nbytes) <= allowed
    assert device.context == 512
    with pytest.raises(RecipeError, match="a memory of .* bytes is not possible"):
        _best(tiny_checkpoint, name, Budget(memory_nbytes=allowed, context=1 << 20, sequential=sequential))


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_the_format_supports_every_candidate(tiny_checkpoint: Path, name: FormatName) -> None:
    """A plan with a candidate scheme on all its weights has a forecast; the last candidate is always to keep."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    candidates = {
        spec.name: candidate_schemes(checkpoint, spec, name) for spec in checkpoint.specs if spec.role != "other"
    }

    for text in CANDIDATE_SCHEMES[name]:
        weights = {weight: text for weight, schemes in candidates.items() if parse_scheme(text) in schemes}
        assert weights
        plan = make_plan(checkpoint, Recipe.model_validate({"name": "x", "weights": weights}))
        assert forecast(plan, [name], 8).formats
    assert all(schemes[-1] is None for schemes in candidates.values())


def test_the_recipe_has_comments(tiny_checkpoint: Path) -> None:
    """The file begins with a summary that names the source of the losses; lines have their share of the loss."""
    text = _best(tiny_checkpoint, "gguf", Budget(file_nbytes=1_700_000)).to_toml()

    assert text.startswith("# ")
    assert "% of the loss" in text
    assert "predicted from nothing." in text


@pytest.fixture(scope="module")
def few(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples, two of them with an image."""
    copied = shutil.copytree(tiny_set, tmp_path_factory.mktemp("samples") / "few")
    lines = (copied / "manifest.jsonl").read_text().splitlines()
    (copied / "manifest.jsonl").write_text("\n".join(lines[:3]))
    return copied


def test_a_search_is_deterministic(tiny_checkpoint: Path, few: Path) -> None:
    """Measured losses and the recipe file are equal on one and two threads."""
    checkpoint, samples, budget = (
        Checkpoint.open(tiny_checkpoint),
        SampleSet.open(few),
        Budget(file_nbytes=1_700_000),
    )

    first = search_recipe(checkpoint, BASE, "gguf", budget, samples, 1, silent)
    with torch_threads(2):
        second = search_recipe(checkpoint, BASE, "gguf", budget, samples, 1, silent)

    assert 1_600_000 < first.estimate.nbytes <= 1_700_000
    assert 0 < first.rank_score < 10
    assert first.to_toml() == second.to_toml()


def test_a_conversion_with_a_budget_uses_the_searched_recipe(
    tiny_checkpoint: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search gets the calibration samples only, not those of the evaluation."""
    calibration_sets: list[SampleSet] = []

    def find(*arguments: Any) -> SearchResult:
        calibration_sets.append(arguments[4])
        return _best(tiny_checkpoint, "gguf", arguments[3])

    module = import_module("mcpmq.convert")
    monkeypatch.setattr(module, "search_recipe", find)
    monkeypatch.setattr(module, "compare", lambda checkpoint, artifacts, *_, **__: report_for(artifacts))

    budget = Budget(file_nbytes=1_700_000)
    convert(
        tiny_checkpoint,
        tmp_path / "out",
        recipe=BASE,
        formats=["gguf"],
        calibration=few,
        eval_set=few,
        settings=Settings(threads=1),
        budget=budget,
    )

    artifact = Artifact.open(tmp_path / "out" / "gguf")
    assert 1_600_000 < sum(artifact.nbytes_by_component().values()) <= 1_700_000
    assert artifact.manifest.recipe["name"] == "search-1700000-bytes-gguf"
    assert [one.sha256 for one in calibration_sets] == [SampleSet.open(few).sha256]


def test_a_budget_is_for_one_format(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """A budget with two formats is an error, because their sizes differ."""
    with pytest.raises(FormatError, match="2 formats are given with a budget"):
        convert(
            tiny_checkpoint,
            tmp_path / "out",
            recipe=BASE,
            formats=["gguf", "onnx"],
            calibration=tiny_set,
            eval_set=tiny_set,
            settings=Settings(threads=1),
            budget=Budget(file_nbytes=10**7),
        )


def test_a_format_with_a_single_scheme_is_an_error(tiny_checkpoint: Path, few: Path) -> None:
    """A GPTQ artifact has one scheme for all weights."""
    samples = SampleSet.open(few)

    with pytest.raises(FormatError, match="stores all weights on one scheme"):
        search_recipe(Checkpoint.open(tiny_checkpoint), BASE, "gptq", Budget(file_nbytes=10**7), samples, 1, silent)


def test_a_calibration_set_without_images_is_an_error(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """The losses of vision weights cannot be estimated without an image."""
    text = [line for line in (tiny_set / "manifest.jsonl").read_text().splitlines() if '"image"' not in line]
    (tmp_path / "manifest.jsonl").write_text("\n".join(text))
    samples = SampleSet.open(tmp_path)

    with pytest.raises(DatasetError, match=r"`vision\..*` receives no token"):
        search_recipe(Checkpoint.open(tiny_checkpoint), BASE, "gguf", Budget(file_nbytes=2_000_000), samples, 1, silent)


def test_losses_combine_sensitivity_share_and_error(
    tiny_checkpoint: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a weight is the KLD of its block times its share of the block's error times its relative error."""
    weight, scheme = "language.layers.1.mlp.up", parse_scheme("q6_k")
    error = QuantError("language.layers.1", 0.25, {"q6_k": 0.5, "keep": 0.0})
    measured: list[Any] = []

    def sensitivities(_: Checkpoint, blocks: Any, samples: Any, *__: Any) -> dict[str, float]:
        measured.append(({name: [spec.name for spec in specs] for name, specs in blocks.items()}, samples))
        return {"language.layers.1": 0.04}

    monkeypatch.setattr(mixed_precision, "quantization_errors", lambda *_: {weight: error})
    monkeypatch.setattr(mixed_precision, "block_sensitivities", sensitivities)
    opened, samples = Checkpoint.open(tiny_checkpoint), SampleSet.open(few)

    losses = mixed_precision.estimate_losses(opened, {weight: [scheme, None]}, BASE, samples, 1, silent, "cpu")

    assert losses == {weight: {"q6_k": pytest.approx(0.005), "keep": 0.0}}
    assert measured == [({"language.layers.1": [weight]}, samples.samples)]


def test_samples_are_evenly_spread(tiny_set: Path) -> None:
    """Three of seven samples are the first, third and fifth; a large count selects all."""
    samples = SampleSet.open(tiny_set)
    seven = SampleSet(samples.path, (samples.samples * 7)[:7])

    assert [id(one) for one in mixed_precision._spread(seven, 3)] == [id(seven.samples[i]) for i in (0, 2, 4)]
    assert mixed_precision._spread(seven, 48) == seven.samples


def test_a_result_has_a_row_for_every_component(tiny_checkpoint: Path) -> None:
    """Shares of the loss add up to all of it, and the JSON object has the estimated loss of every weight."""
    result = _best(tiny_checkpoint, "gguf", Budget(file_nbytes=1_700_000))

    table, record = result.to_table(), result.to_dict()

    assert [name for name, _ in table.rows][-1] == "all files"
    assert sum(int(cells[2].rstrip("%")) for _, cells in table.rows[:-1]) == pytest.approx(100, abs=2)
    assert record["nbytes"] == result.estimate.nbytes
    losses = sum(weight["rank_score"] for weight in record["weights"].values())
    assert record["rank_score"] == pytest.approx(losses)
    assert {name: weight["scheme"] for name, weight in record["weights"].items()} == {
        name: option.scheme for name, option in result.options.items()
    }
