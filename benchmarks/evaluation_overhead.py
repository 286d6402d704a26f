"""CPU time of an evaluation of a GGUF artifact of 1 B weights, against that of llama.cpp alone on the same samples.

python -m benchmarks.evaluation_overhead              every third sample of the held-out set
python -m benchmarks.evaluation_overhead --every 50   fewer samples, printed only

A first evaluation computes the log-probabilities of the original, and both evaluations use one thread. The engine alone
is a process that loads the artifact and computes the logits of all answers. The weights are random.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.commands import HELDOUT, WORK, provenance, run_command, write_result
from benchmarks.process_cost import run_measured
from benchmarks.real_size import PUBLISHED_CONFIG, write_checkpoint
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.families.encoding import encode_sample
from mcpmq.families.inputs import Inputs
from mcpmq.runners.gguf import open_runner
from mcpmq.runners.runner import Logits

FOLDER = WORK / "evaluation-overhead"
LAYERS, VISION_LAYERS = 12, 4
EVERY = 3
CONFIG = PUBLISHED_CONFIG | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vision_config": PUBLISHED_CONFIG["vision_config"] | {"num_hidden_layers": VISION_LAYERS},
}
ENGINE_ALONE = "engine-alone"  # the argument of the process


def prepare(every: int) -> tuple[Path, Path, Path]:
    """Write checkpoint, artifact and samples; return their folders."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    checkpoint, artifact, chosen = (FOLDER / name for name in ("checkpoint", "artifact", "samples"))
    write_checkpoint(checkpoint, LAYERS, CONFIG)
    run_command("quantize", checkpoint, artifact, "--recipe", "phone-int4", "--format", "gguf", out=artifact)
    shutil.copytree(HELDOUT, chosen)
    lines = (HELDOUT / "manifest.jsonl").read_text().splitlines()
    (chosen / "manifest.jsonl").write_text("\n".join(lines[::every]) + "\n")
    return checkpoint, artifact, chosen


def run_engine(checkpoint: Path, artifact: Path, samples: Path) -> dict[str, float]:
    """Compute the logits of all answers; return CPU seconds of loading and of the samples, and the sizes."""
    processor = Checkpoint.open(checkpoint).family.open_processor(checkpoint)
    inputs = [encode_sample(processor, one) for one in SampleSet.open(samples)]
    start = time.process_time()
    runner = open_runner(artifact, 1)
    loaded = time.process_time()
    logits = sum(runner.run(inputs, _count))
    end = time.process_time()
    sizes = {"samples": len(inputs), "tokens": sum(len(one.tokens) for one in inputs), "logits": logits}
    return {"load_seconds": loaded - start, "run_seconds": end - loaded, **sizes}


def _count(_: Inputs, logits: Any) -> int:
    rows: list[Logits] = list(logits)
    return len(rows)


def measure(checkpoint: Path, artifact: Path, samples: Path) -> dict[str, Any]:
    """Evaluate twice and run the engine alone."""
    words = ["evaluate", artifact, "--against", checkpoint, "--eval-set", samples, "--threads", "1", "--out"]
    variables = {**os.environ, "XDG_CACHE_HOME": str(FOLDER / "cache")}  # without earlier measurements of the original
    found = {}
    for name in ("evaluation with the original", "evaluation"):
        out = FOLDER / name.replace(" ", "-")
        command = [sys.executable, "-m", "mcpmq", "--quiet", *words, out]
        status, cost = run_measured(command, FOLDER, output=subprocess.DEVNULL, variables=variables)
        if status:
            raise SystemExit("the evaluation failed")
        found[name] = cost.processor_seconds
    alone = [sys.executable, "-m", "benchmarks.evaluation_overhead", ENGINE_ALONE, checkpoint, artifact, samples]
    engine = json.loads(subprocess.run(list(map(str, alone)), check=True, capture_output=True, text=True).stdout)
    overhead = found["evaluation"] / (engine["load_seconds"] + engine["run_seconds"]) - 1
    return {"processor_seconds": found, "engine_alone": engine, "overhead": overhead}


def main() -> None:
    """Measure, print, and record the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=EVERY, help="of the samples of the held-out set")
    options = parser.parse_args()
    found = measure(*prepare(options.every))
    print(json.dumps(found, indent=1))
    if options.every == EVERY:
        write_result("evaluation-overhead", provenance("benchmarks.evaluation_overhead") | found)


if __name__ == "__main__":
    if sys.argv[1:2] == [ENGINE_ALONE]:
        print(json.dumps(run_engine(*map(Path, sys.argv[2:]))))
    else:
        main()
