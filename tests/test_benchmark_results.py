"""Committed benchmark results: they load, record their provenance, and are rendered with correct rounding."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.commands import RESULTS
from benchmarks.markdown import load_result, megabytes, percent, percent_change, provenance_line, table, thousandths
from benchmarks.result_tables import peers_table
from mcpmq.evaluate import Estimate
from mcpmq.recipe import Recipe
from mcpmq.report import Report
from mcpmq.report.ablation import ComponentAblation

REPORTS = ("reference", "calibrated", "engine-baseline", "hugging-face", "engine-preprocessing", "shuffled")
ABLATIONS = ("ablation-rtn", "ablation-gptq")
OTHERS = sorted(path.stem for path in RESULTS.glob("*.json") if path.stem not in (*REPORTS, *ABLATIONS))
SEARCHED = sorted((RESULTS / "budgets").glob("*.toml"))


@pytest.mark.parametrize("name", REPORTS)
def test_reports_load_with_their_environment(name: str) -> None:
    """Committed reports have the present schema, the held-out set, and the versions of the environment."""
    report = Report.load(RESULTS / f"{name}.json")

    assert report.eval_set.name == "heldout"
    assert report.environment.versions["mcpmq"]
    assert report.eval_set.engine_preprocessing is (name == "engine-preprocessing")
    assert report.eval_set.images_shuffled is (name == "shuffled")


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_load_with_all_components(name: str) -> None:
    """Committed ablations have the present schema and end with all components together."""
    ablation = ComponentAblation.model_validate_json((RESULTS / f"{name}.json").read_bytes())

    assert list(ablation.components) == ["vision", "projector", "embedding", "language", "head", "all"]


@pytest.mark.parametrize("name", OTHERS)
def test_results_have_provenance(name: str) -> None:
    """Other results have their command, machine, and commit with versions; the compatibility check has its date."""
    result = json.loads((RESULTS / f"{name}.json").read_text())

    assert re.match(r"python -m (benchmarks|tests)\.\w+|make compat", result["command"])
    assert result["machine"]["cores"] >= 1
    assert "date" in result or (re.fullmatch(r"[0-9a-f]{7,}", result["commit"]) and result["versions"])


@pytest.mark.parametrize("path", SEARCHED, ids=lambda path: path.stem)
def test_searched_recipes_load(path: Path) -> None:
    """The name of a searched recipe has the size of its file name."""
    assert Recipe.load(str(path)).name == f"{path.stem}-bytes-gguf"


def test_estimates_are_rendered_in_the_unit_of_the_column() -> None:
    """Ratios become changes in percent, shares percent, nats thousandths; each with half of its 95 % interval."""
    estimate = Estimate(value=1.0123, standard_error=0.00456, low=1.0, high=1.021)

    assert percent_change(estimate) == "+1.23 ± 1.05"
    assert percent(estimate) == "101.2 ± 1.0"
    assert percent(estimate, digits=2) == "101.23 ± 1.05"
    assert thousandths(estimate, "+") == "+1012.30 ± 10.50"
    assert megabytes(5_345_000_000) == "5,345"


def test_tables_align_text_left_and_numbers_right() -> None:
    """The first columns are text, the others numbers."""
    assert table(["a", "b", "c"], [["x", "1", "2"]], 1) == "| a | b | c |\n|---|--:|--:|\n| x | 1 | 2 |"


def test_provenance_names_command_commit_machine_and_versions() -> None:
    """Memory is given in GiB."""
    machine = {"processor": "CPU", "cores": 3, "memory_bytes": 5 * 2**30}
    result = {"command": "run", "commit": "abc", "machine": machine, "versions": {"torch": "2", "numpy": "1"}}

    assert provenance_line(result) == "`run` at abc; CPU, 3 cores, 5 GiB; torch 2, numpy 1."


def test_the_first_row_of_a_peer_table_has_no_difference() -> None:
    """Differences are those from the first row."""
    rows = [line.split(" | ") for line in peers_table("reference", "text").splitlines()[2:]]

    assert rows[0][3] == ""
    assert all(re.fullmatch(r"[+-]\d+\.\d\d ± \d+\.\d\d", row[3]) for row in rows[1:])


def test_the_comparison_of_tools_is_sorted_by_divergence() -> None:
    """Every tool has a row, with mean KLD times 1000 in increasing order."""
    rows = [line.split("|")[1:-1] for line in quality.reference_table().splitlines()[2:]]
    divergences = [float(cells[2].partition("±")[0]) for cells in rows]

    assert len(rows) == len(quality.PEERS) + len(quality.LLAMA_QUANTIZE)
    assert divergences == sorted(divergences)


def test_the_comparison_on_pretrained_weights_is_sorted_and_has_one_format() -> None:
    """The smallest divergence is first; earlier commits and other formats are left out."""
    estimate = {"value": 1.02, "standard_error": 0.01, "low": 1.0, "high": 1.04}
    row = {"format": "gguf", "bits_per_weight": 4.5, "perplexity_ratio": estimate}
    divergences = {"rtn-int4-g32": 0.3, "gptq-int4-earlier": 0.2, "gptq-int4-g32": 0.1, "llama-quantize-q4_k": 0.15}
    rows = [row | {"name": name, "kl_divergence": estimate | {"value": value}} for name, value in divergences.items()]
    other = row | {"name": "gptq-int4-g32", "format": "onnx", "kl_divergence": estimate}

    lines = quality.real_weights_table({"rows": [*rows, other]}).splitlines()[2:]

    assert [line.split("|")[1:4] for line in lines] == [
        [" **mcpmq, GPTQ**, `int4-g32`, the default in ONNX ", " 4.50 ", " 100.00 ± 20.00 "],
        [" llama-quantize, Q4_K with imatrix ", " 4.50 ", " 150.00 ± 20.00 "],
        [" round to nearest, `int4-g32` ", " 4.50 ", " 300.00 ± 20.00 "],
    ]


def test_the_comparison_on_all_layers_needs_both_tools() -> None:
    """The sentence has both divergences, times 1000; without one of them it is empty."""
    rows = [
        {
            "name": f"{name}-all-layers",
            "kl_divergence": {"value": value, "standard_error": 0.01, "low": 0.0, "high": 0.1},
        }
        for name, value in (("gptq-iq4_nl-model-targets", 0.08), ("gptqmodel-gptq-act-group-aware", 0.24))
    ]

    assert "mcpmq has 80.00 ± 50.00" in quality._all_layers_sentence({"rows": rows})
    assert "`act_group_aware` 240.00 ±" in quality._all_layers_sentence({"rows": rows})
    assert quality._all_layers_sentence({"rows": rows[:1]}) == ""


def test_speech_is_the_best_calibration_set_for_audio() -> None:
    """Every other set, and rounding to nearest, has a larger divergence on audio, as the documents state."""
    changes = load_result("audio")["changes"]

    assert {"", "texts", "noise", "speech, as few"} == {one["from"] for one in changes}
    assert all(one["kl_divergence_increase"]["high"] < 0 for one in changes)


def test_the_calibration_at_published_widths_is_within_its_memory_limit() -> None:
    """4 GiB for 128 samples with images, as the documents state."""
    found = load_result("calibration-cost")

    assert found["samples"] == 128
    assert found["memory_limit_bytes"] == 4 << 30
    assert found["peak_rss_bytes"] <= 4 << 30
