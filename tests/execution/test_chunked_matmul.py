"""Products in pieces are the products, and their bytes do not depend on the threads."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mcpmq.execution import chunked_matmul
from mcpmq.execution.chunked_matmul import all_threads, bfloat16_products, one_by_one, share_linears, torch_threads


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 70), nn.Tanh(), nn.Linear(70, 30, bias=False))


def outputs(threads: int, inputs: Tensor) -> Tensor:
    shared = model()
    with torch_threads(threads), all_threads() as each, torch.inference_mode():
        assert torch.get_num_threads() == 1
        share_linears(shared, each)
        result: Tensor = shared(inputs)
    return result


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 80), st.sampled_from([(9,), (1, 25), (2, 3, 4), (1,)]))
def test_pieces_of_any_size_make_the_whole(tokens: int, columns: int, shape: tuple[int, ...]) -> None:
    """Every row and column is computed once, with and without bias, whatever the leading dimensions."""
    inputs = torch.randn(*shape, 40, generator=torch.Generator().manual_seed(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_matmul, "PIECE_TOKENS", tokens)
        patch.setattr(chunked_matmul, "PIECE_OUTPUTS", columns)
        found = outputs(3, inputs)

    with torch.inference_mode():
        assert torch.allclose(found, model()(inputs), atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the last one either."""
    monkeypatch.setattr(chunked_matmul, "PIECE_OUTPUTS", 16)
    inputs = torch.randn(1, 1500, 40)

    assert torch.equal(outputs(threads, inputs), outputs(1, inputs))


def test_threads_are_as_they_were() -> None:
    """Afterwards, and when something fails inside; the failure of a piece reaches the caller."""
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), all_threads() as each:
        each(lambda piece: 1 / piece, [1, 0, 2])

    assert torch.get_num_threads() == before


def test_without_threads_pieces_come_in_their_order() -> None:
    """The plain loop."""
    seen: list[int] = []
    one_by_one(seen.append, [3, 1, 2])

    assert seen == [3, 1, 2]


def test_no_library_uses_threads_of_its_own_inside_a_worker() -> None:
    """oneDNN and OpenMP would take as many as the environment says, and cut products by their number."""
    code = "import torch; from mcpmq.execution.chunked_matmul import workers\nwith workers() as pool:\n"
    code += " print(pool.submit(torch.__config__.parallel_info).result())"

    told = subprocess.run(
        [sys.executable, "-c", code],
        check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "8"},
    ).stdout  # fmt: skip

    assert "omp_get_max_threads() : 1\n" in told
    assert "at::get_num_threads() : 1\n" in told


def test_coarser_products_end_with_their_block() -> None:
    """And are right to what bfloat16 holds."""
    make = torch.Generator().manual_seed(0)
    one, other = torch.randn(200, 300, generator=make), torch.randn(300, 100, generator=make)

    with bfloat16_products():
        assert torch.get_float32_matmul_precision() == "medium"
        found = one @ other

    assert torch.get_float32_matmul_precision() == "highest"
    assert (found - one @ other).norm() < 2**-7 * (one @ other).norm()
