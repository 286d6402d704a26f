"""Attention masks in ONNX Runtime, compared with their definition."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from mcpmq.families.language_shape import LocalAttention
from mcpmq.formats.onnx.external_data import ExternalData
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.masks import attention_masks

WINDOW = 4
TYPES = np.array([[0, 1, 1, 1, 0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 1, 1, 1, 1, 1, 0]])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    """A graph of the two masks alone."""
    folder = tmp_path_factory.mktemp("masks")
    graph = Graph("masks", ExternalData(folder, "masks.onnx_data"))
    ids = graph.input("position_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
    mask = graph.input("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"])
    masks = attention_masks(graph, LocalAttention((0,), WINDOW, 10000.0), ids, mask)
    for value, name in ((masks.everywhere, "everywhere"), (masks.within_window, "within_window")):
        graph.output(value, name, ir.DataType.BOOL, ["batch_size", 1, "sequence_length", "total_sequence_length"])
    graph.save(folder / "masks.onnx", "0", {})
    return onnxruntime.InferenceSession(str(folder / "masks.onnx"))


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("has_images", [True, False])
def test_masks_are_those_of_the_definition(session: onnxruntime.InferenceSession, past: int, has_images: bool) -> None:
    """Earlier tokens and those of the same image, within the window; without token types all tokens are text.

    Tokens of the cache are text, and padding on the right is not attended to.
    """
    types = TYPES if has_images else np.zeros_like(TYPES)
    valid = np.ones((2, past + TYPES.shape[1]), np.int64)
    valid[1, -2:] = 0
    inputs = {"position_ids": np.zeros_like(TYPES), "attention_mask": valid}

    found = session.run(None, inputs | ({"token_type_ids": types} if has_images else {}))

    np.testing.assert_array_equal(found[0], _expected(types, valid, past, window=1 << 20))
    np.testing.assert_array_equal(found[1], _expected(types, valid, past, window=WINDOW))


def _expected(types: NDArray[np.int64], valid: NDArray[np.int64], past: int, window: int) -> NDArray[np.bool_]:
    batch, length = types.shape
    allowed = np.zeros((batch, 1, length, past + length), np.bool_)
    for sample, query, key in np.ndindex(batch, length, past + length):
        first, last = sorted((query, key - past))
        same_image = first >= 0 and bool(types[sample, first : last + 1].all())
        is_near = key > past + query - window
        allowed[sample, 0, query, key] = (key <= past + query or same_image) and is_near and valid[sample, key]
    return allowed
