"""Time by stage of a calibrated quantization on a GPU, at the published widths of MiniCPM-V 2.6.

python -m benchmarks.gpu_profile --plain --out whole.json                                  the whole model, 16 GB
python -m benchmarks.gpu_profile --layers 3 --vision-layers 3 --out some.json              some layers of each kind
python -m benchmarks.gpu_profile --collect whole.json some.json                            benchmarks/results/gpu.json

Weights are random, samples are those of the starter set. Times are wall-clock seconds of the main thread after the GPU
has finished, without those of stages inside; reading and writing go on in other threads. `--plain` measures without
waiting for the GPU at every stage, and prints the total only. The result is written after every block, so that an
interrupted run has the seconds of the blocks before.
"""

import argparse
import importlib
import json
import resource
import shutil
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.calibration_cost import write_samples
from benchmarks.commands import WORK, commit, write_result
from benchmarks.real_size import PUBLISHED_CONFIG, write_sparse_checkpoint
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.execution.device import device_name, resolve_device
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.system.environment import describe_machine
from mcpmq.system.progress import Item

NOISE_WEIGHTS = 1 << 28  # that are written at a time
STAGES = {  # by stage: the attribute of a module or class that is timed
    "hash of the checkpoint": "mcpmq.artifact:SourceRecord.from_checkpoint",
    "check of the samples": "mcpmq.quantize:check_samples",
    "encoding of the samples": "mcpmq.calibrate.forward:encode_samples",
    "building the model": "mcpmq.calibrate.forward:build_model",
    "loading original weights": "mcpmq.calibrate.forward:CalibrationRun.load_original",
    "loading quantized weights": "mcpmq.calibrate.sequential:_SequentialQuantizer._load_quantized",
    "forward passes and statistics": "mcpmq.calibrate.forward:CalibrationRun.collect_stats",
    "Hessian products": "mcpmq.calibrate.observers:HessianObserver._flush",
    "other statistics": "mcpmq.calibrate.observers:HessianObserver.update",
    "forward passes with quantized weights": "mcpmq.execution.layerwise:_Waiting.advance",
    "ranges of scales": "mcpmq.calibrate.sequential:find_folds",
    "magnitudes": "mcpmq.rounding.magnitudes:GroupMagnitudes.add",
    "choice of shrinkage": "mcpmq.rounding.weight:choose_shrinkage",
    "order of the Hessian": "mcpmq.rounding.gptq:order_hessian",
    "factorization": "mcpmq.rounding.gptq:shrunk_cholesky",
    "grid search": "mcpmq.rounding.gptq:_GroupGrids.choose_levels",
    "rounding of columns": "mcpmq.rounding.gptq:ldlq",
    "slope": "mcpmq.rounding.cholesky:LdlFactor.multiply",
    "descent": "mcpmq.rounding.gptq:descend",
    "GPTQ, the rest": "mcpmq.rounding.gptq:_quantize_rows",
    "comparison with rounding to nearest": "mcpmq.rounding.weight:nearest_is_better",
    "rounding to nearest": "mcpmq.rounding.weight:ROUNDING_FUNCTIONS[rtn]",
    "waiting for the writer": "mcpmq.calibrate.block_files:BackgroundWriter.__call__",
    "writing": "mcpmq.unfinished_run:UnfinishedRun.write_block",
    "manifest": "mcpmq.quantize:_finish",
}


class GpuClock:
    """Seconds of functions in this thread until the GPU has finished, without those of functions that they call."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._open: list[float] = []
        self._thread = threading.get_ident()

    def now(self) -> float:
        """Return the time after the GPU has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Measure the stages inside the context; those that a version of mcpmq does not have are left out."""
        with ExitStack() as patches:
            for stage, place in STAGES.items():
                self._patch(patches, stage, place)
            yield

    def _patch(self, patches: ExitStack, stage: str, place: str) -> None:
        module, _, path = place.partition(":")
        try:
            owner: Any = importlib.import_module(module)
            if path.endswith("]"):
                table, key = getattr(owner, path.partition("[")[0]), path[:-1].partition("[")[2]
                patches.enter_context(patch.dict(table, {key: self._timed(stage, table[key])}))
                return
            *classes, name = path.split(".")
            for one in classes:
                owner = getattr(owner, one)
            function = owner.__dict__[name]
        except (ImportError, KeyError, AttributeError):
            return
        bound = isinstance(function, classmethod)
        timed: Any = self._timed(stage, function.__func__ if bound else function)
        patches.enter_context(patch.object(owner, name, classmethod(timed) if bound else timed))

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() != self._thread:
                return function(*arguments, **options)
            start = self.now()
            self._open.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                elapsed, inner = self.now() - start, self._open.pop()
                self.seconds[stage] += elapsed - inner
                self.calls[stage] += 1
                if self._open:
                    self._open[-1] += elapsed

        return call


def write_checkpoint(out: Path, layers: int, vision_layers: int, device: torch.device) -> int:
    """Write a checkpoint of normal weights, which the device draws; return its bytes."""
    vision = PUBLISHED_CONFIG["vision_config"] | {"num_hidden_layers": vision_layers}
    file, begin, end = write_sparse_checkpoint(out, layers, PUBLISHED_CONFIG | {"vision_config": vision})
    generator = torch.Generator(device).manual_seed(0)
    with file.open("r+b", buffering=0) as stream:
        stream.seek(begin)
        for start in range(begin, end, 2 * NOISE_WEIGHTS):
            count = min(NOISE_WEIGHTS, (end - start) // 2)
            noise = (0.02 * torch.randn(count, generator=generator, device=device)).bfloat16()
            view = noise.view(torch.uint8).cpu().numpy().data
            while len(view):
                view = view[stream.write(view) :]
    return end - begin


def measure(
    options: argparse.Namespace, recipe: str, folder: Path, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Quantize, and return seconds by stage and by block, and peaks of memory; save them after every block."""
    device, marks = resolve_device(options.device), list[float]()
    clock = GpuClock(device)

    def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
        for number, item in enumerate(items):
            if label.startswith("calibrating"):
                marks.append(clock.now())
                print(f"{label}: {number} of {len(items)} after {marks[-1] - start:.1f} s", file=sys.stderr, flush=True)
                save(found(marks[-1] - start, len(items)))
            yield item
        if label.startswith("calibrating"):
            marks.append(clock.now())

    def found(total: float, num_blocks: int) -> dict[str, Any]:
        blocks = [round(later - earlier, 3) for earlier, later in pairwise(marks)]
        return {
            "recipe": recipe,
            "layers": options.layers,
            "vision_layers": options.vision_layers,
            "samples": options.samples,
            "num_blocks": num_blocks,
            "seconds": round(total, 2),
            "blocks": blocks,
            "gpu_peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    shutil.rmtree(folder / "quantized", ignore_errors=True)
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the context of the driver
        torch.cuda.reset_peak_memory_stats(device)
    start = clock.now()
    with ExitStack() as stack:
        if not options.plain:
            stack.enter_context(clock.measure())
        plan = make_plan(Checkpoint.open(folder / "checkpoint"), Recipe.load(recipe))
        quantize(plan, folder / "quantized", SampleSet.open(folder / "samples"), progress, options.device)
    total = clock.now() - start
    stages = dict(sorted(clock.seconds.items(), key=lambda item: -item[1]))
    stages["everything else"] = total - sum(stages.values())
    rounded = {stage: round(seconds, 3) for stage, seconds in stages.items()}
    is_complete = {"is_complete": True, "stages": {} if options.plain else rounded, "calls": dict(clock.calls)}
    return found(total, len(marks) - 1) | is_complete


def print_table(found: dict[str, Any]) -> None:
    """Print the stages of one recipe."""
    memory = f"GPU {found['gpu_peak_bytes'] / 1e9:.1f} GB, process {found['peak_rss_bytes'] / 1e9:.1f} GB"
    print(f"{found['recipe']}: {found['seconds']:.1f} s; peaks: {memory}")
    for stage, seconds in found["stages"].items():
        print(f"  {stage:40} {seconds:8.2f} s {found['calls'].get(stage, 0):8}")
    blocks = found["blocks"]
    print("  seconds by block:", " ".join(f"{one:.2f}" for one in blocks), flush=True)


def _provenance(options: argparse.Namespace) -> dict[str, Any]:
    """Return command, commit, machine and versions; packages for formats need not be installed."""
    paths = {"--folder", "--out"}  # of the machine
    pairs = pairwise(["", *sys.argv[1:]])
    words = [word for before, word in pairs if word not in paths and before not in paths]
    return {
        "command": f"python -m benchmarks.gpu_profile {' '.join(words)}".strip(),
        "commit": commit(),
        "machine": describe_machine(),
        "device": device_name(resolve_device(options.device)),
        "versions": {package: version(package) for package in ("mcpmq", "torch", "triton", "numpy")},
    }


def collect(files: Sequence[Path]) -> None:
    """Write the results of several runs of one machine and commit to benchmarks/results.

    Raises:
        SystemExit: machine, commit or versions differ.
    """
    first, *others = [json.loads(file.read_bytes()) for file in files]
    for other in others:
        if any(other[key] != first[key] for key in ("commit", "machine", "device", "versions")):
            raise SystemExit("the results are not of one machine and commit")
    results = [{"command": run["command"], **one} for run in (first, *others) for one in run["results"]]
    write_result("gpu", first | {"results": results})


def main() -> None:
    """Measure, print, and record the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=PUBLISHED_CONFIG["num_hidden_layers"])
    parser.add_argument("--vision-layers", type=int, default=PUBLISHED_CONFIG["vision_config"]["num_hidden_layers"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--recipe", nargs="+", default=["calibrated-int4"])
    parser.add_argument("--device", default="cuda", metavar="NAME")
    parser.add_argument("--folder", type=Path, default=WORK / "gpu-profile", help="for the checkpoint and the result")
    parser.add_argument("--plain", action="store_true", help="do not wait for the GPU at every stage")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="FILE", help="results for benchmarks/results")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect)
        return
    folder = options.folder / f"{options.layers}-{options.vision_layers}-{options.samples}"
    if not folder.exists():
        device = resolve_device(options.device)
        nbytes = write_checkpoint(folder / "checkpoint", options.layers, options.vision_layers, device)
        write_samples(folder / "samples", options.samples, None)
        print(f"wrote {nbytes / 1e9:.2f} GB", flush=True)
    results: list[dict[str, Any]] = []

    def save(*more: dict[str, Any]) -> None:
        if options.out:
            options.out.write_text(json.dumps(_provenance(options) | {"results": [*results, *more]}, indent=1))

    for recipe in options.recipe:
        results.append(measure(options, recipe, folder, save))
        print_table(results[-1])
        save()


if __name__ == "__main__":
    main()
