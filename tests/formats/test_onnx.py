"""The ONNX format: files, metadata and operators of an artifact, and unsupported plans."""

import functools
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError, MissingExtra
from mcpmq.export import export
from mcpmq.families.family import TensorSpec
from mcpmq.formats import check_plan, format_named
from mcpmq.formats import onnx as onnx_format
from mcpmq.formats.onnx import layout
from mcpmq.formats.onnx.external_data import ExternalData
from mcpmq.plan import TensorPlan, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import open_runner
from mcpmq.scheme import parse_scheme
from tests.onnx_tools import write_onnx_artifact

GRAPHS = ["vision_encoder_quantized", "embed_tokens_quantized", "decoder_model_merged_q4"]


@pytest.fixture(scope="module")
def phone(tiny_int4: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as phone-int4, exported with the default options."""
    return export(tiny_int4, "onnx", tmp_path_factory.mktemp("onnx") / "phone").path


def operators(path: Path) -> Counter[str]:
    """Count the nodes of each operator in a graph."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_the_layout_is_that_of_transformers_js(phone: Path, tiny_int4: QuantizedModel) -> None:
    """`onnx/` contains three graphs named after their dtypes, and their weights; other files are copied unchanged."""
    files = {str(file.relative_to(phone)) for file in phone.rglob("*") if file.is_file()}
    weights = {f"onnx/{name}.onnx{data}" for name in GRAPHS for data in ("", "_data")}
    texts = {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    assert files == weights | texts | {"tokenizer_config.json", "mcpmq.json"}
    for name in texts - {"config.json"}:
        assert (phone / name).read_bytes() == (tiny_int4.path / name).read_bytes()


def test_config_has_the_session_options_of_transformers_js(phone: Path, tiny_int4: QuantizedModel) -> None:
    """config.json keeps every key and gets the number of chunks of every graph and the dtype of every session."""
    config = json.loads((phone / "config.json").read_text())
    settings = config.pop("transformers.js_config")
    assert config == dict(tiny_int4.config)
    assert settings["use_external_data_format"] == {f"{name}.onnx": 1 for name in GRAPHS}
    assert settings["dtype"] == {"vision_encoder": "q8", "embed_tokens": "q8", "decoder_model_merged": "q4"}


def test_the_manifest_lists_every_file_under_its_component(phone: Path) -> None:
    """The manifest lists every file once, under one of four components."""
    manifest = json.loads((phone / "mcpmq.json").read_text())
    assert {record["component"] for record in manifest["files"]} == {
        "vision+projector",
        "embedding",
        "language",
        "model",
    }
    listed = [record["path"] for record in manifest["files"]]
    assert sorted([*listed, "mcpmq.json"]) == sorted(
        str(file.relative_to(phone)) for file in phone.rglob("*") if file.is_file()
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_valid_and_record_their_provenance(name: str, phone: Path, tiny_int4: QuantizedModel) -> None:
    """The ONNX checker accepts every graph, and its metadata has opsets, IR version, producer, source and recipe."""
    path = phone / "onnx" / f"{name}.onnx"
    onnx.checker.check_model(str(path))
    model = onnx.load(path, load_external_data=False)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 23, "com.microsoft": 1}
    assert (model.ir_version, model.producer_name) == (10, "mcpmq")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["source_sha256"] == tiny_int4.artifact.manifest.source.sha256
    assert json.loads(properties["recipe"])["name"] == "phone-int4"
    assert properties["min_onnxruntime"] == "1.24"


def test_quantized_weights_stay_integers(phone: Path, tiny_int4: QuantizedModel) -> None:
    """Every quantized matrix is one MatMulNBits (the fused projection three), every table one GatherBlockQuantized."""
    counted = sum((operators(phone / "onnx" / f"{name}.onnx") for name in GRAPHS), Counter())
    roles = Counter(spec.role for spec in tiny_int4.specs.values())
    assert counted["MatMulNBits"] == roles["matrix"] + 2
    assert counted["GatherBlockQuantized"] == roles["table"]
    assert counted["MatMul"] == 0


def test_activations_have_8_bits_by_default(phone: Path) -> None:
    """MatMulNBits has accuracy level 4 in an export with default options."""
    graph = onnx.load(phone / "onnx" / f"{GRAPHS[2]}.onnx", load_external_data=False).graph
    levels = [attribute.i for node in graph.node for attribute in node.attribute if attribute.name == "accuracy_level"]
    assert set(levels) == {4}


def test_export_is_reproducible(phone: Path, tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """Two exports of one quantized model have equal bytes."""
    again = export(tiny_int4, "onnx", tmp_path / "again").path
    for file in phone.rglob("*.*"):
        if file.is_file():
            assert file.read_bytes() == (again / file.relative_to(phone)).read_bytes(), file.name


def test_weights_in_several_chunks_load(
    tiny_full: QuantizedModel, tiny_full_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model is split between weights, config.json has the number of chunks, and ONNX Runtime loads them."""
    small = functools.partial(ExternalData, max_chunk_nbytes=300_000)
    monkeypatch.setattr(layout, "ExternalData", small)
    path = write_onnx_artifact(tiny_full, tmp_path / "chunked")
    chunks = sorted((path / "onnx").glob("decoder_model_merged.onnx_data*"))
    settings = json.loads((path / "config.json").read_text())["transformers.js_config"]
    assert settings["use_external_data_format"]["decoder_model_merged.onnx"] == len(chunks) > 5
    value = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)
    runners = [open_runner(folder, 1) for folder in (path, tiny_full_onnx)]
    chunked, single = (runner.decode(value, runner.empty_cache(), 0)[0] for runner in runners)
    np.testing.assert_array_equal(chunked, single)


@pytest.mark.parametrize(
    ("scheme", "type_name", "suffix"),
    [("f32", "fp32", ""), ("f16", "fp16", "_fp16"), ("keep", "fp32", ""), ("int4-g64-asym", "q4", "_q4")],
)
def test_graphs_are_named_after_the_dtype_of_most_weights(
    scheme: str, type_name: str, suffix: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The file name suffix is that of the dtype of most weights; bfloat16 has the names of float32."""
    recipe = Recipe(name="one", weights={"*": parse_scheme(scheme)})
    quantized = quantize(make_plan(Checkpoint.open(tiny_checkpoint), recipe), tmp_path / "quantized")
    assert {layout.dtype_names(part, quantized) for part in layout.graph_specs(quantized.architecture)} == {
        (type_name, suffix)
    }


def tensor_plan(role: str, columns: int, scheme: str) -> TensorPlan:
    """Plan one weight of 8 rows."""
    return TensorPlan(TensorSpec("some.weight", "hub", (8, columns), role), "bfloat16", parse_scheme(scheme), "test")  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["int4-g16", "int8-row", "int4-g256-asym", "int8-g32", "f16", "bf16", "f32", "keep"])
def test_integer_and_float_schemes_are_supported(scheme: str) -> None:
    """Every integer and float scheme is supported, also with a partial last group."""
    assert onnx_format.FORMAT.unsupported_reason(tensor_plan("matrix", 33, scheme)) is None
    assert onnx_format.FORMAT.unsupported_reason(tensor_plan("table", 270, scheme)) is None


@pytest.mark.parametrize("scheme", ["q8_0", "q4_k", "iq4_nl"])
def test_ggml_schemes_are_unsupported(scheme: str) -> None:
    """ggml schemes have no ONNX operator; the reason lists supported schemes."""
    reason = onnx_format.FORMAT.unsupported_reason(tensor_plan("matrix", 256, scheme))
    assert reason
    assert "`int4-g32`" in reason
    assert "`int8-g32`" in reason


@pytest.mark.parametrize(
    ("scheme", "columns", "number"),
    [("int4-g32", 33, "33 columns"), ("int4-g32-asym", 96, "(3)"), ("int4-row-asym", 64, "(1)")],
)
def test_4bit_tables_that_onnx_runtime_misreads_are_unsupported(scheme: str, columns: int, number: str) -> None:
    """An odd number of columns, or of 4-bit zero points per row, is unsupported in a table but not in a matrix."""
    reason = onnx_format.FORMAT.unsupported_reason(tensor_plan("table", columns, scheme))
    assert reason
    assert number in reason
    assert "`int8-g32`" in reason
    assert onnx_format.FORMAT.unsupported_reason(tensor_plan("matrix", columns, scheme)) is None


def test_a_plan_with_ggml_schemes_is_rejected(tiny_checkpoint: Path) -> None:
    """The check of a GGUF recipe names the first unsupported weight and its scheme."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("calibrated-quality-int4"))
    with pytest.raises(FormatError, match="as `q8_0`"):
        check_plan(plan, "onnx")


def test_a_failed_export_leaves_no_files(tiny_quality: QuantizedModel, tmp_path: Path) -> None:
    """The export of a quantized model with ggml schemes fails and creates no folder."""
    with pytest.raises(FormatError, match="`onnx` cannot store"):
        export(tiny_quality, "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnx-ir the format raises MissingExtra with the name of the extra."""
    for name in [name for name in sys.modules if name.startswith("mcpmq.formats.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingExtra) as caught:
        format_named("onnx")
    assert "mcpmq[onnx]" in caught.value.hint
