"""Files of ONNX Runtime GenAI: variants of the graphs that share their weights, and configurations that name them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from mcpmq.artifact import Artifact, write_manifest
from mcpmq.checkpoint import Checkpoint
from mcpmq.families.tokenizer import read_tokenizer
from mcpmq.formats.model_view import PlannedModel
from mcpmq.formats.onnx.block_quant import ACCURACY_LEVEL
from mcpmq.formats.onnx.genai import MODEL_TYPES
from mcpmq.formats.onnx.sizes import forecast_files
from mcpmq.formats.provenance import check_provenance
from mcpmq.formats.sharding import split_artifact
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from tests.checkpoint_tools import build_family, edit_json
from tests.genai.families import FAMILIES
from tests.onnx_tools import write_onnx_artifact
from tests.tiny_families import TinyFamily

CHANGED_VISION = {"qwen2-vl", "gemma-3", "lfm2-vl"}
WIDTH, VOCABULARY = 128, 320


@pytest.fixture(scope="module", params=list(FAMILIES.values()), ids=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> TinyFamily:
    """A family that GenAI runs."""
    found: TinyFamily = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny checkpoint of the family."""
    return Checkpoint.open(family.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def artifact(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Its artifact in blocks of 4 and 8 bits."""
    folder = tmp_path_factory.mktemp("artifact")
    quantized = quantize(make_plan(checkpoint, Recipe.load("phone-int4")), folder / "codes")
    return Artifact.open(write_onnx_artifact(quantized, folder / "artifact", ACCURACY_LEVEL))


@pytest.fixture(scope="module")
def config(artifact: Artifact) -> dict[str, Any]:
    """The section `model` of genai_config.json."""
    found: dict[str, Any] = json.loads((artifact.path / "genai_config.json").read_text())["model"]
    return found


def session(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def graph(artifact: Artifact, component: str) -> onnxruntime.InferenceSession:
    """Open the graph of a component for transformers.js and the ONNX runner."""
    [path] = (file for file in artifact.component_files(component) if file.suffix == ".onnx")
    return session(path)


def test_graphs_share_their_weights(artifact: Artifact, family: TinyFamily) -> None:
    """Embedding and decoder have variants, the vision encoder only where names or axes differ; all reference the
    weights of the other graphs, and record the same source and recipe."""
    variants = artifact.component_files("genai")
    stems = [file.name.removeprefix("genai_").split("_")[0] for file in variants]

    assert stems == sorted(["decoder", "embed", *(["vision"] if family.name in CHANGED_VISION else [])])
    assert not list((artifact.path / "onnx").glob("genai_*_data"))
    for file in variants:
        locations = {
            entry.value
            for tensor in onnx.load(file, load_external_data=False).graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert locations == {f"{file.name.removeprefix('genai_')}_data"}
        assert file.stat().st_size < 2**16
    assert check_provenance(artifact) == 3 + len(variants)


def test_the_checker_accepts_the_graphs(artifact: Artifact, family: TinyFamily) -> None:
    """Variants are valid ONNX; the features of Gemma 3 have no fixed rank, which only ONNX Runtime accepts."""
    for file in artifact.component_files("genai"):
        if family.name != "gemma-3" or "embed" not in file.name:
            onnx.checker.check_model(str(file))


def test_the_configuration_names_inputs_and_outputs_of_the_graphs(artifact: Artifact, config: dict[str, Any]) -> None:
    """Every input and output of a graph is in its section, by name or by a pattern with the layer."""
    for section in ("vision", "embedding", "decoder"):
        opened = session(artifact.path / config[section]["filename"])
        for direction, values in (("inputs", opened.get_inputs()), ("outputs", opened.get_outputs())):
            patterns = set(config[section][direction].values()) | {"input_ids"}
            assert {_pattern(value.name) for value in values} <= patterns


def _pattern(name: str) -> str:
    return ".".join("%d" if part.isdecimal() else part for part in name.split("."))


def test_the_configuration_has_sizes_and_tokens_of_the_model(
    artifact: Artifact, checkpoint: Checkpoint, config: dict[str, Any], family: TinyFamily
) -> None:
    """Sizes are those of the architecture, the width that of the decoder's input, and token ids those of the files."""
    shape, tokenizer, decoder = checkpoint.architecture.language, read_tokenizer(artifact.path), config["decoder"]
    kind = MODEL_TYPES[checkpoint.config["model_type"]]

    assert config["type"] == kind.name
    assert (config["vocab_size"], config["context_length"]) == (shape.vocab_size, shape.context_length)
    assert decoder["hidden_size"] == graph(artifact, "embedding").get_outputs()[0].shape[-1]
    assert (decoder["num_hidden_layers"], decoder["head_size"]) == (shape.num_layers, shape.head_dim)
    assert config["image_token_id"] == tokenizer.token_to_id(kind.image_token)
    assert config.get("vision_start_token_id") == tokenizer.token_to_id("<|vision_start|>")
    generation = json.loads((artifact.path / "generation_config.json").read_text())
    assert config["eos_token_id"] == [generation["eos_token_id"]]
    assert config["pad_token_id"] not in (config["image_token_id"], config.get("vision_start_token_id"))
    if family.name == "lfm2-vl":
        assert decoder["layer_types"] == ["conv", "full_attention", "conv"]
        assert decoder["conv_cache_size"] == 2


def test_sampling_settings_of_the_checkpoint_are_kept(tmp_path: Path) -> None:
    """`search` has those of generation_config.json; others, and null, have the default of GenAI."""
    source = build_family("qwen3.5", tmp_path / "source")
    settings = {"do_sample": True, "top_k": 20, "temperature": 0.7, "top_p": None, "cache_implementation": "static"}
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], **settings}))
    out = write_files(source, tmp_path / "artifact")

    written = json.loads((out / "genai_config.json").read_text())

    assert written["model"]["eos_token_id"] == [1, 2]
    assert written["search"] == {
        "max_length": 2048,
        "past_present_share_buffer": False,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
    }


def test_the_end_of_a_turn_is_no_padding_token(tmp_path: Path) -> None:
    """GenAI masks padding tokens inside of a prompt, so another token is used for padding."""
    source = build_family("qwen2.5-vl", tmp_path / "source")
    edit_json(source / "tokenizer_config.json", pad_token="<|im_end|>")
    out = write_files(source, tmp_path / "artifact")

    padding = json.loads((out / "genai_config.json").read_text())["model"]["pad_token_id"]

    assert padding == read_tokenizer(out).token_to_id("<|endoftext|>")


def write_files(source: Path, out: Path) -> Path:
    """Write an artifact of unquantized weights."""
    quantized = quantize(make_plan(Checkpoint.open(source), Recipe.load("full")), out.with_name("codes"))
    return write_onnx_artifact(quantized, out)


def embed(artifact: Artifact, config: dict[str, Any], tokens: list[int], features: NDArray[np.float32]) -> Any:
    """Run the embedding graph of GenAI."""
    inputs = {"input_ids": np.array([tokens], np.int64), "image_features": features}
    return session(artifact.path / config["embedding"]["filename"]).run(None, inputs)[0][0]


@pytest.mark.parametrize("count", [0, 2, 3])
def test_features_replace_the_embeddings_of_image_tokens(
    artifact: Artifact, config: dict[str, Any], count: int
) -> None:
    """Features are inserted in order; image tokens without a feature, which the model generated, have embeddings."""
    image, width = config["image_token_id"], config["decoder"]["hidden_size"]
    tokens = [5, image, image, 7, image, 9]
    features = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    [expected] = graph(artifact, "embedding").run(None, {"input_ids": np.array([tokens], np.int64)})[0]
    expected[[1, 2, 4][:count]] = features

    np.testing.assert_array_equal(embed(artifact, config, tokens, features), expected)


def test_more_features_than_image_tokens_are_an_error(artifact: Artifact, config: dict[str, Any]) -> None:
    """The embedding graph fails if a prompt lacks image tokens."""
    features = np.zeros((3, config["decoder"]["hidden_size"]), np.float32)

    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        embed(artifact, config, [5, config["image_token_id"], 7], features)


def test_the_decoder_returns_the_last_logits(artifact: Artifact, config: dict[str, Any], family: TinyFamily) -> None:
    """Logits and states are those of the other decoder graph for one token of logits."""
    decoder, variant = graph(artifact, "language"), session(artifact.path / config["decoder"]["filename"])
    inputs = decoder_inputs(decoder, config)
    tokens = np.array([[5, *[config["image_token_id"]] * 2, 7]], np.int64)
    own = {"input_ids": tokens} if family.name == "gemma-3" else {}
    flags = {"token_type_ids": (tokens == config["image_token_id"]).astype(np.int64)} if own else {}

    found = variant.run(None, inputs | own)
    expected = decoder.run(None, inputs | flags | {"num_logits_to_keep": np.array(1)})

    assert variant.get_outputs()[0].shape == ["batch_size", 1, VOCABULARY]
    assert [one.name for one in variant.get_outputs()] == [one.name for one in decoder.get_outputs()]
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, other)


def decoder_inputs(decoder: onnxruntime.InferenceSession, config: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return random embeddings of four tokens, their positions and an empty cache."""
    given = {one.name: one.shape for one in decoder.get_inputs()}
    sizes = {"batch_size": 1, "past_sequence_length": 0}
    pasts = {name: shape for name, shape in given.items() if name.startswith("past_")}
    cache = {name: np.zeros([sizes.get(one, one) for one in shape], np.float32) for name, shape in pasts.items()}
    embeddings = np.random.default_rng(1).normal(size=(1, 4, config["decoder"]["hidden_size"])).astype(np.float32)
    positions = np.broadcast_to(np.arange(4), [*given["position_ids"][:-2], 1, 4])
    return cache | {
        "inputs_embeds": embeddings,
        "attention_mask": np.ones((1, 4), np.int64),
        "position_ids": np.ascontiguousarray(positions),
    }


def test_vision_graphs_have_the_inputs_and_axes_of_genai(
    artifact: Artifact, config: dict[str, Any], family: TinyFamily
) -> None:
    """Grids have one name, masks are int64, and the features of Gemma 3 have an axis for images."""
    opened, other = session(artifact.path / config["vision"]["filename"]), graph(artifact, "vision+projector")
    inputs = {one.name: one.type for one in opened.get_inputs()}

    if family.name.startswith("qwen"):
        assert set(inputs) == {"pixel_values", "image_grid_thw"}
    if family.name == "lfm2-vl":
        assert inputs["pixel_attention_mask"] == "tensor(int64)"
    if family.name == "gemma-3":
        pixels = {"pixel_values": np.random.default_rng(2).normal(size=(2, 3, 448, 448)).astype(np.float32)}
        [features] = opened.run(None, pixels)
        assert features.shape == (2, 256, WIDTH)
        np.testing.assert_array_equal(features.reshape(-1, WIDTH), other.run(None, pixels)[0])


def test_the_processor_has_the_settings_of_the_checkpoint(artifact: Artifact, family: TinyFamily) -> None:
    """Resizing, normalization and the arrangement of pixels follow the image processor of the checkpoint."""
    content = json.loads((artifact.path / "genai_processor_config.json").read_text())
    steps = {one["operation"]["type"]: one["operation"].get("attrs", {}) for one in content["processor"]["transforms"]}
    given = family.preprocessor or {}

    assert steps["Normalize"] == {"mean": given["image_mean"], "std": given["image_std"]}
    assert steps["Rescale"] == {"rescale_factor": 1 / 255}
    resize = steps["Resize"]
    if family.name.startswith("qwen"):
        assert (resize["min_pixels"], resize["max_pixels"]) == (given["min_pixels"], given["max_pixels"])
        assert resize["interpolation"] == "CUBIC"
        assert steps["PatchImage"] == {"patch_size": given["patch_size"], "temporal_patch_size": 2, "merge_size": 2}
    elif family.name == "lfm2-vl":
        assert (resize["min_pixels"], resize["max_pixels"]) == (64 * 32 * 32, 256 * 32 * 32)
        assert (resize["interpolation"], resize["patch_size"], resize["merge_size"]) == ("LINEAR", 16, 2)
    else:
        assert resize == {"interpolation": "LINEAR", "height": 448, "width": 448, "keep_aspect_ratio": 0}


def test_tokenizer_config_has_a_class(tmp_path: Path) -> None:
    """GenAI reads no chat template without one; a class of the checkpoint is kept."""
    source = build_family("qwen2.5-vl", tmp_path / "source")
    default = json.loads((write_files(source, tmp_path / "a" / "out") / "tokenizer_config.json").read_text())
    edit_json(source / "tokenizer_config.json", tokenizer_class="Qwen2TokenizerFast")
    given = json.loads((write_files(source, tmp_path / "b" / "out") / "tokenizer_config.json").read_text())

    assert (default["tokenizer_class"], given["tokenizer_class"]) == ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def test_the_forecast_has_every_file(checkpoint: Checkpoint, artifact: Artifact) -> None:
    """A plan forecasts the graphs and configurations of GenAI, with the size of each."""
    forecast = forecast_files(PlannedModel(make_plan(checkpoint, Recipe.load("phone-int4"))))
    expected = {one.path: (one.component, one.nbytes) for one in artifact.manifest.files if one.path != "README.md"}

    found = {file.path: (file.component, file.nbytes) for file in forecast.files}

    assert {name: found[name] for name in found if "genai" in name} == {
        name: expected[name] for name in expected if "genai" in name
    }
    assert set(found) == set(expected)


def test_split_weights_have_the_same_values(artifact: Artifact, config: dict[str, Any], tmp_path: Path) -> None:
    """The graphs of a split artifact reference the chunks of the other graphs, which transformers.js counts alone."""
    files = split_artifact(artifact, tmp_path, 200_000)
    write_manifest(tmp_path, artifact.manifest.model_copy(update={"files": ()}), files)
    split, tokens = Artifact.open(tmp_path), [3, 5, 7]
    features = np.zeros((0, config["decoder"]["hidden_size"]), np.float32)
    inputs = decoder_inputs(graph(artifact, "language"), config) | {"input_ids": np.array([[3, 5, 7, 9]], np.int64)}
    decoders = [session(one.path / config["decoder"]["filename"]) for one in (artifact, split)]
    names = {one.name for one in decoders[0].get_inputs()}
    given = {name: value for name, value in inputs.items() if name in names}

    np.testing.assert_array_equal(*(embed(one, config, tokens, features) for one in (artifact, split)))
    np.testing.assert_array_equal(*(decoder.run(["logits"], given)[0] for decoder in decoders))
    assert len(split.component_files("language")) > 2
    counts = json.loads((tmp_path / "config.json").read_text())["transformers.js_config"]["use_external_data_format"]
    assert not [name for name in counts if name.startswith("genai")]


@pytest.mark.parametrize(("name", "file", "changes"), [
    ("smolvlm2", "", {}),
    ("internvl", "", {}),
    ("minicpm-v-4.6", "", {}),
    ("gemma-3", "", {}),  # 4 tokens per image
    ("qwen3-vl", "preprocessor_config.json", {"resample": 4}),  # BOX
])  # fmt: skip
def test_other_models_have_no_files_of_genai(name: str, file: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """GenAI has no model type, another number of image tokens, or no filter for them."""
    source = build_family(name, tmp_path / "source")
    if file:
        edit_json(source / file, **changes)

    artifact = Artifact.open(write_files(source, tmp_path / "artifact"))

    assert not [one.path for one in artifact.manifest.files if "genai" in one.path]
    assert not artifact.component_files("genai")
