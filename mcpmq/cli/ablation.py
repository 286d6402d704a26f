"""The option `--ablate-components` of `evaluate`."""

from pathlib import Path

from mcpmq.cli.sample_sets import open_set


def ablate_components(
    artifact: Path,
    against: str,
    lora: list[Path] | None,
    eval_set: Path,
    num_samples: int | None,
    seed: int,
    out: Path | None,
    threads: int | None,
    cache: bool,
    json: bool,
) -> None:
    """Measure the loss with one component quantized at a time, and print it."""
    from mcpmq import ui
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.evaluate import Settings
    from mcpmq.quantized_model import QuantizedModel
    from mcpmq.report import report_folder
    from mcpmq.report.ablation import ABLATION_FILE
    from mcpmq.report.ablation import ablate_components as measure

    settings = Settings.from_options(threads, cache, ui.progress_bars())
    samples = open_set(eval_set, num_samples, seed)
    folder = out or artifact.absolute().parent
    original = Checkpoint.open(against, settings.progress, lora or ())
    with report_folder(folder, original.folders | {samples.path: "evaluation set"}):
        ablation = measure(original, QuantizedModel.open(artifact), samples, settings)
        ablation.write(folder)
    ui.print_ablation(ablation, as_json=json)
    ui.print_written_files([folder / ABLATION_FILE])
