"""Memory and processor time of a GGUF artifact in llama.cpp with one thread, in a process of its own.

    python -m benchmarks.engine_time ARTIFACT SAMPLES

SAMPLES is a folder of encoded samples: one with an image, which is encoded, and one of text, which is answered.
Processor time does not depend on other programs of the machine, apart from their use of its caches.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mcpmq.runners.gguf import open_runner
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.worker import rss_bytes

DECODED = 24  # tokens
Result = TypeVar("Result")


def measure_engine(artifact: Path, samples: Path) -> dict[str, Any]:
    """Run this module in a child process and return its result."""
    command = [sys.executable, "-m", "benchmarks.engine_time", str(artifact), str(samples)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def _measure(artifact: Path, samples: Path) -> dict[str, Any]:
    image, text = InputsStore(samples)
    baseline = rss_bytes("VmRSS")
    load_seconds, runner = _processor_seconds(lambda: open_runner(artifact, 1))
    encode_seconds, _ = _processor_seconds(lambda: [runner.encode_slice(pixels) for pixels in image.slices])
    predictions = runner.predict(text, DECODED)
    prefill_seconds, _ = _processor_seconds(lambda: next(predictions))
    answer = [int(token) for token in text.answer_tokens[:DECODED]]
    decode_seconds, _ = _processor_seconds(lambda: [predictions.send(token) for token in answer])
    return {
        "baseline_rss_bytes": baseline,
        "peak_rss_bytes": rss_bytes("VmHWM"),
        "prompt_tokens": text.answer_start,
        "load_seconds": load_seconds,
        "encode_seconds": encode_seconds,
        "prefill_seconds": prefill_seconds,
        "decode_seconds_per_token": decode_seconds / len(answer),
    }


def _processor_seconds(action: Callable[[], Result]) -> tuple[float, Result]:
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("samples", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(_measure(arguments.artifact, arguments.samples)))
