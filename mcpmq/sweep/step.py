"""Carry out one step of a sweep in this process, with the functions of `quantize`, `export` and `evaluate`."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress
from mcpmq.dataset import ReadOptions, SampleSet
from mcpmq.errors import SweepError
from mcpmq.evaluate import Settings, encode_samples, measure_original
from mcpmq.export import export
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.report.evaluation import evaluate
from mcpmq.runners.worker import rss_bytes
from mcpmq.sweep.request import SetRequest, StepKind, StepRequest, StepResult
from mcpmq.system.output import lock_output

RSS_UNIT_NBYTES = 1024  # of getrusage(2) on Linux


def run_step(folder: Path, settings: Settings) -> None:
    """Carry out the request in a folder and write its result there; finished parts of a killed step are not repeated.

    `settings` has the progress and the notices; threads, device and cache are those of the request.

    Raises:
        SweepError: the request is not valid, or an input has changed since the sweep began.
        OutputError: another process carries out the step.
    """
    request, begin = StepRequest.load(folder), time.monotonic()
    cache = Path(request.cache) if request.cache else settings.cache_folder
    settings = replace(settings, threads=request.threads, device=request.device, cache_folder=cache)
    with lock_output(folder):
        STEPS[request.kind](request, folder, settings)
        _result(time.monotonic() - begin).write(folder)


def _result(seconds: float) -> StepResult:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu_seconds = sum(one.ru_utime + one.ru_stime for one in (own, children))
    # `ru_maxrss` begins with the size of the parent: that of a child is the peak of this process at least.
    peak = max(rss_bytes("VmHWM"), children.ru_maxrss * RSS_UNIT_NBYTES)
    return StepResult(seconds=round(seconds, 1), cpu_seconds=round(cpu_seconds, 1), peak_rss_bytes=peak)


def _measure_original(request: StepRequest, folder: Path, settings: Settings) -> None:
    """Measure the original; the steps that wait for it read its log-probabilities from the cache."""
    checkpoint, samples = _open_checkpoint(request, settings), open_set(request.evaluation)
    with encode_samples(checkpoint, samples, settings) as inputs:
        measure_original(checkpoint, inputs, settings)


def _quantize(request: StepRequest, folder: Path, settings: Settings) -> None:
    assert request.quantized is not None
    with _opened_plan(request, settings) as (plan, calibration):
        quantize(plan, request.quantized, calibration, settings.progress, settings.device, settings.notify)


def _run_cell(request: StepRequest, folder: Path, settings: Settings) -> None:
    """Write the artifact of a cell and measure it; a quantized model that is missing is made first."""
    with _opened_plan(request, settings) as (plan, calibration):
        artifact = _write_artifact(request, folder, plan, calibration, settings)
        evaluate([artifact], plan.checkpoint.source, open_set(request.evaluation), settings, out=folder)


def _write_artifact(
    request: StepRequest, folder: Path, plan: Plan, calibration: SampleSet | None, settings: Settings
) -> Artifact:
    name = request.format
    assert name is not None
    if request.quantized is None:
        return convert_in_one_pass(plan, name, folder / name, settings.progress)
    quantized = quantize(plan, request.quantized, calibration, settings.progress, settings.device, settings.notify)
    return export(quantized, name, folder / name, settings.progress)


@contextmanager
def _opened_plan(request: StepRequest, settings: Settings) -> Iterator[tuple[Plan, SampleSet | None]]:
    """Yield the plan of a request and its calibration set."""
    checkpoint, recipe = _open_checkpoint(request, settings), request.load_recipe()
    calibration = open_set(request.calibration) if request.calibration else None
    with compress(checkpoint, recipe, calibration, settings.progress) as compressed:
        yield make_plan(compressed, recipe), calibration


def _open_checkpoint(request: StepRequest, settings: Settings) -> Checkpoint:
    checkpoint = Checkpoint.open(request.checkpoint, settings.progress)
    _check_unchanged("checkpoint", request.checkpoint, checkpoint.sha256, request.checkpoint_sha256)
    return checkpoint


def open_set(request: SetRequest) -> SampleSet:
    """Open the sample set of a request.

    Raises:
        SweepError: its samples have changed since the sweep began.
    """
    samples = SampleSet.open(request.path, ReadOptions(request.samples, request.seed, skip_invalid=True))
    _check_unchanged("sample set", request.path, samples.sha256, request.sha256)
    return samples


def _check_unchanged(kind: str, name: str, found: str, requested: str) -> None:
    if found != requested:
        raise SweepError(
            f"the {kind} `{name}` has changed: SHA-256 {found[:12]}, {requested[:12]} when the sweep began",
            "start the sweep again: cells of the changed input are new cells",
        )


STEPS: Mapping[StepKind, Callable[[StepRequest, Path, Settings], None]] = MappingProxyType(
    {"original": _measure_original, "quantize": _quantize, "cell": _run_cell}
)
