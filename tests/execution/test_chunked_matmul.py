"""Chunked products equal plain products, and their bytes do not depend on the number of threads."""

import os
import subprocess
import sys
from contextlib import ExitStack
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mcpmq.execution import chunked_matmul
from mcpmq.execution.chunked_matmul import (
    bfloat16_matmul,
    chunk_linears,
    deterministic_threads,
    has_bfloat16_products,
    serial_map,
)
from mcpmq.system.torch_threads import torch_threads


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 70), nn.Tanh(), nn.Linear(70, 30, bias=False))


def outputs(threads: int, inputs: Tensor) -> Tensor:
    chunked = model()
    with torch_threads(threads), deterministic_threads() as parallel_map, torch.inference_mode():
        assert torch.get_num_threads() == 1
        chunk_linears(chunked, parallel_map)
        result: Tensor = chunked(inputs)
    return result


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 80), st.sampled_from([(9,), (1, 25), (2, 3, 4), (1,)]))
def test_chunks_of_any_size_give_the_plain_product(tokens: int, columns: int, shape: tuple[int, ...]) -> None:
    """Products are correct with and without bias, for any leading dimensions."""
    inputs = torch.randn(*shape, 40, generator=torch.Generator().manual_seed(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_matmul, "CHUNK_TOKENS", tokens)
        patch.setattr(chunked_matmul, "CHUNK_OUTPUTS", columns)
        found = outputs(3, inputs)

    with torch.inference_mode():
        assert torch.allclose(found, model()(inputs), atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_bits_are_equal_on_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, three and eight threads give exactly the output of one."""
    monkeypatch.setattr(chunked_matmul, "CHUNK_OUTPUTS", 16)
    inputs = torch.randn(1, 1500, 40)

    assert torch.equal(outputs(threads, inputs), outputs(1, inputs))


def test_the_thread_count_is_restored_after_an_error() -> None:
    """An error in a chunk reaches the caller, and torch has its thread count again."""
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), deterministic_threads() as parallel_map:
        parallel_map(lambda chunk: 1 / chunk, [1, 0, 2])

    assert torch.get_num_threads() == before


def test_a_serial_map_keeps_the_order_of_chunks() -> None:
    """Chunks are processed one after the other."""
    processed: list[int] = []
    serial_map(processed.append, [3, 1, 2])

    assert processed == [3, 1, 2]


def test_libraries_use_one_thread_in_a_worker() -> None:
    """OpenMP and torch have one thread in a worker, also if the environment sets more."""
    code = "import torch; from mcpmq.execution.chunked_matmul import thread_pool\nwith thread_pool() as pool:\n"
    code += " print(pool.submit(torch.__config__.parallel_info).result())"

    output = subprocess.run(
        [sys.executable, "-c", code],
        check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "8"},
    ).stdout  # fmt: skip

    assert "omp_get_max_threads() : 1\n" in output
    assert "at::get_num_threads() : 1\n" in output


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_the_processor_decides_about_bfloat16(
    capabilities: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An x86 processor needs units for it; without them the setting of torch changes for a GPU only."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(chunked_matmul, "has_bfloat16_products", cache(has_bfloat16_products.__wrapped__))

    with bfloat16_matmul():
        assert torch.get_float32_matmul_precision() == ("medium" if expected else "highest")
    with bfloat16_matmul(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "medium"


def test_this_processor_is_known() -> None:
    """The fields that the decision needs exist in this version of torch."""
    found = torch.cpu.get_capabilities()
    assert isinstance(found["architecture"], str)
    assert found["architecture"] != "x86_64" or {"avx512_bf16", "amx_bf16"} <= found.keys()


def test_bfloat16_products_end_with_their_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the context products have at least the precision of bfloat16; afterwards the setting is restored."""
    monkeypatch.setattr(chunked_matmul, "has_bfloat16_products", lambda: True)
    make = torch.Generator().manual_seed(0)
    one, other = torch.randn(200, 300, generator=make), torch.randn(300, 100, generator=make)

    with bfloat16_matmul():
        assert torch.get_float32_matmul_precision() == "medium"
        found = one @ other

    assert torch.get_float32_matmul_precision() == "highest"
    assert (found - one @ other).norm() < 2**-7 * (one @ other).norm()


def test_the_last_of_overlapping_contexts_restores_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts of threads need not end in the reverse order of their begins."""
    monkeypatch.setattr(chunked_matmul, "has_bfloat16_products", lambda: True)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(bfloat16_matmul())
        second.enter_context(bfloat16_matmul())
        first.close()
        assert torch.get_float32_matmul_precision() == "medium"
        second.close()
        assert torch.get_float32_matmul_precision() == "highest"
