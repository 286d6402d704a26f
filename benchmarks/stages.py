"""Time every stage of quantization on matrices of MiniCPM-V 2.6's published widths, and plain matrix products.

python -m benchmarks.stages                     writes benchmarks/results/stages.json
python -m benchmarks.stages --columns 512       narrow matrices; prints the times only
python -m benchmarks.stages --device cuda       on a GPU; writes stages-cuda.json
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.commands import provenance, write_result
from mcpmq.calibrate.observers import TokenModalities, collect_stats
from mcpmq.execution.chunked_matmul import bfloat16_matmul, chunk_linears, deterministic_threads, thread_pool
from mcpmq.execution.device import CPU, device_name, resolve_device
from mcpmq.formats.gguf.packing import pack_integers
from mcpmq.formats.onnx.packing import pack_for_matmul
from mcpmq.grids import ggml
from mcpmq.rounding import gptq, rtn
from mcpmq.rounding.cholesky import LdlFactor, shrunk_cholesky
from mcpmq.rounding.descent import order_hessian
from mcpmq.rounding.shrinkage import default_shrinkage
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import parse_scheme

HIDDEN_SIZE, INTERMEDIATE_SIZE = 3584, 18944
TOKENS = 2048  # a calibration set has about ten times as many tokens and takes ten times as long
SCHEMES = ("int4-g32", "q4_k")
REPEATED_BELOW_SECONDS = 2.0  # shorter stages run three times; the shortest time counts


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage on one matrix; `gflop` counts the required operations, None for stages without a product."""

    stage: str
    rows: int
    columns: int
    seconds: float
    gflop: float | None


def measure_seconds(work: Callable[[], object]) -> float:
    """Return the seconds of a stage, the best of three for a short one."""
    seconds = [_once(work)]
    while seconds[0] < REPEATED_BELOW_SECONDS and len(seconds) < 3:
        seconds.append(_once(work))
    return round(min(seconds), 4)


def _once(work: Callable[[], object]) -> float:
    gc.collect()
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    """Wait for the kernels of a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_stages(columns: int, device: torch.device) -> Iterator[Stage]:
    """Time plain products on all threads: in float32, in float32 with bfloat16 allowed, and in bfloat16."""
    inputs, weight = torch.randn(TOKENS, columns, device=device), torch.randn(columns, columns, device=device)
    gflop = 2 * TOKENS * columns**2 / 1e9

    def product(name: str, one: Tensor, other: Tensor) -> Stage:
        return Stage(f"matmul, {name}", columns, columns, measure_seconds(partial(torch.mm, one, other)), gflop)

    yield product("float32", inputs, weight)
    with bfloat16_matmul():
        yield product("float32 with bfloat16 allowed", inputs, weight)
    yield product("bfloat16", inputs.bfloat16(), weight.bfloat16())


def quantization_stages(rows: int, columns: int, device: torch.device) -> Iterator[Stage]:
    """Time every stage of a weight [rows, columns]."""
    linear, inputs = nn.Linear(columns, rows, bias=False, device=device), _inputs(columns).to(device)
    yield Stage(
        "forward", rows, columns, measure_seconds(partial(_forward, linear, inputs)), 2 * TOKENS * rows * columns / 1e9
    )
    seconds = measure_seconds(partial(_collect_stats, linear, inputs))
    yield Stage("Hessian accumulation", rows, columns, seconds, TOKENS * columns**2 / 1e9)
    stats, weight = _collect_stats(linear, inputs), 0.02 * linear.weight.detach().cpu()
    yield Stage("Cholesky factorization", rows, columns, measure_seconds(partial(_factor, stats)), columns**3 / 3e9)
    yield from _gptq_stages(weight, stats)
    yield from _uncalibrated_stages(weight, stats.gram.diagonal().contiguous())


def _inputs(columns: int) -> Tensor:
    """Return correlated inputs with channels of different scale, as in trained models."""
    common = torch.randn(TOKENS, 64) @ torch.randn(64, columns)
    return (0.1 * common + torch.randn(TOKENS, columns)) * torch.randn(columns).exp()


def _forward(linear: nn.Linear, inputs: Tensor) -> Tensor:
    with torch.inference_mode(), deterministic_threads(inputs.device) as parallel_map:
        if inputs.device == CPU:
            chunk_linears(linear, parallel_map)
        outputs: Tensor = linear(inputs)
    vars(linear).pop("forward", None)
    return outputs


def _collect_stats(linear: nn.Linear, inputs: Tensor) -> InputStats:
    """Return the input statistics of a linear layer whose forward is replaced by the identity."""
    vars(linear)["forward"] = lambda given: given
    device = inputs.device
    modalities = TokenModalities(
        lambda count: torch.ones(count, dtype=torch.uint8, device=device), torch.ones(3, device=device)
    )
    with torch.inference_mode(), deterministic_threads(device) as parallel_map:
        [stats] = collect_stats(linear, {"weight": None}, lambda: linear(inputs), modalities, parallel_map)["weight"]
    return stats


def _factor(stats: InputStats) -> LdlFactor:
    with thread_pool() as pool:
        hessian = order_hessian(stats.gram, _scheme("int4-g32"), pool)
        order = stats.gram.diagonal().argsort(descending=True, stable=True)
        return shrunk_cholesky(hessian, order, default_shrinkage(stats), pool)


def _gptq_stages(weight: Tensor, stats: InputStats) -> Iterator[Stage]:
    """Time GPTQ without its factorization: grid fitting, rounding, and error compensation in all later columns."""
    rows, columns = weight.shape
    with _given_factor(_factor(stats)):
        for scheme in map(_scheme, SCHEMES):
            seconds = measure_seconds(partial(gptq.quantize, weight, scheme, stats))
            yield Stage(f"GPTQ {scheme}", rows, columns, seconds, rows * columns**2 / 1e9)


@contextmanager
def _given_factor(factor: LdlFactor) -> Iterator[None]:
    with patch.object(gptq, "shrunk_cholesky", lambda *_: factor):
        yield


def _uncalibrated_stages(weight: Tensor, importance: Tensor) -> Iterator[Stage]:
    codes: Any = rtn.quantize(weight, _scheme("int4-g32"))
    works: dict[str, Callable[[], object]] = {
        f"RTN {scheme}": partial(rtn.quantize, weight, _scheme(scheme)) for scheme in SCHEMES
    }
    works |= {
        "RTN q4_k with imatrix": partial(ggml.quantize, weight, _scheme("q4_k"), importance),
        "pack as Q4_0": partial(pack_integers, codes.codes.numpy(), codes.scale.numpy(), codes.scheme),
        "pack as MatMulNBits": lambda: list(pack_for_matmul(_scheme("int4-g32"), codes.shape, [codes]).codes.parts),
    }
    for stage, work in works.items():
        yield Stage(stage, len(weight), weight.shape[1], measure_seconds(work), None)


def _scheme(text: str) -> Any:
    """Parse a scheme; the kind is not checked, because each stage takes a different kind."""
    return parse_scheme(text)


def format_line(stage: Stage) -> str:
    """Return the progress line of a stage."""
    speed = f"{stage.gflop / stage.seconds:,.0f} GFLOP/s" if stage.gflop else ""
    return f"{stage.rows:>6} x {stage.columns:<6} {stage.stage:48} {stage.seconds:9.3f} s  {speed}"


def main() -> None:
    """Time all stages, print them, and record those of the published widths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, metavar="N", help="square matrices of this width; not recorded")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:1")
    options = parser.parse_args()
    device = resolve_device(options.device)
    torch.manual_seed(0)
    stages = []
    for stage in all_stages(options.columns, device):
        stages.append(asdict(stage))
        print(format_line(stage), flush=True)
    if options.columns is None:
        facts = {"threads": torch.get_num_threads(), "tokens": TOKENS, "device": device_name(device), "stages": stages}
        name = "stages" if device == CPU else f"stages-{device.type}"
        write_result(name, provenance("benchmarks.stages") | facts)


def all_stages(columns: int | None, device: torch.device) -> Iterator[Stage]:
    """Time the stages of one square matrix, or of the three shapes of a language layer."""
    published = ((HIDDEN_SIZE, HIDDEN_SIZE), (INTERMEDIATE_SIZE, HIDDEN_SIZE), (HIDDEN_SIZE, INTERMEDIATE_SIZE))
    yield from matmul_stages(columns or HIDDEN_SIZE, device)
    for shape in ((columns, columns),) if columns else published:
        yield from quantization_stages(*shape, device)


if __name__ == "__main__":
    main()
