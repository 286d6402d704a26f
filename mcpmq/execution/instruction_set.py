"""The instruction set of torch's CPU kernels, which decides the last bits of sums and of functions such as exp.

torch, MKL and oneDNN each select their kernels by the processor. Float additions in another order, or with fused
multiplication, end in other bits, and calibration turns these into other codes where two codes have nearly the same
error. The results of a few kernels on fixed inputs identify the selected kernels, also where environment variables of
these libraries select others.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from mcpmq.execution.chunked_matmul import bfloat16_matmul
from mcpmq.system.torch_threads import torch_threads

FINGERPRINT_DIGITS = 8


def instruction_set() -> str:
    """Return the instruction set and a hash of kernel results, e.g. `AVX512 1f3a9c20`.

    Machines, or runs, with the same value write equal bytes; with another value calibrated codes differ.
    """
    digest = hashlib.sha256()
    with torch_threads(1), torch.no_grad():
        for result in _kernel_results():
            digest.update(result.contiguous().numpy().data)
    return f"{torch.backends.cpu.get_cpu_capability()} {digest.hexdigest()[:FINGERPRINT_DIGITS]}"


def _kernel_results() -> Iterator[Tensor]:
    """Yield results of the kernels that models and rounding methods use, in shapes that vector registers do not fit."""
    rows, columns = _values(99, 323), _values(323, 291)
    gram = rows.T @ rows + 8 * torch.eye(323)
    lower = torch.linalg.cholesky(gram)
    yield rows @ columns
    with bfloat16_matmul():
        rounded = rows @ columns
    yield rounded
    yield from (lower, torch.linalg.solve_triangular(lower, columns, upper=False))
    yield from (rows.softmax(1), functional.gelu(rows), functional.silu(rows), functional.layer_norm(rows, (323,)))
    yield from (rows.sum(1), rows.square().mean(1), (rows.abs() + 1).rsqrt(), rows.exp(), rows.sin(), rows.pow(3))
    heads = rows[:, :320].reshape(1, 99, 5, 64).transpose(1, 2)
    yield functional.scaled_dot_product_attention(heads, heads, heads)
    yield functional.conv2d(_values(2, 3, 42, 42), _values(17, 3, 14, 14), stride=14)


def _values(*shape: int) -> Tensor:
    """Return fixed values between -1 and 1 without a random generator, which could differ between versions."""
    numbers = torch.arange(torch.Size(shape).numel()) * 40503 % 65521
    return ((numbers - 32760).float() / 32760).reshape(shape)
