"""What a damaged block costs is measured on the model as it would run."""

from pathlib import Path

import pytest

from mcpmq.calibrate.forward import read_samples
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.mixed_precision import sensitivity
from mcpmq.mixed_precision.sensitivity import sensitivities
from mcpmq.runners.token_metrics import TokenJudge
from mcpmq.runners.torch import open_runner
from mcpmq.system.progress import silent
from tests.gguf_tools import quantized_by


def test_a_block_costs_what_a_model_with_this_block_damaged_loses(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Against artifacts that were quantized so, measured as artifacts are."""
    checkpoint, samples = Checkpoint.open(tiny_checkpoint), CalibrationSet.open(tiny_set).samples[:4]
    specs = [spec for spec in checkpoint.specs if spec.name.startswith("language.layers.1.") and spec.role == "matrix"]

    found = sensitivities(checkpoint, {"language.layers.1": specs}, samples, 1, silent)

    inputs = read_samples(checkpoint.family.processor(checkpoint.path), samples, silent)
    damaged = quantized_by(tiny_checkpoint, tmp_path, **{spec.name.replace(".", "__"): "int4-g32" for spec in specs})
    kept = TokenJudge(inputs, tmp_path / "kept", {})
    list(open_runner(tiny_checkpoint, 1).run(inputs, kept))
    kept.close()
    judge = TokenJudge(inputs, None, {"original": tmp_path / "kept"})
    answers = list(open_runner(damaged.path, 1).run(inputs, judge))
    judge.close()
    divergences = [one for answer in answers for one in answer.compared["original"].kl_divergences]
    assert found["language.layers.1"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)


def test_layers_between_measured_ones_are_reckoned_from_them() -> None:
    """A straight line for the logarithm; all are measured where there are few."""
    measured = {"language.layers.0": 1e-4, "language.layers.4": 1e-2}

    assert sensitivity._between("language.layers.2", measured) == pytest.approx(1e-3)
    names = [*(f"language.layers.{layer}" for layer in range(28)), "projector", "head"]
    chosen = sensitivity._measured(names)
    assert len(chosen) == sensitivity.MOST_LAYERS + 2
    assert {"language.layers.0", "language.layers.27", "projector", "head"} <= set(chosen)
    assert sensitivity._measured(names[:5]) == names[:5]
