"""Value heads of linear attention in the order of llama.cpp, with unchanged codes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mcpmq.calibrate.imatrix import _importance_matrix, tensor_names
from mcpmq.calibrate.read_importance import _mean_square
from mcpmq.calibrate.square_sums import SquareSums
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.families.language_shape import LinearAttention
from mcpmq.formats.gguf.linear_attention import column_order, head_order
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor
from tests.checkpoint_tools import build_family
from tests.gguf_tools import export_gguf, gguf_reader, quantize_with, tensor_values


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Tiny Qwen3.5, in which two value heads share a key head."""
    return Checkpoint.open(build_family("qwen3.5", tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.mark.parametrize(("keys", "values"), [(2, 2), (2, 4), (16, 48), (3, 6)])
def test_every_value_head_keeps_its_key_head(keys: int, values: int) -> None:
    """Value head i of the file reads key head i modulo their number; in transformers, adjacent heads share one."""
    order = head_order(LinearAttention((0,), keys, values, 8, 8, 4))

    assert sorted(order) == list(range(values))
    assert [head // (values // keys) for head in order] == [number % keys for number in range(values)]


@pytest.mark.parametrize("scheme", ["keep", "f16", "int4-g32", "int4-g256", "int8-row", "q8_0", "iq4_nl"])
def test_rows_and_columns_of_value_heads_move_without_a_change_of_values(
    scheme: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Queries and keys keep their rows; all that belongs to value heads is in the order 0, 2, 1, 3."""
    quantized = quantize_with(checkpoint.path, tmp_path, **{"language__*": scheme})
    reader, width = gguf_reader(export_gguf(quantized, tmp_path), "language"), 32
    channels = [head * width + number for head in (0, 2, 1, 3) for number in range(width)]

    def stored(part: str) -> np.ndarray:
        weight = quantized.load(f"language.layers.0.linear.{part}")
        return (dequantize(weight) if isinstance(weight, QTensor) else weight.float()).numpy()

    mixed, moved = stored("qkv"), tensor_values(reader, "blk.0.attn_qkv.weight")
    np.testing.assert_array_equal(moved[: 4 * width], mixed[: 4 * width])
    np.testing.assert_array_equal(moved[4 * width :], mixed[4 * width :][channels])
    np.testing.assert_array_equal(tensor_values(reader, "blk.0.attn_gate.weight"), stored("z")[channels])
    np.testing.assert_array_equal(tensor_values(reader, "blk.0.ssm_out.weight"), stored("o")[:, channels])
    np.testing.assert_array_equal(tensor_values(reader, "blk.0.ssm_alpha.weight"), stored("a")[[0, 2, 1, 3]])


def test_importance_has_the_columns_of_the_file_and_is_read_back_in_those_of_the_checkpoint(
    checkpoint: Checkpoint, tiny_set: Path
) -> None:
    """The output matrix of linear attention has reordered columns, all others have not."""
    names = tensor_names(checkpoint)["language"]
    matrices = [spec for spec in checkpoint.specs if spec.role == "matrix" and spec.component == "language"]
    sums = {spec.name: (SquareSums(torch.arange(spec.shape[1]).float(), {"text": 1}),) for spec in matrices}

    written = _importance_matrix(checkpoint, sums, "language", names, SampleSet.open(tiny_set))

    for name, entry in written.entries.items():
        is_ordered = np.array_equal(entry.square_sums, np.arange(len(entry.square_sums)))
        assert is_ordered == (not name.endswith("ssm_out.weight")), name
    [spec] = [spec for spec in matrices if spec.name == "language.layers.0.linear.o"]
    order = column_order(spec, checkpoint.architecture.language)
    assert order[32] == 64
    assert _mean_square(spec, written.entries["blk.0.ssm_out.weight"], order).tolist() == list(range(128))
