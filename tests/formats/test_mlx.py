"""MLX: stored words, scales and biases by the definition of the layout, names of mlx-vlm, and unsupported requests."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import FormatError
from mcpmq.export import export
from mcpmq.formats import check_plan
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.formats.mlx.names import PREFIXES, is_offset_norm, mlx_name
from mcpmq.formats.mlx.packing import pack
from mcpmq.formats.recipes import recipe_for
from mcpmq.grids import dequantize
from mcpmq.plan import make_plan
from mcpmq.qtensor import GgmlTensor, IntegerTensor
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.scheme import IntegerScheme
from tests.gguf_tools import quantize_with
from tests.hf_tools import load_tensors
from tests.tiny_families import TINY_FAMILIES, TinyFamily

FAMILIES = [family for family in TINY_FAMILIES if family.name in PREFIXES]
SCHEMES = {
    "embedding": "int8-g64",
    "language.layers.*": "q4_1",
    "language.layers.*.attention.o": "int4-g32",
    "language.layers.*.mlp.up": "q8_0",
    "vision.layers.*.attention.*": "int8-g32",
    "vision.layers.0.attention.*": "int4-g64",
}


def _by_definition(tensors: dict[str, Tensor], module: str, group_size: int, bits: int) -> NDArray[np.float32]:
    """Return the values of a module, code by code, without code of mcpmq."""
    words = tensors[f"{module}.weight"].view(torch.int32).numpy().view(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words[..., None] >> shifts & np.uint32(2**bits - 1)).reshape(len(words), -1).astype(np.float32)
    scale, bias = (tensors[f"{module}.{name}"].float().numpy().repeat(group_size, 1) for name in ("scales", "biases"))
    values: NDArray[np.float32] = codes * scale + bias
    return values


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name + family.variant)
def family(request: pytest.FixtureRequest) -> TinyFamily:
    """Every family of mlx-vlm."""
    found: TinyFamily = request.param
    return found


@pytest.fixture(scope="module")
def exported(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedModel, Artifact]:
    """A quantized model of the family with several schemes, and its MLX artifact."""
    folder = tmp_path_factory.mktemp("mlx")
    quantized = quantize_with(family.build(folder / "base"), folder / "quantized", **SCHEMES)
    return quantized, export(quantized, "mlx", folder / "mlx")


def test_values_are_those_of_the_quantized_model(exported: tuple[QuantizedModel, Artifact]) -> None:
    """Codes, scales and biases give the same values exactly, with the mode that config.json has for the module."""
    quantized, artifact = exported
    tensors, config = load_tensors(artifact), json.loads((artifact.path / "config.json").read_text())
    packed = 0

    for record in artifact.manifest.weights:
        module = mlx_name(artifact.manifest.family, record.hub_name).removesuffix(".weight")
        if f"{module}.scales" not in tensors:
            continue
        mode = config["quantization"].get(module, config["quantization"])
        values = _by_definition(tensors, module, mode["group_size"], mode["bits"])
        weight = quantized.load(record.name)
        assert not isinstance(weight, Tensor)
        np.testing.assert_array_equal(values, dequantize(weight).numpy())
        assert tensors[f"{module}.scales"].dtype == tensors[f"{module}.biases"].dtype == torch.float16
        packed += 1

    assert packed == sum(record.scheme is not None for record in artifact.manifest.weights)
    assert config["quantization"] == config["quantization_config"]


def test_unquantized_tensors_have_the_layout_of_mlx(exported: tuple[QuantizedModel, Artifact]) -> None:
    """Channels of convolutions are last, norms with an offset are stored as 1 + weight, others are unchanged."""
    quantized, artifact = exported
    tensors, shape = load_tensors(artifact), quantized.architecture.language

    for record in artifact.manifest.weights:
        spec = quantized.specs[record.name]
        if record.scheme is not None:
            continue
        stored, value = tensors[mlx_name(artifact.manifest.family, spec.hub_name)], quantized.load(spec.name)
        assert isinstance(value, Tensor)
        if value.dim() > 2:
            assert torch.equal(stored, torch.moveaxis(value, 1, -1))
        else:
            assert torch.equal(stored, value + 1 if is_offset_norm(spec, shape) else value)


def test_the_reader_inverts_the_writer(exported: tuple[QuantizedModel, Artifact]) -> None:
    """Codes and grids are equal; norms with an offset are rounded to their dtype."""
    quantized, artifact = exported
    reader = HuggingFaceArtifact.open(artifact.path)

    for spec in quantized.specs.values():
        if not spec.name.startswith("drafts."):
            read, expected = reader.load(spec.name), quantized.load(spec.name)
            values = (one.float() if isinstance(one, Tensor) else dequantize(one) for one in (read, expected))
            torch.testing.assert_close(*values, rtol=0, atol=2**-7 if is_offset_norm(spec, reader.language) else 0)


def test_names_are_those_of_mlx_vlm(exported: tuple[QuantizedModel, Artifact]) -> None:
    """Every tensor of the model is in the language model, the vision encoder or a merger."""
    names = {name.partition(".")[0] for name in load_tensors(exported[1])}

    assert names <= {"language_model", "vision_tower", "vit_merger", "merger", "mtp"}
    assert {"language_model", "vision_tower"} <= names


def test_the_mode_of_most_modules_is_the_default(exported: tuple[QuantizedModel, Artifact]) -> None:
    """Modules of other modes have an entry of their own."""
    config = json.loads((exported[1].path / "config.json").read_text())["quantization"]

    assert {key: config[key] for key in ("group_size", "bits", "mode")} == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
    }
    assert config["language_model.model.embed_tokens"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert "language_model.model.layers.0.mlp.gate_proj" not in config


def test_calibrated_weights_are_stored_exactly(tiny_set: Path, tmp_path: Path) -> None:
    """GPTQ on grids with a scale and a minimum: the recipe of --bits 4."""
    family = next(one for one in FAMILIES if one.name == "qwen2-vl")
    plan = make_plan(Checkpoint.open(family.build(tmp_path / "base")), Recipe.load(recipe_for(4, "mlx")))
    quantized = quantize(plan, tmp_path / "quantized", SampleSet.open(tiny_set))

    artifact = export(quantized, "mlx", tmp_path / "mlx")

    values = _by_definition(load_tensors(artifact), "language_model.model.layers.1.mlp.down_proj", 32, 4)
    weight = quantized.load("language.layers.1.mlp.down")
    assert isinstance(weight, GgmlTensor)
    np.testing.assert_array_equal(values, dequantize(weight).numpy())


def test_biases_that_float16_does_not_represent_are_rejected() -> None:
    """-128 times a scale of 600 overflows."""
    codes, scale = torch.zeros(2, 32, dtype=torch.uint8), torch.full((2, 1), 600.0).half()
    weight = IntegerTensor(IntegerScheme(8, 32), codes, scale)

    with pytest.raises(FormatError, match="float16 does not represent the biases"):
        pack(weight, "bfloat16")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"language.layers.*": "int4-g32-asym"}, "as `int4-g32-asym`"),
        ({"language.layers.*": "iq4_nl"}, "as `iq4_nl`"),
        ({"vision.layers.*.mlp.down": "int8-g64"}, "vision.layers.0.mlp.down` as `int8-g64`"),
        ({"embedding": "keep"}, "no weight is quantized"),
    ],
)
def test_unsupported_schemes_and_shapes(weights: dict[str, str], message: str, tmp_path: Path) -> None:
    """Zero points, other blocks, and the last group of 144 columns of Qwen3-VL are errors before any weight is read."""
    family = next(one for one in FAMILIES if one.name == "qwen3-vl")
    plan = make_plan(
        Checkpoint.open(family.build(tmp_path / "base")), Recipe.model_validate({"name": "x", "weights": weights})
    )

    with pytest.raises(FormatError) as caught:
        check_plan(plan, "mlx")

    assert message in str(caught.value)


def test_other_families_are_rejected(tiny_checkpoint: Path) -> None:
    """mlx-vlm has no model for MiniCPM-V 2.6."""
    with pytest.raises(FormatError, match="`mlx` does not support `minicpm-v-2.6`") as caught:
        check_plan(make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("mlx-int8")), "mlx")

    assert caught.value.hint == "mlx-vlm 0.7 does not load this family from this format"


def test_the_configuration_has_the_keys_of_mlx_vlm(
    family: TinyFamily, exported: tuple[QuantizedModel, Artifact]
) -> None:
    """Keys that transformers can leave out are added, and the quantization; others are those of the checkpoint."""
    quantized, artifact = exported
    config, language = json.loads((artifact.path / "config.json").read_text()), quantized.architecture.language
    added = {"quantization", "quantization_config", "text_config", "vision_config"}

    assert {key: value for key, value in config.items() if key not in added} == {
        key: value for key, value in quantized.config.items() if key not in added
    }
    if "text_config" in quantized.config:
        assert config["text_config"].items() >= quantized.config["text_config"].items()
        assert config["text_config"]["tie_word_embeddings"] is language.tied_embeddings
        assert config["text_config"]["rope_theta"] > 1
    if language.linear_attention:
        assert config["text_config"]["full_attention_interval"] == 2
    if family.name == "qwen3-vl":
        assert config["vision_config"]["model_type"] == "qwen3_vl"


@pytest.mark.mlx
def test_mlx_vlm_computes_the_same_logits(exported: tuple[QuantizedModel, Artifact]) -> None:
    """It loads every tensor; its logits are those of PyTorch with the same values, except for its float16 products."""
    import mlx.core as mx
    from mlx_vlm.utils import load_model

    from mcpmq.families.inputs import Inputs
    from mcpmq.runners.dequantized import open_runner

    _, artifact = exported
    tokens = np.arange(3, 40)
    model = load_model(artifact.path)
    found = np.array(model.language_model(mx.array(tokens)[None]).logits[0].astype(mx.float32))[:-1]
    sample = Inputs("a", tokens, 1, (), np.empty((0, 2), np.int64))

    [expected] = open_runner(artifact.path, 1).run([sample], lambda _, logits: np.array([one.copy() for one in logits]))

    assert np.abs(found - expected).max() < 0.05 * expected.std()
