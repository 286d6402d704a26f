"""The ONNX format: which files it writes, what they say of themselves, and what it refuses."""

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
from mcpmq.formats import check, format_named
from mcpmq.formats import onnx as onnx_format
from mcpmq.formats.onnx import layout
from mcpmq.formats.onnx.external_data import ExternalData
from mcpmq.plan import Step, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import open_runner
from mcpmq.scheme import parse_scheme
from tests.onnx_tools import artifact_of

GRAPHS = ["vision_encoder_quantized", "embed_tokens_quantized", "decoder_model_merged_q4"]


@pytest.fixture(scope="module")
def phone(tiny_int4: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's phone-int4, as it is exported for users."""
    return export(tiny_int4, "onnx", tmp_path_factory.mktemp("onnx") / "phone").path


def operators(path: Path) -> Counter[str]:
    """How many nodes of every operator a graph has."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_files_are_those_of_transformers_js(phone: Path, tiny_int4: Quantized) -> None:
    """Three graphs under `onnx/` with their types in the names, each beside its weights; the texts unchanged beside."""
    files = {str(file.relative_to(phone)) for file in phone.rglob("*") if file.is_file()}
    weights = {f"onnx/{name}.onnx{data}" for name in GRAPHS for data in ("", "_data")}
    texts = {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    assert files == weights | texts | {"tokenizer_config.json", "mcpmq.json"}
    for name in texts - {"config.json"}:
        assert (phone / name).read_bytes() == (tiny_int4.path / name).read_bytes()


def test_config_tells_transformers_js_types_and_chunks(phone: Path, tiny_int4: Quantized) -> None:
    """config.json keeps every key and gains the number of chunks of every graph and the type of every session."""
    config = json.loads((phone / "config.json").read_text())
    settings = config.pop("transformers.js_config")
    assert config == dict(tiny_int4.config)
    assert settings["use_external_data_format"] == {f"{name}.onnx": 1 for name in GRAPHS}
    assert settings["dtype"] == {"vision_encoder": "q8", "embed_tokens": "q8", "decoder_model_merged": "q4"}


def test_components_add_up_to_the_files(phone: Path) -> None:
    """Every file is listed once, under the component it serves."""
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
def test_graphs_are_clean_and_say_where_they_come_from(name: str, phone: Path, tiny_int4: Quantized) -> None:
    """The official checker passes on the path; opsets, IR version, producer and properties are those promised."""
    path = phone / "onnx" / f"{name}.onnx"
    onnx.checker.check_model(str(path))
    model = onnx.load(path, load_external_data=False)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 23, "com.microsoft": 1}
    assert (model.ir_version, model.producer_name) == (10, "mcpmq")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["source_sha256"] == tiny_int4.artifact.manifest.source.sha256
    assert json.loads(properties["recipe"])["name"] == "phone-int4"
    assert properties["min_onnxruntime"] == "1.24"


def test_every_matrix_stays_in_integers(phone: Path, tiny_int4: Quantized) -> None:
    """A quantized matrix is one MatMulNBits (the fused projection three), a table one GatherBlockQuantized."""
    counted = sum((operators(phone / "onnx" / f"{name}.onnx") for name in GRAPHS), Counter())
    roles = Counter(spec.role for spec in tiny_int4.specs.values())
    assert counted["MatMulNBits"] == roles["matrix"] + 2
    assert counted["GatherBlockQuantized"] == roles["table"]
    assert counted["MatMul"] == 0


def test_phones_get_activations_of_8_bits(phone: Path) -> None:
    """What is exported for users asks MatMulNBits for its fast path."""
    graph = onnx.load(phone / "onnx" / f"{GRAPHS[2]}.onnx", load_external_data=False).graph
    levels = [attribute.i for node in graph.node for attribute in node.attribute if attribute.name == "accuracy_level"]
    assert set(levels) == {4}


def test_the_same_codes_give_the_same_bytes(phone: Path, tiny_int4: Quantized, tmp_path: Path) -> None:
    """Writing twice gives equal files."""
    again = export(tiny_int4, "onnx", tmp_path / "again").path
    for file in phone.rglob("*.*"):
        if file.is_file():
            assert file.read_bytes() == (again / file.relative_to(phone)).read_bytes(), file.name


def test_weights_over_many_chunks_load(
    tiny_full: Quantized, tiny_full_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model larger than a chunk is cut between weights, config.json counts the chunks, and the runtime finds all."""
    small = functools.partial(ExternalData, largest_chunk_nbytes=300_000)
    monkeypatch.setattr(layout, "ExternalData", small)
    path = artifact_of(tiny_full, tmp_path / "chunked")
    chunks = sorted((path / "onnx").glob("decoder_model_merged.onnx_data*"))
    settings = json.loads((path / "config.json").read_text())["transformers.js_config"]
    assert settings["use_external_data_format"]["decoder_model_merged.onnx"] == len(chunks) > 5
    value = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)
    runners = [open_runner(folder, 1) for folder in (path, tiny_full_onnx)]
    cut, whole = (runner.decode(value, runner.empty_cache(), 0)[0] for runner in runners)
    np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize(
    ("scheme", "type_name", "suffix"),
    [("f32", "fp32", ""), ("f16", "fp16", "_fp16"), ("keep", "fp32", ""), ("int4-g64-asym", "q4", "_q4")],
)
def test_names_follow_what_most_numbers_are(
    scheme: str, type_name: str, suffix: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A graph is called after the type of most of its numbers; bfloat16 has no name and goes as the plain one."""
    recipe = Recipe(name="one", weights={"*": parse_scheme(scheme)})
    quantized = quantize(make_plan(Checkpoint.open(tiny_checkpoint), recipe), tmp_path / "quantized")
    assert {layout.type_names(part, quantized) for part in layout.parts_of(quantized.architecture)} == {
        (type_name, suffix)
    }


def step(role: str, columns: int, scheme: str) -> Step:
    """A step for one weight of 8 rows."""
    return Step(TensorSpec("some.weight", "hub", (8, columns), role), "bfloat16", parse_scheme(scheme), "test")  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["int4-g16", "int8-row", "int4-g256-asym", "int8-g32", "f16", "bf16", "f32", "keep"])
def test_integers_and_floats_are_held(scheme: str) -> None:
    """Every integer scheme and every float is held, ragged columns too."""
    assert onnx_format.refuses(step("matrix", 33, scheme)) is None
    assert onnx_format.refuses(step("table", 270, scheme)) is None


@pytest.mark.parametrize("scheme", ["q8_0", "q4_k", "iq4_nl"])
def test_ggml_blocks_are_refused_with_what_to_use(scheme: str) -> None:
    """ggml's own grids have no operator; the reason names schemes that have one."""
    reason = onnx_format.refuses(step("matrix", 256, scheme))
    assert reason
    assert "`int4-g32`" in reason
    assert "`int8-g32`" in reason


@pytest.mark.parametrize(
    ("scheme", "columns", "number"),
    [("int4-g32", 33, "33 is odd"), ("int4-g32-asym", 96, "(3)"), ("int4-row-asym", 64, "(1)")],
)
def test_a_table_that_a_runtime_would_misread_is_refused(scheme: str, columns: int, number: str) -> None:
    """Odd columns would come back one too long; an odd number of 4-bit zero points is misread by the least runtime."""
    reason = onnx_format.refuses(step("table", columns, scheme))
    assert reason
    assert number in reason
    assert "`int8-g32`" in reason
    assert onnx_format.refuses(step("matrix", columns, scheme)) is None


def test_a_plan_with_ggml_blocks_is_refused_before_work(tiny_checkpoint: Path) -> None:
    """quality-int4 is for GGUF: checking the plan names the first weight and its scheme."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("quality-int4"))
    with pytest.raises(FormatError, match="as `q8_0`"):
        check(plan, "onnx")


def test_quantized_ggml_blocks_are_refused_and_leave_nothing(tiny_quality: Quantized, tmp_path: Path) -> None:
    """The same for an artifact that is quantized already: no folder appears."""
    with pytest.raises(FormatError, match="`onnx` cannot hold"):
        export(tiny_quality, "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnx-ir, asking for the format names the extra, before any work."""
    for name in [name for name in sys.modules if name.startswith("mcpmq.formats.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingExtra) as caught:
        format_named("onnx")
    assert "mcpmq[onnx]" in caught.value.hint
