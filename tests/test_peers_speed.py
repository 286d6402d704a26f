"""The comparison of speed with other tools: medians, sums and ratios, and equal weights for both."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.commands import STARTER
from benchmarks.peers import speed_checkpoint
from benchmarks.peers.artifacts import HERE
from benchmarks.peers_speed import JOBS, Inputs, Job, compare, describe, medians, total
from benchmarks.peers_speed_tables import missing_lines, speed_lines, speed_rows
from benchmarks.process_cost import Cost
from mcpmq.checkpoint import Checkpoint
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe


def cost(seconds: float, processor_seconds: float, peak: int) -> Cost:
    """Return a cost."""
    return Cost(seconds, processor_seconds, peak)


def test_commands_that_follow_each_other_add_times_and_share_the_peak() -> None:
    """3 + 4 seconds are 7 seconds; of peaks of 10 and 30 bytes the larger counts."""
    assert total([cost(3, 1, 10), cost(4, 2.5, 30)]) == cost(7, 3.5, 30)


def test_ratios_are_those_of_medians() -> None:
    """One slow run of three changes nothing: 4 / 8 processor seconds, 5 / 10 seconds, 30 / 120 bytes."""
    job = Job("tool", lambda *_: [], lambda *_: [], 0.4, 0.25)
    ours = [cost(5, 4, 30), cost(50, 40, 300), cost(4, 3, 20)]
    theirs = [cost(10, 8, 120), cost(9, 7, 120), cost(90, 70, 121)]

    found = compare(job, 1000, ours, theirs)

    assert medians(ours) == cost(5, 4, 30)
    assert (found.processor_ratio, found.wall_ratio, found.memory_ratio) == (0.5, 0.5, 0.25)
    assert (found.repeats, found.weights_nbytes) == (3, 1000)
    assert describe(found) == ("tool: processor time 0.50 (target 0.4), wall time 0.50, peak memory 0.25 (target 0.25)")


def test_both_layouts_have_equal_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text checkpoint has the language model of the multimodal one; recipes and samples fit both."""
    small = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "vocab_size": 1024}
    monkeypatch.setattr(speed_checkpoint, "WIDTHS", speed_checkpoint.WIDTHS | small)
    multimodal, text = tmp_path / "multimodal", tmp_path / "text"
    speed_checkpoint.write_multimodal(multimodal, 1)
    speed_checkpoint.write_text(multimodal, text)
    tokens = speed_checkpoint.write_samples(STARTER, tmp_path / "samples", multimodal, text, 3)

    whole, language = load_file(multimodal / "model.safetensors"), load_file(text / "model.safetensors")
    config = json.loads((text / "config.json").read_text())
    assert len(language) == 2 + 1 + 12
    assert all(whole[f"llm.{name}"].equal(value) for name, value in language.items())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("qwen2", 1, 256)
    assert not any("image" in key or "vision" in key for key in config)  # else AutoRound needs a processor
    assert tokens == sum(map(len, json.loads((text / "tokens.json").read_text()))) > 30
    for name in ("speed-q8_0", "speed-q4_0", "speed-q4_k", "speed-onnx-int4"):
        assert make_plan(Checkpoint.open(multimodal), Recipe.load(str(HERE / "recipes" / f"{name}.toml")))


def test_every_job_has_commands(tmp_path: Path) -> None:
    """Both tools read the inputs and write to the folder that they are given, and other tools have environments."""
    inputs, out = Inputs(tmp_path / "inputs"), tmp_path / "out"
    for name, job in JOBS.items():
        ours, theirs = job.ours(inputs, out), job.theirs(inputs, out)
        assert all(any(str(word).startswith(str(out)) for word in words) for words in (*ours, *theirs)), name
        assert str(inputs.multimodal) in map(str, ours[0])
        assert str(inputs.text) in map(str, theirs[0])
        assert job.is_calibrated == ("--calibration" in ours[0])
        assert all(f"environments/{job.tool}/" in str(words[0]) for words in theirs), name


def test_tables_have_targets_and_missing_tools() -> None:
    """A ratio above its target is marked; a tool that is missing has its reason."""
    one = {"processor_seconds": 2.0, "seconds": 3.0, "peak_rss_bytes": 10**8}
    other = {"processor_seconds": 4.0, "seconds": 4.0, "peak_rss_bytes": 10**9}
    ratios = {"processor_ratio": 0.5, "wall_ratio": 0.75, "memory_ratio": 0.1}
    job = {"tool": "llamacpp", "ours": one, "theirs": other, **ratios, "time_target": 0.4, "memory_target": 0.2}
    result = {"jobs": {"gguf-q4_k": job}, "not_installed": {"autoround": "no wheel"}, "not_run": ["gptq-int4"]}

    assert list(speed_rows(result)) == [
        ["GGUF Q4_K", "llama.cpp", "2.0 / 4.0", "0.50", "0.4", "0.75", "100 / 1,000", "0.10", "0.2"],
    ]
    assert speed_lines(result) == [
        "- GGUF Q4_K: 0.50 of the processor time of llama.cpp's converter and quantizer, 0.10 of its peak memory"
    ]
    assert list(missing_lines(result)) == [
        "- AutoRound: not installed (no wheel)",
        "- not run: GPTQ int4, against GPTQModel",
    ]
