"""Time by stage and block, and peak memory, of a calibrated quantization at the published widths of MiniCPM-V 2.6.

python -m benchmarks.calibration_cost --memory-limit 4GiB --write   128 samples of the starter set's kind, two layers of
                                                                    each kind
python -m benchmarks.calibration_cost --text-tokens 640             128 synthetic texts

Weights are random with heavy tails. Times are CPU seconds of all threads: those of a stage without the stages that it
calls, those of a block without the time before the first block. All layers of a kind have equal shapes, so the time of
the whole model is extrapolated from the last layer of each kind.
"""

import argparse
import json
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.commands import STARTER, WORK, provenance, write_result
from benchmarks.real_size import PUBLISHED_CONFIG, write_sparse_checkpoint
from mcpmq.calibrate import observers, sequential
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.execution import chunked_matmul
from mcpmq.families.encoding import encode_sample
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.rounding import cholesky, gptq, weight
from mcpmq.runners.worker import rss_bytes
from mcpmq.system.sizes import parse_size
from mcpmq.unfinished_run import UnfinishedRun

FOLDER = WORK / "calibration-cost"
LANGUAGE_LAYERS, VISION_LAYERS = 28, 27
STAGES: dict[str, tuple[Any, str]] = {
    "reading weights": (Checkpoint, "load"),
    "linear layers": (chunked_matmul, "_multiply_chunk"),
    "Hessians": (observers.HessianObserver, "_add_tile"),
    "other statistics": (observers.HessianObserver, "update"),
    "choice of shrinkage": (weight, "choose_shrinkage"),
    "factorization": (gptq, "shrunk_cholesky"),
    "grid search": (gptq._GroupGrids, "choose_levels"),
    "rounding of columns": (gptq, "ldlq"),
    "slope": (cholesky.LdlFactor, "multiply"),
    "descent": (gptq, "descend"),
    "comparison with rounding to nearest": (weight, "nearest_is_better"),
    "loading a quantized block": (sequential._SequentialQuantizer, "_load_quantized"),
    "writing": (UnfinishedRun, "write_block"),
}


class StageClock:
    """CPU seconds of functions in all threads, without those of functions that they call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._threads = threading.local()

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Measure the stages inside the context."""
        with ExitStack() as patches:
            for stage, (owner, name) in STAGES.items():
                patches.enter_context(patch.object(owner, name, self._timed(stage, getattr(owner, name))))
            yield

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            open_stages = vars(self._threads).setdefault("stages", [])
            start = time.thread_time()
            open_stages.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                elapsed, inner = time.thread_time() - start, open_stages.pop()
                self.seconds[stage] += elapsed - inner
                if open_stages:
                    open_stages[-1] += elapsed

        return call


def write_checkpoint(out: Path, language_layers: int, vision_layers: int) -> None:
    """Write a checkpoint with the published widths, and weights of Student's t distribution with 4 degrees."""
    vision = PUBLISHED_CONFIG["vision_config"] | {"num_hidden_layers": vision_layers}
    file, begin, end = write_sparse_checkpoint(out, language_layers, PUBLISHED_CONFIG | {"vision_config": vision})
    noise = np.random.default_rng(0).standard_t(4, 1 << 23).astype(np.float32) * np.float32(0.014)
    values = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with file.open("r+b") as stream:
        stream.seek(begin)
        for start in range(begin, end, len(values)):
            stream.write(values[: end - start])


def write_samples(out: Path, count: int, text_tokens: int | None) -> None:
    """Write the first samples of the starter set, or texts of about this number of tokens."""
    out.mkdir(parents=True)
    lines = (STARTER / "manifest.jsonl").read_text().splitlines()[:count]
    if text_tokens is None:
        shutil.copytree(STARTER / "images", out / "images")
    else:
        prompts = [json.loads(line)["prompt"] for line in (STARTER / "manifest.jsonl").read_text().splitlines()]
        lines = [json.dumps(_text(number, prompts, text_tokens)) for number in range(count)]
    (out / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def _text(number: int, prompts: list[str], tokens: int) -> dict[str, str]:
    words = " ".join(prompts[number % len(prompts) :] + prompts).split()
    return {"id": f"text-{number}", "prompt": " ".join(words[: int(tokens * 0.72)]), "answer": words[number]}


def count_inputs(checkpoint: Checkpoint, samples: SampleSet) -> dict[str, int]:
    """Return the tokens of the language model, and the slices of images."""
    processor = checkpoint.family.open_processor(checkpoint.path)
    inputs = [encode_sample(processor, sample) for sample in samples]
    return {"tokens": sum(len(one.tokens) for one in inputs), "slices": sum(len(one.slices) for one in inputs)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Quantize, and return CPU seconds by stage and by block, and the peak memory."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_checkpoint(FOLDER / "checkpoint", options.layers, options.vision_layers)
    write_samples(FOLDER / "samples", options.samples, options.text_tokens)
    plan = make_plan(Checkpoint.open(FOLDER / "checkpoint"), Recipe.load(options.recipe))
    sizes = count_inputs(plan.checkpoint, SampleSet.open(FOLDER / "samples"))
    clock, blocks, start = StageClock(), list[dict[str, Any]](), time.process_time()
    write = UnfinishedRun.write_block

    def record_block(run: UnfinishedRun, file: Path, *arguments: Any) -> None:
        write(run, file, *arguments)
        peak = rss_bytes("VmHWM")
        blocks.append({"block": file.stem, "processor_seconds": time.process_time(), "peak_rss_bytes": peak})
        print(f"{file.stem:32} {time.process_time() - start:9.1f} s, peak {peak / 1e6:,.0f} MB", flush=True)

    with patch.object(UnfinishedRun, "write_block", record_block), clock.measure():
        quantize(
            plan,
            FOLDER / "quantized",
            SampleSet.open(FOLDER / "samples"),
            device="cpu",
            memory_limit=options.memory_limit,
        )
    total = time.process_time() - start
    for later, earlier in zip(blocks[:0:-1], blocks[-2::-1], strict=True):
        later["processor_seconds"] -= earlier["processor_seconds"]
    blocks[0]["processor_seconds"] -= start
    stages = dict(sorted(clock.seconds.items(), key=lambda item: -item[1]))
    stages["everything else"] = total - sum(stages.values())
    return {
        "threads": torch.get_num_threads(),
        "samples": options.samples,
        **sizes,
        "processor_seconds": total,
        "memory_limit_bytes": options.memory_limit,
        "peak_rss_bytes": rss_bytes("VmHWM"),
        "stages": stages,
        "blocks": blocks,
    }


def main() -> None:
    """Measure, print, and record the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vision-layers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--text-tokens", type=int, metavar="N", help="texts of about N tokens instead of images")
    parser.add_argument("--recipe", default="calibrated-int4")
    parser.add_argument("--memory-limit", type=parse_size, metavar="SIZE", help="as that of `mcpmq quantize`")
    parser.add_argument("--write", action="store_true", help="write the result to benchmarks/results")
    options = parser.parse_args()
    found = measure(options)
    for stage, seconds in found["stages"].items():
        print(f"{stage:40} {seconds:9.1f}")
    print(f"total {found['processor_seconds']:.1f} CPU s, peak {found['peak_rss_bytes'] / 1e6:,.0f} MB")
    if options.write:
        write_result("calibration-cost", provenance("benchmarks.calibration_cost", "numba") | found)


if __name__ == "__main__":
    main()
