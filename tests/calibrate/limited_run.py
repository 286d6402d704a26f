"""Quantize with a limit between the memory with all hidden states and with those of one sample; print limit and peak.

python -m tests.calibrate.limited_run CHECKPOINT SHORT_SAMPLES LONG_SAMPLES OUT

The short samples load all libraries and kernels first.
"""

import json
import sys
from pathlib import Path

import psutil

from mcpmq.calibrate import memory
from mcpmq.calibrate.memory import estimate_memory
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.families.encoding import encode_sample
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.runners.worker import rss_bytes

RESERVE_NBYTES = 5_000_000  # for libraries, which are loaded already, and for fragments of freed memory
RECIPE = Recipe.model_validate({"name": "limited", "method": "rtn-imatrix", "weights": {"language.*": "int8-g32"}})


def main(source: Path, short: Path, long: Path, out: Path) -> None:
    """Run twice, with the short and the long samples."""
    checkpoint, samples = Checkpoint.open(source), SampleSet.open(long)
    plan = make_plan(checkpoint, RECIPE)
    quantize(plan, out / "first", SampleSet.open(short), device="cpu")
    processor = checkpoint.family.open_processor(checkpoint.path)
    inputs = [encode_sample(processor, sample) for sample in samples]
    with_hessian = [tensor.name for tensor in plan.tensors if tensor.is_quantized]
    estimate = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, with_hessian)
    memory.LATER_LIBRARIES_NBYTES = RESERVE_NBYTES
    limit = psutil.Process().memory_info().rss + estimate.spilled_nbytes + 2 * RESERVE_NBYTES
    quantize(plan, out / "second", samples, device="cpu", memory_limit=limit)
    peak = rss_bytes("VmHWM")  # `ru_maxrss` begins with the size of the parent process
    spared = estimate.total_nbytes - estimate.spilled_nbytes - 2 * RESERVE_NBYTES
    sys.stdout.write(json.dumps({"limit": limit, "peak": peak, "spared": spared}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
