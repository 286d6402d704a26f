"""Evaluation of artifacts against their original, and the files that it writes. It imports no torch."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.evaluate import Settings, evaluation_warnings
from mcpmq.report.compare import compare
from mcpmq.report.files import report_folder, write_report
from mcpmq.report.model_cards import card_files, update_model_cards
from mcpmq.report.report import Report
from mcpmq.system.output import lock_output


def evaluate(
    artifacts: Sequence[Artifact],
    checkpoint: Checkpoint,
    eval_set: SampleSet,
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    engine_baselines: Sequence[Artifact] = (),
    held_out_from_calibration: bool = False,
    scores: str | Path | None = None,
) -> Report:
    """Measure artifacts against their original, each in its own engine, on the same pixels and tokens.

    Args:
        artifacts: Artifacts in any format, or quantized models.
        checkpoint: The original.
        eval_set: Samples to measure on.
        settings: Threads, cache and progress; by default all cores and no progress.
        out: Folder to write report.json, report.md and report.html to; the model cards of the artifacts then get their
            results. Without it nothing is written.
        engine_baselines: Unquantized artifacts, at most one for every format, to separate the error of the engine from
            the error of quantization.
        held_out_from_calibration: Whether `eval_set` is the held-out part of the calibration set.
        scores: File of task scores of the original and the artifacts, which the report then contains.

    Raises:
        ArtifactError: an artifact was made from another checkpoint, or its files changed.
        DatasetError: an artifact was calibrated on a sample of `eval_set`, or the file of scores is invalid.
        EngineError: an engine failed.
        OutputError: the report or a model card cannot be written, or another process writes it.
    """
    settings = settings or Settings.from_options()
    for text in evaluation_warnings(eval_set):
        settings.notify(text)
    measure = partial(
        compare,
        checkpoint,
        artifacts,
        eval_set,
        settings,
        engine_baselines=engine_baselines,
        held_out_from_calibration=held_out_from_calibration,
        scores=Path(scores) if scores else None,
    )
    if out is None:
        return measure()
    with report_folder(Path(out), checkpoint.folders | {eval_set.path: "evaluation set"}):
        return measure_and_write(measure, Path(out), (*engine_baselines, *artifacts))


def measure_and_write(measure: Callable[[], Report], out: Path, artifacts: Sequence[Artifact]) -> Report:
    """Call `measure`, and write its report and the model cards; the caller holds the lock of the folder."""
    with ExitStack() as stack:
        for card in dict.fromkeys(card_files(artifacts)):
            stack.enter_context(lock_output(card))
        report = measure()
        write_report(report, out)
        update_model_cards(report, artifacts)
    return report
