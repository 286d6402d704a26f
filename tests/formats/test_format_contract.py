"""Every format declares its kind, requirements, engine and schemes; schemes round-trip, all others are rejected."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.quants import dequantize as gguf_dequantize
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from mcpmq import formats
from mcpmq.artifact import Kind
from mcpmq.checkpoint import Checkpoint
from mcpmq.cli.options import FORMAT_NAMES
from mcpmq.errors import FormatError, MissingExtra
from mcpmq.families import family_named
from mcpmq.families.family import Family, TensorSpec
from mcpmq.formats import FORMATS, FormatName, check_plan, check_tensors, declared_format, engine_of, format_of
from mcpmq.formats.format import integer_schemes
from mcpmq.formats.gguf.packing import pack as pack_gguf
from mcpmq.formats.gguf.tensors import GgufTensor, stored_type
from mcpmq.grids import codebook, dequantize
from mcpmq.plan import Plan, make_plan
from mcpmq.qtensor import QTensor
from mcpmq.recipe import Recipe
from mcpmq.rounding.rtn import quantize
from mcpmq.runners.launcher import ENGINES
from mcpmq.scheme import CodebookScheme, parse_scheme
from tests.onnx_tools import run_matmul

Reader = Callable[[QTensor, Path], NDArray[np.float32]]
SHAPE = (64, 512)
GROUPS = ("g16", "g32", "g64", "g128", "g256", "row")
FLOATS = ("f32", "f16", "bf16")
EVERY_SCHEME = (
    *(f"int{bits}-{group}{zero}" for bits in (4, 8) for group in GROUPS for zero in ("", "-asym")),
    *(
        "q8_0",
        "q4_0",
        "q4_1",
        "q5_0",
        "iq4_nl",
        "q4_k",
        "q5_k",
        "q6_k",
        "iq4_xs",
        "q3_k",
        "q2_k",
        "iq3_s",
        "nf4",
        "fp4",
    ),
)
DECLARED = [(name, scheme) for name in FORMATS for scheme in declared_format(name).schemes if scheme not in FLOATS]
UNDECLARED = [(name, scheme) for name in FORMATS for scheme in EVERY_SCHEME if (name, scheme) not in DECLARED]


def _quantized(scheme: str) -> QTensor:
    weight, parsed = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)), parse_scheme(scheme)
    if isinstance(parsed, CodebookScheme):
        return codebook.quantize([weight], SHAPE[0], parsed)
    return quantize(weight, parsed)  # type: ignore[arg-type]


def _read_gguf(weight: QTensor, folder: Path) -> NDArray[np.float32]:
    kind = stored_type(TensorSpec("weight", "", SHAPE, "matrix"), weight.scheme, "bfloat16")
    return gguf_dequantize(pack_gguf(weight, GgufTensor("weight", "weight", SHAPE, kind)), kind)


def _read_onnx(weight: QTensor, folder: Path) -> NDArray[np.float32]:
    return run_matmul(folder, weight, np.eye(SHAPE[1], dtype=np.float32)).T


def _hf_reader(package: str) -> Reader:
    packing = import_module(f"mcpmq.formats.{package}.packing")

    def read(weight: QTensor, folder: Path) -> NDArray[np.float32]:
        values: NDArray[np.float32] = dequantize(packing.unpack(packing.pack(weight, "float16"), weight.scheme)).numpy()
        return values

    return read


READERS: dict[FormatName, Reader] = {
    "gguf": _read_gguf,
    "onnx": _read_onnx,
    "gptq": _hf_reader("gptq"),
    "awq": _hf_reader("awq"),
    "bnb": _hf_reader("bnb"),
    "compressed-tensors": _hf_reader("compressed_tensors"),
    "mlx": _hf_reader("mlx"),
}


def _family(name: FormatName) -> Family:
    """Return a family that the format supports."""
    return family_named((declared_format(name).families or ("minicpm-v-2.6",))[0])


def _plan(checkpoint: Path, scheme: str) -> Plan:
    recipe = Recipe.model_validate({"name": "test", "weights": {"language.layers.*": scheme}})
    return make_plan(Checkpoint.open(checkpoint), recipe)


def test_every_format_package_is_listed() -> None:
    """The packages with a `FORMAT` are those of `FORMATS`, under their own names."""
    [root] = formats.__path__
    packages = {path.parent.name for path in Path(root).glob("*/__init__.py") if "FORMAT = " in path.read_text()}

    assert packages == {name.replace("-", "_") for name in FORMATS}
    assert [declared_format(name).name for name in FORMATS] == list(FORMATS)


def test_the_command_line_names_every_format() -> None:
    """The help text is a constant, so that `--help` imports no format."""
    assert set(re.split(r", | or ", FORMAT_NAMES)) == set(FORMATS)


def test_manifests_accept_exactly_the_formats() -> None:
    """In addition to quantized models and importance matrices, which are not in a format."""
    kinds: TypeAdapter[Kind] = TypeAdapter(Kind)

    for kind in ("quantized", "imatrix", *FORMATS):
        assert kinds.validate_python(kind) == kind
    with pytest.raises(ValidationError):
        kinds.validate_python("zip")


def test_every_kind_has_an_engine() -> None:
    """A quantized model runs in PyTorch."""
    kinds: tuple[Kind, ...] = ("quantized", *FORMATS)
    assert {kind: engine_of(kind) for kind in kinds} == {
        "quantized": "torch",
        "gguf": "gguf",
        "onnx": "onnx",
        "gptq": "dequantized",
        "awq": "dequantized",
        "bnb": "transformers",
        "compressed-tensors": "transformers",
        "mlx": "dequantized",
    }
    assert {engine_of(kind) for kind in kinds} == set(ENGINES)
    assert format_of("quantized") is format_of("imatrix") is None


def test_every_format_declares_its_packages_and_runtime() -> None:
    """Formats that mcpmq writes and runs with its own dependencies require no packages."""
    assert {name: (declared_format(name).requires, declared_format(name).min_runtime) for name in FORMATS} == {
        "gguf": (("xllamacpp",), "llama.cpp b11549"),
        "onnx": (("onnx", "onnx_ir", "onnxruntime"), "ONNX Runtime 1.24"),
        "gptq": ((), "transformers 5.23 with optimum and gptqmodel"),
        "awq": ((), "transformers 5.23 with gptqmodel"),
        "bnb": (("bitsandbytes", "accelerate"), "transformers 5.23 with bitsandbytes and accelerate"),
        "compressed-tensors": (
            ("compressed_tensors", "accelerate"),
            "transformers 5.23 with compressed-tensors and accelerate",
        ),
        "mlx": ((), "mlx-vlm 0.7"),
    }


@pytest.mark.parametrize("name", FORMATS)
def test_declared_schemes_can_be_named_in_recipes(name: FormatName) -> None:
    """Every scheme is declared once, and floats are supported by all formats."""
    declared = declared_format(name)

    assert len(set(declared.schemes)) == len(declared.schemes)
    assert [str(parse_scheme(scheme)) for scheme in declared.schemes] == list(declared.schemes)
    assert set(FLOATS) <= set(declared.schemes) <= {*EVERY_SCHEME, *FLOATS}


def test_declarations_need_no_engine() -> None:
    """Formats can be described where neither torch nor the packages of their engines are installed."""
    missing = {"torch", *(package for name in FORMATS for package in declared_format(name).requires)}
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(missing)}))\n"
    code += "from mcpmq.formats import FORMATS, declared_format\n"
    code += "assert [declared_format(name).name for name in FORMATS] == list(FORMATS)"

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "scheme"), DECLARED)
def test_a_declared_scheme_round_trips(name: FormatName, scheme: str, tmp_path: Path) -> None:
    """Read from the stored bytes, every value is that of the quantized weight."""
    weight = _quantized(scheme)

    np.testing.assert_array_equal(READERS[name](weight, tmp_path), dequantize(weight).numpy())


@pytest.mark.parametrize(("name", "scheme"), DECLARED)
def test_a_declared_scheme_passes_the_check(name: FormatName, scheme: str, tiny_checkpoint: Path) -> None:
    """For the linear layers of the language model."""
    check_tensors(_family(name), _plan(tiny_checkpoint, scheme).tensors, name)


@pytest.mark.parametrize(("name", "scheme"), UNDECLARED)
def test_an_undeclared_scheme_is_rejected_before_work(name: FormatName, scheme: str, tiny_checkpoint: Path) -> None:
    """The error names the weight and the scheme, the hint the supported schemes."""
    with pytest.raises(FormatError, match=rf"language\.layers\.0\.attention\.q` as `{scheme}`") as caught:
        check_tensors(_family(name), _plan(tiny_checkpoint, scheme).tensors, name)

    assert all(f"`{supported}`" in caught.value.hint for supported in declared_format(name).schemes)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "onnx"])
def test_quantized_activations_are_rejected_where_they_are_not_supported(
    name: FormatName, tiny_checkpoint: Path
) -> None:
    """The hint names the formats that support them."""
    weights, activations = {"vision.layers.*": "int8-row"}, {"vision.layers.*": "u8"}
    recipe = Recipe.model_validate({"name": "test", "weights": weights, "activations": activations})

    with pytest.raises(FormatError, match="does not support quantized activations") as caught:
        check_tensors(_family(name), make_plan(Checkpoint.open(tiny_checkpoint), recipe).tensors, name)

    assert caught.value.hint.endswith("export to: onnx")


@pytest.mark.parametrize(("name", "package"), [("gguf", "xllamacpp"), ("onnx", "onnxruntime")])
def test_a_missing_package_is_reported_before_work(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: FormatName, package: str
) -> None:
    """The hint names the extra that installs it."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int4"))
    monkeypatch.setattr("mcpmq.formats.find_spec", lambda name: None if name == package else object())

    with pytest.raises(MissingExtra, match=package) as caught:
        check_plan(plan, name)

    assert f"mcpmq[{name}]" in caught.value.hint


def test_integer_schemes_are_enumerated() -> None:
    """By bits, then group size, then zero points."""
    assert integer_schemes((4, 8), (32, None)) == ("int4-g32", "int4-row", "int8-g32", "int8-row")
    assert integer_schemes((4,), (64,), asymmetric=True) == ("int4-g64", "int4-g64-asym")
