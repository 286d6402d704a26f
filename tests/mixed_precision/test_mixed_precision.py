"""A mix fits to the byte, loses less than what it is compared with, and is written as a recipe."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.convert import convert
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import CalibrationError, FormatError, RecipeError
from mcpmq.estimate.forecast import forecast
from mcpmq.evaluate import Settings
from mcpmq.execution.chunked_matmul import torch_threads
from mcpmq.export import export
from mcpmq.formats import FormatName
from mcpmq.mixed_precision import Budget, Fitted, fit
from mcpmq.mixed_precision.candidates import CANDIDATES, candidates
from mcpmq.mixed_precision.knapsack import Option
from mcpmq.mixed_precision.search import Search
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.scheme import parse_scheme
from mcpmq.system.progress import silent
from tests.fake_releases import report_about

BASE = Recipe.load("phone-int4")
Options = Mapping[str, list[Option]]


def _search(checkpoint: Path, name: FormatName, budget: Budget) -> tuple[Search, Options]:
    """With losses that nobody measured: fewer bits and later layers cost more."""
    opened = Checkpoint.open(checkpoint)
    search = Search(opened, BASE, name, budget)
    schemes = {spec.name: candidates(opened, spec, name) for spec in opened.specs if spec.role != "other"}
    options = {
        weight: [Option(scheme, nbytes, (len(weight) % 7 + 1) / nbytes**2) for scheme, nbytes in several.items()]
        for weight, several in search.sizes(schemes).items()
    }
    return search, options


def _best(checkpoint: Path, name: FormatName, budget: Budget) -> Fitted:
    search, options = _search(checkpoint, name, budget)
    sizes = {weight: {one.scheme: one.nbytes for one in several} for weight, several in options.items()}
    return search.best(options, search.refuse_hopeless(sizes), "nothing")


@pytest.mark.parametrize(("name", "nbytes"), [("gguf", 1_600_000), ("gguf", 2_000_000), ("onnx", 1_900_000)])
def test_what_is_written_has_the_size_that_was_asked_for(
    tiny_checkpoint: Path, tmp_path: Path, name: FormatName, nbytes: int
) -> None:
    """At most, and nearly all of it; the recipe file gives the same plan."""
    fitted = _best(tiny_checkpoint, name, Budget(file_nbytes=nbytes))
    fitted.write(tmp_path / "mine.toml")

    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load(str(tmp_path / "mine.toml")))
    artifact = export(quantize(plan, tmp_path / "codes"), name, tmp_path / "out")
    written = sum(artifact.nbytes_by_component().values())

    assert written == fitted.layout.nbytes
    assert nbytes * 0.95 < written <= nbytes
    chosen = {weight: option.scheme for weight, option in fitted.chosen.items()}
    assert {step.name: str(step.scheme or "keep") for step in plan.steps if step.name in chosen} == chosen


def test_more_room_never_loses_more(tiny_checkpoint: Path) -> None:
    """From nearly nothing to more than enough."""
    losses = [
        _best(tiny_checkpoint, "gguf", Budget(file_nbytes=nbytes)).loss
        for nbytes in (1_500_000, 1_700_000, 2_000_000, 4_000_000)
    ]

    assert losses == sorted(losses, reverse=True)


def test_too_little_room_says_how_small_the_smallest_is(tiny_checkpoint: Path) -> None:
    """And that is true: a byte less is refused, as much is met."""
    search, options = _search(tiny_checkpoint, "gguf", Budget(file_nbytes=1))
    sizes = {weight: {one.scheme: one.nbytes for one in several} for weight, several in options.items()}

    with pytest.raises(RecipeError, match=r"the smallest possible is ([\d,]+) bytes") as caught:
        search.refuse_hopeless(sizes)

    floor = int(str(caught.value).split("possible is ")[1].split(" ")[0].replace(",", ""))
    assert _best(tiny_checkpoint, "gguf", Budget(file_nbytes=floor)).layout.nbytes == floor
    with pytest.raises(RecipeError, match="the smallest possible"):
        _best(tiny_checkpoint, "gguf", Budget(file_nbytes=floor - 1))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_memory_on_the_device_is_kept_to(tiny_checkpoint: Path, name: FormatName, sequential: bool) -> None:
    """The cache of the context and what a pass takes are counted; a longer context leaves less for weights."""
    phone = forecast(make_plan(Checkpoint.open(tiny_checkpoint), BASE), [name], 512).layouts[0].device
    allowed = int(1.02 * (phone.sequential if sequential else phone.at_once))

    fitted = _best(tiny_checkpoint, name, Budget(memory_nbytes=allowed, context=512, sequential=sequential))
    device = fitted.layout.device

    assert (device.sequential if sequential else device.at_once) <= allowed
    assert fitted.layout.device.context == 512
    with pytest.raises(RecipeError, match="memory of .* cannot be met"):
        _best(tiny_checkpoint, name, Budget(memory_nbytes=allowed, context=1 << 20, sequential=sequential))


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_every_candidate_can_be_held(tiny_checkpoint: Path, name: FormatName) -> None:
    """Each alone, wherever it is offered; and leaving a weight as it is is always offered."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    held = {spec.name: candidates(checkpoint, spec, name) for spec in checkpoint.specs if spec.role != "other"}

    for text in CANDIDATES[name]:
        weights = {weight: text for weight, schemes in held.items() if parse_scheme(text) in schemes}
        assert weights
        plan = make_plan(checkpoint, Recipe.model_validate({"name": "x", "weights": weights}))
        assert forecast(plan, [name], 8).layouts
    assert all(schemes[-1] is None for schemes in held.values())


def test_the_recipe_says_why(tiny_checkpoint: Path) -> None:
    """Above the lines, in words a person can check."""
    text = _best(tiny_checkpoint, "gguf", Budget(file_nbytes=1_700_000)).toml()

    assert text.startswith("# ")
    assert "% of the loss" in text
    assert "predicted from nothing" in text


@pytest.fixture(scope="module")
def few(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples, two of them with an image."""
    copied = shutil.copytree(tiny_set, tmp_path_factory.mktemp("samples") / "few")
    lines = (copied / "manifest.jsonl").read_text().splitlines()
    (copied / "manifest.jsonl").write_text("\n".join(lines[:3]))
    return copied


def test_the_same_question_has_the_same_answer(tiny_checkpoint: Path, few: Path) -> None:
    """Losses told from samples, and the mix found: on one thread and on two, to the letter."""
    checkpoint, samples, budget = (
        Checkpoint.open(tiny_checkpoint),
        CalibrationSet.open(few),
        Budget(file_nbytes=1_700_000),
    )

    first = fit(checkpoint, BASE, "gguf", budget, samples, 1, silent)
    with torch_threads(2):
        second = fit(checkpoint, BASE, "gguf", budget, samples, 1, silent)

    assert 1_600_000 < first.layout.nbytes <= 1_700_000
    assert 0 < first.loss < 10
    assert first.toml() == second.toml()


def test_a_conversion_under_a_budget_takes_the_mix_that_was_found(
    tiny_checkpoint: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And looks only at samples that it will not be measured on."""
    seen: list[CalibrationSet] = []

    def find(*arguments: Any) -> Fitted:
        seen.append(arguments[4])
        return _best(tiny_checkpoint, "gguf", arguments[3])

    monkeypatch.setattr("mcpmq.convert.fit", find)
    monkeypatch.setattr("mcpmq.convert.compare", lambda checkpoint, artifacts, *_, **__: report_about(artifacts))

    budget = Budget(file_nbytes=1_700_000)
    convert(tiny_checkpoint, tmp_path / "out", BASE, ["gguf"], few, few, Settings(threads=1), budget)

    made = Artifact.open(tmp_path / "out" / "gguf")
    assert 1_600_000 < sum(made.nbytes_by_component().values()) <= 1_700_000
    assert made.manifest.recipe["name"] == "fit-1700000-bytes-gguf"
    assert [one.sha256 for one in seen] == [CalibrationSet.open(few).sha256]


def test_a_budget_is_for_one_format(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """What fits as GGUF is larger as ONNX."""
    with pytest.raises(FormatError, match="a budget was given for 2 formats"):
        convert(
            tiny_checkpoint,
            tmp_path / "out",
            BASE,
            ["gguf", "onnx"],
            tiny_set,
            tiny_set,
            Settings(threads=1),
            Budget(file_nbytes=10**7),
        )


def test_where_all_weights_share_a_grid_there_is_nothing_to_fit(tiny_checkpoint: Path, few: Path) -> None:
    """GPTQ's config.json names one for all."""
    samples = CalibrationSet.open(few)

    with pytest.raises(FormatError, match="there is no mix to find"):
        fit(Checkpoint.open(tiny_checkpoint), BASE, "gptq", Budget(file_nbytes=10**7), samples, 1, silent)


def test_without_an_image_nothing_is_told_of_what_sees(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """No guess is made for the vision tower."""
    text = [line for line in (tiny_set / "manifest.jsonl").read_text().splitlines() if '"image"' not in line]
    (tmp_path / "manifest.jsonl").write_text("\n".join(text))
    samples = CalibrationSet.open(tmp_path)

    with pytest.raises(CalibrationError, match=r"`vision\..*` saw nothing"):
        fit(Checkpoint.open(tiny_checkpoint), BASE, "gguf", Budget(file_nbytes=2_000_000), samples, 1, silent)
