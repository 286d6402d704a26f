"""Time of 8-bit matrix products in ONNX Runtime: weights alone, and int8 inputs with a scale for a tensor or a token.

    python -m benchmarks.w8a8_speed

Times are processor seconds of one thread, the best of several repetitions.
"""

import time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.commands import provenance, write_result

RESULT = "w8a8-speed"
COLUMNS, ROWS = 1024, 3072  # of a matrix: an MLP of a model with about a billion weights
TOKENS = (1, 128)  # decoding, and a prompt
BLOCK, REPEATS = 32, 30


def main() -> None:
    """Measure every product and write the result."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    graphs = {
        "float32": _float(weight),
        "MatMulNBits, 8 bits, accuracy level 4": _blocks(weight),
        "DynamicQuantizeLinear and MatMulInteger, a scale for a tensor": _per_tensor(weight),
        "a scale for a token, from standard operators": _per_token(weight),
    }
    rows = []
    for name, model in graphs.items():
        for tokens in TOKENS:
            values = random.normal(size=(tokens, COLUMNS)).astype(np.float32)
            seconds, output = _measure(model, values)
            exact = values @ weight.T
            error = float(np.linalg.norm(output - exact) / np.linalg.norm(exact))
            rows.append({"product": name, "tokens": tokens, "microseconds": seconds * 1e6, "relative_error": error})
    facts = {"columns": COLUMNS, "rows": ROWS, "products": rows}
    write_result(RESULT, provenance("benchmarks.w8a8_speed", "onnxruntime") | facts)


def _measure(model: Any, values: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    [output], best = session.run(None, {"x": values}), float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        session.run(None, {"x": values})
        best = min(best, time.process_time() - start)
    return best, output


def _model(nodes: list[Any], constants: dict[str, Any]) -> Any:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", COLUMNS])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", ROWS])]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _float(weight: NDArray[np.float32]) -> Any:
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight.T.copy()})


def _blocks(weight: NDArray[np.float32]) -> Any:
    groups = weight.reshape(ROWS, COLUMNS // BLOCK, BLOCK)
    scale = np.abs(groups).max(-1) / 127
    codes = (np.round(groups / scale[..., None]) + 128).astype(np.uint8)
    sizes: dict[str, Any] = {"K": COLUMNS, "N": ROWS, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **sizes)
    return _model([node], {"w": codes, "s": scale.astype(np.float32)})


def _row_codes(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return codes int8 [columns, rows] and scales [rows] of one scale for each row."""
    scale = (np.abs(weight).max(1) / 127).astype(np.float32)
    return np.round(weight / scale[:, None]).astype(np.int8).T.copy(), scale


def _per_tensor(weight: NDArray[np.float32]) -> Any:
    codes, scale = _row_codes(weight)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["xss"]),
        helper.make_node("Mul", ["f", "xss"], ["y"]),
    ]
    return _model(nodes, {"w": codes, "s": scale})


def _per_token(weight: NDArray[np.float32]) -> Any:
    signed, scale = _row_codes(weight)
    codes = (signed.astype(np.int16) + 128).astype(np.uint8)  # processors without VNNI saturate sums of signed codes
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("ReduceMax", ["a", "axis"], ["m"], keepdims=1),
        helper.make_node("Div", ["m", "qmax"], ["xs"]),
        helper.make_node("Div", ["x", "xs"], ["d"]),
        helper.make_node("Round", ["d"], ["r"]),
        helper.make_node("Add", ["r", "middle"], ["moved"]),
        helper.make_node("Cast", ["moved"], ["xq"], to=TensorProto.UINT8),
        helper.make_node("MatMulInteger", ["xq", "w", "zero", "zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "xs"], ["g"]),
        helper.make_node("Mul", ["g", "s"], ["y"]),
    ]
    constants: dict[str, Any] = {
        "w": codes,
        "s": scale,
        "axis": np.array([1]),
        "qmax": np.float32(127),
        "middle": np.float32(128),
    }
    return _model(nodes, {**constants, "zero": np.uint8(128)})


if __name__ == "__main__":
    main()
