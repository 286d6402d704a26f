"""What is expected of memory and time is near what was recorded."""

import json
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.estimate.forecast import Forecast, forecast
from mcpmq.formats import FormatName
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "benchmarks" / "results" / "real-size-28.json").read_text())["commands"]
EXPORTS, QUANTIZATIONS = ([run for run in RECORDED if f" {verb} " in run["command"]] for verb in ("export", "quantize"))


def _expected(source: Path, recipe: str, *names: FormatName, context: int = 4096) -> Forecast:
    return forecast(make_plan(Checkpoint.open(source), Recipe.load(recipe)), names, context)


@pytest.mark.parametrize("run", EXPORTS, ids=[run["command"][-50:] for run in EXPORTS])
def test_an_export_of_the_published_size_was_as_forecast(published: Path, run: dict[str, float]) -> None:
    """Bytes within 0.1 %; memory and seconds, which are only expected, near what was recorded."""
    words = str(run["command"]).split()
    recipe, name = words[-1 - 2].split("/")[-2], words[-1]

    [layout] = _expected(published, recipe, name).layouts  # type: ignore[arg-type]

    assert layout.nbytes == pytest.approx(run["written_bytes"], rel=1e-3)
    assert layout.peak_resident_bytes == pytest.approx(run["peak_resident_bytes"], rel=0.15)
    assert layout.seconds == pytest.approx(run["seconds"], rel=0.25)


@pytest.mark.parametrize("run", QUANTIZATIONS, ids=[run["command"][-12:] for run in QUANTIZATIONS])
def test_quantizing_the_published_size_was_as_expected(published: Path, run: dict[str, float]) -> None:
    """Memory and seconds, near what was recorded."""
    made = _expected(published, str(run["command"]).split()[-1])

    assert made.peak_resident_bytes == pytest.approx(run["peak_resident_bytes"], rel=0.15)
    assert made.seconds == pytest.approx(run["seconds"], rel=0.25)


def test_memory_on_the_device_grows_with_the_context_by_its_cache(published: Path) -> None:
    """28 layers of 4 heads of 128 numbers, two bytes each, keys and values; in turn is less than at once."""
    short, long = (
        _expected(published, "phone-int4", "gguf", context=context).layouts[0].device for context in (1024, 2048)
    )

    assert long.cache - short.cache == 1024 * 28 * 2 * 4 * 128 * 2 == long.at_once - short.at_once
    assert short.sequential < short.at_once


def test_time_is_not_told_where_no_run_was_recorded(tiny_checkpoint: Path) -> None:
    """Rounding by sight depends on a set of samples that a plan does not know."""
    made = _expected(tiny_checkpoint, "calibrated-int4", "gguf")

    assert made.seconds is None
    assert any("no run recorded" in note for note in made.table().notes)
