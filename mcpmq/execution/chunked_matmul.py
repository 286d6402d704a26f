"""Matrix products in pieces of a fixed size, shared out to all threads: the same bytes however many threads there are.

A library's own threads cut products by their number, and sums of floats differ in the last bits with the cuts.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.execution.device import CPU

PIECE_TOKENS, PIECE_OUTPUTS = 512, 1024

Each = Callable[[Callable[[Any], object], Sequence[Any]], object]
"""Does some work for every piece, in any order; the pieces do not touch one another's results."""


def one_by_one(work: Callable[[Any], object], pieces: Sequence[Any]) -> None:
    """Every piece in turn, in this thread."""
    for piece in pieces:
        work(piece)


@contextmanager
def all_threads(device: torch.device = CPU) -> Iterator[Each]:
    """Torch computes on one thread inside; pieces run on as many as it had before, each on one. On another device than
    the processor, which shares out its work itself, they run one after the other."""
    with workers() as pool:
        yield partial(_each, pool) if device == CPU else one_by_one


@contextmanager
def workers() -> Iterator[Executor]:
    """A worker for every thread of torch, each with one: threads that meet after every small step mostly wait."""
    threads = torch.get_num_threads()
    # oneDNN asks OpenMP how many threads to use, and OpenMP counts for every thread anew.
    with torch_threads(1), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes on so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Float32 products inside may round what they multiply to bfloat16, as models themselves do; sums stay float32.

    Where a processor has no faster products of that kind nothing is rounded: oneDNN's float32 ones take their place.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _each(pool: Executor, work: Callable[[Any], object], pieces: Sequence[Any]) -> None:
    if len(pieces) == 1:
        work(pieces[0])
    else:
        list(pool.map(partial(_work, work, torch.is_inference_mode_enabled()), pieces))


def _work(work: Callable[[Any], object], inferring: bool, piece: Any) -> None:
    with torch.inference_mode(inferring):  # a thread does not inherit it
        work(piece)


def share_linears(model: nn.Module, each: Each) -> None:
    """Let every linear of a model compute in pieces."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            vars(module)["forward"] = partial(_linear, module, each)


def _linear(linear: nn.Linear, each: Each, inputs: Tensor) -> Tensor:
    rows = inputs.reshape(-1, linear.in_features)
    outputs = rows.new_empty(len(rows), linear.out_features)
    each(
        partial(_multiply, linear, rows, outputs),
        [
            (slice(token, token + PIECE_TOKENS), slice(output, output + PIECE_OUTPUTS))
            for token in range(0, len(rows), PIECE_TOKENS)
            for output in range(0, linear.out_features, PIECE_OUTPUTS)
        ],
    )
    return outputs.reshape(*inputs.shape[:-1], linear.out_features)


def _multiply(linear: nn.Linear, rows: Tensor, outputs: Tensor, piece: tuple[slice, slice]) -> None:
    tokens, columns = piece
    weight = linear.weight[columns].T
    if linear.bias is None:
        torch.mm(rows[tokens], weight, out=outputs[piece])
    else:
        torch.addmm(linear.bias[columns], rows[tokens], weight, out=outputs[piece])
