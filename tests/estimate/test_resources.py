"""Estimates of memory and time are near recorded runs."""

import json
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.cli.planning import _count_tokens
from mcpmq.dataset import SampleSet
from mcpmq.estimate.forecast import Forecast, forecast
from mcpmq.formats import FormatName
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from mcpmq.system.progress import silent
from tests.tiny_families import TINY_FAMILIES

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "benchmarks" / "results" / "real-size-28.json").read_text())["commands"]
EXPORTS = [run for run in RECORDED if " export " in run["command"]]
QUANTIZATIONS = [run for run in RECORDED if " quantize " in run["command"] and " --format " not in run["command"]]


def _forecast(source: Path, recipe: str, *names: FormatName, context: int = 4096) -> Forecast:
    control = ROOT / "benchmarks" / "recipes" / f"{recipe}.toml"
    loaded = Recipe.load(str(control) if control.is_file() else recipe)
    return forecast(make_plan(Checkpoint.open(source), loaded), names, context)


@pytest.mark.parametrize("run", EXPORTS, ids=[run["command"][-50:] for run in EXPORTS])
def test_export_estimates_match_recorded_runs(published: Path, run: dict[str, float]) -> None:
    """At the published size, bytes are within 0.1 % of the record, memory within 15 %, seconds within 25 %."""
    words = str(run["command"]).split()
    recipe, name = words[-1 - 2].split("/")[-2], words[-1]

    [estimate] = _forecast(published, recipe, name).formats  # type: ignore[arg-type]

    assert estimate.nbytes == pytest.approx(run["written_bytes"], rel=1e-3)
    assert estimate.export_peak_rss_bytes == pytest.approx(run["peak_rss_bytes"], rel=0.15)
    assert estimate.export_seconds == pytest.approx(run["seconds"], rel=0.25)


@pytest.mark.parametrize("run", QUANTIZATIONS, ids=[run["command"][-12:] for run in QUANTIZATIONS])
def test_quantize_estimates_match_recorded_runs(published: Path, run: dict[str, float]) -> None:
    """At the published size, memory is within 15 % of the record, seconds within 25 %."""
    estimate = _forecast(published, str(run["command"]).split()[-1])

    assert estimate.quantize_peak_rss_bytes == pytest.approx(run["peak_rss_bytes"], rel=0.15)
    assert estimate.quantize_seconds == pytest.approx(run["seconds"], rel=0.25)


def test_device_memory_grows_with_the_cache(published: Path) -> None:
    """The cache has 28 layers of 4 heads of 128 keys and values of two bytes; sequential is below concurrent."""
    short, long = (
        _forecast(published, "phone-int4", "gguf", context=context).formats[0].device for context in (1024, 2048)
    )

    assert (
        long.kv_cache_nbytes - short.kv_cache_nbytes
        == 1024 * 28 * 2 * 4 * 128 * 2
        == long.concurrent_nbytes - short.concurrent_nbytes
    )
    assert short.sequential_nbytes < short.concurrent_nbytes


def test_calibration_time_is_near_a_recorded_run() -> None:
    """The time of the reference with the starter set is between half of the record and its double."""
    words = "--recipe calibrated-int4 --calibration calibration/starter"
    commands = json.loads((ROOT / "benchmarks" / "results" / "conversion.json").read_text())["commands"]
    [run] = [one for one in commands if one["command"].endswith(words)]
    plan = make_plan(Checkpoint.open(ROOT / "calibration" / "reference"), Recipe.load("calibrated-int4"))
    samples = SampleSet.open(ROOT / "calibration" / "starter")

    found = forecast(plan, ("gguf",), 1024, _count_tokens(plan, samples, silent)).quantize_seconds

    assert run["seconds"] / 2 < found < 2 * run["seconds"]


def test_the_time_of_calibrated_recipes_is_for_the_recommended_tokens(tiny_checkpoint: Path) -> None:
    """A note names their number and the cores."""
    calibrated = _forecast(tiny_checkpoint, "calibrated-int4", "gguf")

    assert calibrated.quantize_seconds > _forecast(tiny_checkpoint, "phone-int4", "gguf").quantize_seconds
    assert calibrated.to_dict()["calibration_tokens"] == 16_384
    assert any("for 16,384 calibration tokens on two cores" in note for note in calibrated.to_table().notes)


@pytest.mark.parametrize(
    ("name", "resident_ratio", "cache_element_nbytes", "logit_rows"), [("gguf", 1.0, 2, 512), ("onnx", 1.35, 4, 1)]
)
def test_device_memory_is_weights_cache_and_activations(
    published: Path, name: FormatName, resident_ratio: float, cache_element_nbytes: int, logit_rows: int
) -> None:
    """Vision adds one slice of 1024 patches; language adds the cache, the logits and 512 rows of a layer."""
    [estimate] = _forecast(published, "phone-int4", name, context=1024).formats
    vision = sum(file.nbytes for file in estimate.files.files if file.component.startswith("vision"))
    language = sum(file.nbytes for file in estimate.files.files if file.component in ("language", "embedding"))

    slice_nbytes = 4 * 1024 * (16 * 1024 + 4304 + 4 * 1152)
    cache_nbytes = 1024 * 28 * 2 * 4 * 128 * cache_element_nbytes
    pass_nbytes = 4 * (logit_rows * 151666 + 512 * (2 * 18944 + 3584))
    assert estimate.device.kv_cache_nbytes == cache_nbytes
    assert estimate.device.vision_nbytes == int(vision * resident_ratio) + slice_nbytes
    assert estimate.device.language_nbytes == int(language * resident_ratio) + cache_nbytes + pass_nbytes


def test_linear_attention_layers_have_a_state_of_fixed_size(tmp_path: Path) -> None:
    """One layer has keys and values for each token, the other a state and three steps of its convolution."""
    family = next(one for one in TINY_FAMILIES if one.name == "minicpm-v-4.6")
    checkpoint = family.build(tmp_path / "tiny")

    for context in (100, 300):
        [estimate] = _forecast(checkpoint, "phone-int4", "gguf", context=context).formats
        keys_and_values, state = context * 2 * 64 * 2, 4 * (2 * 64 * 64 + 6 * 64 * 3)
        assert estimate.device.kv_cache_nbytes == keys_and_values + state


def test_calibration_has_the_hessians_and_the_weights_of_a_block(published: Path) -> None:
    """A language layer: Hessians of four inputs, 2048 held-out and 2048 waiting inputs of each, and the larger of
    the weights in float32 and of their codes with the rows that are rounded at a time. The factor needs no memory.
    """
    plain = _forecast(published, "phone-int4")
    recipe = Recipe.load("calibrated-int4").model_copy(update={"targets": "layer"})
    calibrated = forecast(make_plan(Checkpoint.open(published), recipe), [], 4096)

    weights = 2 * 3584 * 3584 + 2 * 512 * 3584 + 3 * 18944 * 3584
    hessians = 4 * (3 * 3584**2 + 18944**2 + 2 * 2048 * (3 * 3584 + 18944))
    expected = 260_000_000 + hessians + max(4 * weights, weights + 100 * 2**22)
    assert calibrated.quantize_peak_rss_bytes == expected > plain.quantize_peak_rss_bytes


def test_targets_of_the_original_model_have_one_hessian_at_a_time(published: Path) -> None:
    """The stage of `down` has a Hessian of 18944 columns, products with 3584 rows, and inputs, and the larger of two:
    the layer and more inputs while the samples pass; its codes, the target and the rows that are rounded.
    """
    weights = {"language.*": "int4-g32"}
    plans = [
        make_plan(
            Checkpoint.open(published),
            Recipe.model_validate({"name": "x", "method": "gptq", "targets": targets, "weights": weights}),
        )
        for targets in ("layer", "model")
    ]

    one, both = (forecast(plan, ["gguf"], 4096) for plan in plans)

    hidden, ffn, keys = 3584, 18944, 512
    layer = 4 * (2 * hidden**2 + 2 * hidden * keys + 3 * hidden * ffn)
    inputs = 4 * 2048 * (ffn + hidden)
    statistics = 4 * (ffn**2 + hidden * ffn) + inputs
    stage = statistics + max(layer + inputs, layer // 4 + 6 * hidden * ffn + 100 * 2**22)
    hessians = 4 * (3 * hidden**2 + ffn**2 + 2 * 2048 * (3 * hidden + ffn))
    difference = both.quantize_peak_rss_bytes - one.quantize_peak_rss_bytes
    assert difference == stage - hessians - max(layer, layer // 4 + 100 * 2**22)
    notes = "".join(both.to_table().notes)
    assert both.quantize_peak_rss_bytes < 3.2 * 2**30
    assert "about 24 bytes x hidden size" in notes
    assert "targets of GPTQ are the outputs of the original model" in notes
