"""Times every stage of quantizing on matrices of MiniCPM-V 2.6's true widths, beside plain matrix products.

python -m benchmarks.stages                     writes benchmarks/results/stages.json
python -m benchmarks.stages --columns 512       a look at it: narrow matrices, printed alone
python -m benchmarks.stages --device cuda       the same on a graphics processor, which writes stages-cuda.json
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.run import RESULTS, provenance
from mcpmq.calibrate.observers import Labels, observe
from mcpmq.execution.chunked_matmul import all_threads, bfloat16_products, share_linears, workers
from mcpmq.execution.device import CPU, choose, name_of
from mcpmq.formats.gguf.packing import pack_integers
from mcpmq.formats.onnx.packing import for_product
from mcpmq.grids import ggml
from mcpmq.rounding import gptq, rtn
from mcpmq.rounding.cholesky import Factor, factored
from mcpmq.rounding.stats import LayerStats
from mcpmq.scheme import GgmlScheme, IntegerScheme, parse_scheme

HIDDEN, FFN = 3584, 18944
TOKENS = 2048  # that pass a matrix; a calibration set has ten times as many and takes ten times as long
SCHEMES = ("int4-g32", "q4_k")
REPEATED_BELOW_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage on one matrix: floating-point operations that its method needs, or none where it multiplies nothing."""

    stage: str
    rows: int
    columns: int
    seconds: float
    gflop: float | None


def timed(work: Callable[[], object]) -> float:
    """Seconds; of what is short the best of three."""
    seconds = [_once(work)]
    while seconds[0] < REPEATED_BELOW_SECONDS and len(seconds) < 3:
        seconds.append(_once(work))
    return round(min(seconds), 4)


def _once(work: Callable[[], object]) -> float:
    gc.collect()
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    """Until a graphics processor has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plain_products(columns: int, device: torch.device) -> Iterator[Stage]:
    """What a product reaches here, on all threads: as it comes, possibly rounding to bfloat16, and in bfloat16."""
    inputs, weight = torch.randn(TOKENS, columns, device=device), torch.randn(columns, columns, device=device)
    gflop = 2 * TOKENS * columns**2 / 1e9

    def product(name: str, one: Tensor, other: Tensor) -> Stage:
        return Stage(f"plain product, {name}", columns, columns, timed(partial(torch.mm, one, other)), gflop)

    yield product("float32", inputs, weight)
    with bfloat16_products():
        yield product("float32 that may round to bfloat16", inputs, weight)
    yield product("bfloat16", inputs.bfloat16(), weight.bfloat16())


def stages(rows: int, columns: int, device: torch.device) -> Iterator[Stage]:
    """Every stage that a weight [rows, columns] passes."""
    linear, inputs = nn.Linear(columns, rows, bias=False, device=device), _inputs(columns).to(device)
    yield Stage("forward", rows, columns, timed(partial(_forward, linear, inputs)), 2 * TOKENS * rows * columns / 1e9)
    seconds = timed(partial(_seen, linear, inputs))
    yield Stage("Gram matrix, made and summed up", rows, columns, seconds, TOKENS * columns**2 / 1e9)
    stats, weight = _seen(linear, inputs), 0.02 * linear.weight.detach().cpu()
    yield Stage("factor", rows, columns, timed(partial(_factor, stats)), columns**3 / 3e9)
    yield from _sweeps(weight, stats)
    yield from _without_samples(weight, stats.gram.diagonal().contiguous())


def _inputs(columns: int) -> Tensor:
    """Correlated, and of different sizes, as real ones are."""
    common = torch.randn(TOKENS, 64) @ torch.randn(64, columns)
    return (0.1 * common + torch.randn(TOKENS, columns)) * torch.randn(columns).exp()


def _forward(linear: nn.Linear, inputs: Tensor) -> Tensor:
    with torch.inference_mode(), all_threads(inputs.device) as each:
        if inputs.device == CPU:
            share_linears(linear, each)
        outputs: Tensor = linear(inputs)
    vars(linear).pop("forward", None)
    return outputs


def _seen(linear: nn.Linear, inputs: Tensor) -> LayerStats:
    """What a linear that computes nothing sees."""
    vars(linear)["forward"] = lambda given: given
    device = inputs.device
    labels = Labels(lambda count: torch.ones(count, dtype=torch.uint8, device=device), torch.ones(3, device=device))
    with torch.inference_mode(), all_threads(device) as each:
        [stats] = observe(linear, {"weight": None}, lambda: linear(inputs), labels, each)["weight"]
    return stats


def _factor(stats: LayerStats) -> Factor:
    with workers() as pool:
        return factored(stats.gram, stats.gram.diagonal().argsort(descending=True, stable=True), pool)


def _sweeps(weight: Tensor, stats: LayerStats) -> Iterator[Stage]:
    """GPTQ without its factor: fitting and rounding, and making up for errors in all later columns."""
    rows, columns = weight.shape
    with _factored_before(_factor(stats)):
        for scheme in map(_scheme, SCHEMES):
            seconds = timed(partial(gptq.quantize, weight, scheme, stats))
            yield Stage(f"GPTQ sweep {scheme}", rows, columns, seconds, rows * columns**2 / 1e9)


@contextmanager
def _factored_before(factor: Factor) -> Iterator[None]:
    with patch.object(gptq, "factored", lambda *_: factor):
        yield


def _without_samples(weight: Tensor, importance: Tensor) -> Iterator[Stage]:
    codes = rtn.quantize(weight, _scheme("int4-g32"))
    assert codes.scale is not None
    works = {f"round to nearest {scheme}": partial(rtn.quantize, weight, _scheme(scheme)) for scheme in SCHEMES} | {
        "fit q4_k with importance": partial(ggml.round_to, weight, GgmlScheme("q4_k"), importance),
        "pack as Q4_0": partial(pack_integers, codes.codes.numpy(), codes.scale.numpy(), codes.scheme),
        "pack as MatMulNBits": lambda: list(for_product(codes).codes.parts),
    }
    for stage, work in works.items():
        yield Stage(stage, *weight.shape, timed(work), None)


def _scheme(text: str) -> IntegerScheme | GgmlScheme:
    scheme = parse_scheme(text)
    assert isinstance(scheme, IntegerScheme | GgmlScheme)
    return scheme


def shown(stage: Stage) -> str:
    """A line for who waits."""
    speed = f"{stage.gflop / stage.seconds:,.0f} GFLOP/s" if stage.gflop else ""
    return f"{stage.rows:>6} x {stage.columns:<6} {stage.stage:48} {stage.seconds:9.3f} s  {speed}"


def main() -> None:
    """Time, show, and keep what is of the true size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, metavar="N", help="square matrices of this width alone; not kept")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:1")
    asked = parser.parse_args()
    narrow, device = asked.columns, choose(asked.device)
    torch.manual_seed(0)
    taken = []
    for stage in plain_products(narrow or HIDDEN, device):
        taken.append(stage)
        print(shown(stage), flush=True)
    for shape in [(narrow, narrow)] if narrow else [(HIDDEN, HIDDEN), (FFN, HIDDEN), (HIDDEN, FFN)]:
        for stage in stages(*shape, device):
            taken.append(stage)
            print(shown(stage), flush=True)
    if narrow is None:
        facts = provenance("benchmarks.stages") | {"threads": torch.get_num_threads(), "tokens": TOKENS}
        facts |= {"device": name_of(device), "stages": [asdict(stage) for stage in taken]}
        file = "stages.json" if device == CPU else f"stages-{device.type}.json"
        (RESULTS / file).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
