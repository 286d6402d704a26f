"""Matrix products in chunks of a fixed size, distributed over threads: equal bytes on any number of threads.

Libraries split products by the number of threads, and the order of float additions depends on the split.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.execution.device import CPU
from mcpmq.system.torch_threads import torch_threads

CHUNK_TOKENS, CHUNK_OUTPUTS = 512, 1024

ParallelMap = Callable[[Callable[[Any], object], Sequence[Any]], object]
"""Calls a function for every chunk, in any order; calls do not write to the same data."""


def serial_map(work: Callable[[Any], object], chunks: Sequence[Any]) -> None:
    """Call `work` for every chunk in order, in this thread."""
    for chunk in chunks:
        work(chunk)


@contextmanager
def deterministic_threads(device: torch.device = CPU) -> Iterator[ParallelMap]:
    """Limit torch to one thread; yield a map that runs chunks on as many threads as torch had.

    Devices other than the CPU distribute their work themselves: their map is serial, and threads are not limited.
    """
    if device != CPU:
        yield serial_map
        return
    with thread_pool() as pool:
        yield partial(_map_in_pool, pool)


class SerialExecutor(Executor):
    """Calls functions at once in the calling thread, which has the context of a GPU."""

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **_: Any) -> Iterator[Any]:
        """Return the results in order."""
        return map(fn, *iterables)


@contextmanager
def thread_pool(device: torch.device = CPU) -> Iterator[Executor]:
    """Yield a pool with a worker for every thread of torch, and limit torch to one thread in each worker and here.

    Devices other than the CPU get an executor without threads.
    """
    if device != CPU:
        yield SerialExecutor()
        return
    threads = torch.get_num_threads()
    # The initializer is needed because OpenMP, which oneDNN queries, has a thread count for every thread.
    with torch_threads(1), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


@cache
def has_bfloat16_products() -> bool:
    """Return whether the processor multiplies bfloat16 faster than float32: AVX-512 BF16 or AMX of x86.

    Without them torch's setting selects oneDNN's float32 products, which are slower than MKL's. Other architectures are
    left to torch, which checks them itself.
    """
    found = torch.cpu.get_capabilities()
    return found["architecture"] != "x86_64" or bool(found["avx512_bf16"] or found["amx_bf16"])


_precision_lock = Lock()
_precisions: list[str] = []  # before each context that has not ended


@contextmanager
def bfloat16_matmul(device: torch.device = CPU) -> Iterator[None]:
    """Let float32 products round their operands to bfloat16 on a processor that is faster then; sums stay float32.

    Operands of a GPU are rounded to TF32, which has more bits. The setting is for the process: of contexts in several
    threads, the last to end restores the precision before the first.
    """
    if device == CPU and not has_bfloat16_products():
        yield
        return
    try:
        with _precision_lock:
            _precisions.append(_precisions[0] if _precisions else torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("medium")
        yield
    finally:
        with _precision_lock:
            before = _precisions.pop()
            if not _precisions:
                torch.set_float32_matmul_precision(before)


def _map_in_pool(pool: Executor, work: Callable[[Any], object], chunks: Sequence[Any]) -> None:
    if len(chunks) == 1:
        work(chunks[0])
    else:
        list(pool.map(partial(_work, work, torch.is_inference_mode_enabled()), chunks))


def _work(work: Callable[[Any], object], inference: bool, chunk: Any) -> None:
    with torch.inference_mode(inference):  # threads do not inherit the mode
        work(chunk)


def chunk_linears(model: nn.Module, parallel_map: ParallelMap) -> None:
    """Make every nn.Linear of a model compute in chunks."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            vars(module)["forward"] = partial(_forward, module, parallel_map)


def _forward(linear: nn.Linear, parallel_map: ParallelMap, inputs: Tensor) -> Tensor:
    rows = inputs.reshape(-1, linear.in_features)
    outputs = rows.new_empty(len(rows), linear.out_features)
    parallel_map(
        partial(_multiply_chunk, linear, rows, outputs),
        [
            (slice(token, token + CHUNK_TOKENS), slice(output, output + CHUNK_OUTPUTS))
            for token in range(0, len(rows), CHUNK_TOKENS)
            for output in range(0, linear.out_features, CHUNK_OUTPUTS)
        ],
    )
    return outputs.reshape(*inputs.shape[:-1], linear.out_features)


def _multiply_chunk(linear: nn.Linear, rows: Tensor, outputs: Tensor, chunk: tuple[slice, slice]) -> None:
    tokens, columns = chunk
    weight = linear.weight[columns].T
    if linear.bias is None:
        torch.mm(rows[tokens], weight, out=outputs[chunk])
    else:
        torch.addmm(linear.bias[columns], rows[tokens], weight, out=outputs[chunk])
