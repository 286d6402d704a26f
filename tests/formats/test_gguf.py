"""GGUF files: names, metadata, tokenizer, and rejected models."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, TokenType
from tokenizers import Tokenizer

from mcpmq.artifact import Artifact, CalibrationRecord
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError, FormatError
from mcpmq.formats import check_plan
from mcpmq.formats.gguf.tensors import padded_intermediate_size
from mcpmq.plan import make_plan
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from tests.gguf_tools import export_gguf, gguf_reader, metadata_value, quantize_with
from tests.tiny import CONFIG, VOCAB_SIZE, build_checkpoint


@pytest.fixture(scope="module")
def int4(tiny_int4: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The recipe phone-int4, exported to GGUF."""
    return export_gguf(tiny_int4, tmp_path_factory.mktemp("int4"))


def test_file_names_follow_the_conventions_of_llama_cpp(int4: Artifact) -> None:
    """The name of the checkpoint is followed by the most frequent type; the vision file has the prefix `mmproj-`."""
    names = {record.component: record.path for record in int4.manifest.files}

    assert names == {"language": "tiny-Q4_0.gguf", "vision+projector": "mmproj-tiny-Q8_0.gguf"}


def test_a_mix_of_k_quants_is_named_q4_k_m(tiny_quality: QuantizedModel, tmp_path: Path) -> None:
    """Q4_K with some matrices of more bits is Q4_K_M, in the file name and in `general.file_type`."""
    artifact = export_gguf(tiny_quality, tmp_path)

    assert artifact.component_files("language")[0].name == "tiny-Q4_K_M.gguf"
    assert metadata_value(gguf_reader(artifact, "language"), "general.file_type") == 15


def test_the_same_model_gives_the_same_bytes(tiny_int4: QuantizedModel, int4: Artifact, tmp_path: Path) -> None:
    """A second export has the same hash for every file."""
    assert export_gguf(tiny_int4, tmp_path).manifest.files == int4.manifest.files


def test_the_language_file_has_sizes_and_provenance(int4: Artifact) -> None:
    """The metadata has the sizes of config.json, the file type, the recipe and the hash of the source."""
    reader = gguf_reader(int4, "language")
    expected = {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "qwen2.block_count": CONFIG["num_hidden_layers"],
        "qwen2.context_length": CONFIG["max_position_embeddings"],
        "qwen2.embedding_length": CONFIG["hidden_size"],
        "qwen2.feed_forward_length": CONFIG["intermediate_size"],
        "qwen2.attention.head_count": CONFIG["num_attention_heads"],
        "qwen2.attention.head_count_kv": CONFIG["num_key_value_heads"],
        "qwen2.rope.freq_base": CONFIG["rope_theta"],
        "mcpmq.recipe": "phone-int4",
        "mcpmq.source.sha256": int4.manifest.source.sha256,
    }

    assert {key: metadata_value(reader, key) for key in expected} == expected
    assert metadata_value(reader, "qwen2.attention.layer_norm_rms_epsilon") == pytest.approx(CONFIG["rms_norm_eps"])


def test_a_calibrated_model_records_its_calibration_set(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """The key with the hash of the set is absent from uncalibrated models."""
    record = CalibrationRecord(name="set", sha256="c" * 64, samples=3, with_image=2, fingerprints=())
    manifest = tiny_int4.artifact.manifest.model_copy(update={"calibration_set": record})
    calibrated = replace(tiny_int4, artifact=Artifact(tiny_int4.path, manifest))

    reader = gguf_reader(export_gguf(calibrated, tmp_path / "calibrated"), "language")
    uncalibrated = gguf_reader(export_gguf(tiny_int4, tmp_path / "uncalibrated"), "language")

    assert metadata_value(reader, "mcpmq.calibration.sha256") == "c" * 64
    assert uncalibrated.get_field("mcpmq.calibration.sha256") is None


def test_the_mmproj_file_has_the_sizes_of_the_vision_encoder(int4: Artifact) -> None:
    """The feed-forward length is the padded one; the original one is kept under a key of mcpmq."""
    reader, vision = gguf_reader(int4, "vision+projector"), CONFIG["vision_config"]
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "resampler",
        "clip.minicpmv_version": 3,
        "clip.minicpmv_query_num": CONFIG["query_num"],
        "clip.vision.image_size": CONFIG["image_size"],
        "clip.vision.patch_size": CONFIG["patch_size"],
        "clip.vision.embedding_length": vision["hidden_size"],
        "clip.vision.feed_forward_length": 160,
        "mcpmq.vision.feed_forward_length": vision["intermediate_size"],
        "clip.vision.block_count": vision["num_hidden_layers"],
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.use_gelu": True,
    }

    assert {key: metadata_value(reader, key) for key in expected} == expected


def test_tensor_types_follow_the_schemes(int4: Artifact) -> None:
    """Integer schemes become Q4_0 and Q8_0; norms, biases and kernels are F32."""
    types = {
        tensor.name: tensor.tensor_type
        for component in ("language", "vision+projector")
        for tensor in gguf_reader(int4, component).tensors
    }

    assert types["blk.0.attn_q.weight"] == GGMLQuantizationType.Q4_0
    assert types["token_embd.weight"] == types["v.blk.1.ffn_down.weight"] == GGMLQuantizationType.Q8_0
    for name in ("blk.0.attn_q.bias", "output_norm.weight", "resampler.query", "v.patch_embd.weight", "v.post_ln.bias"):
        assert types[name] == GGMLQuantizationType.F32


def test_the_tokenizer_is_complete(int4: Artifact, tiny_int4: QuantizedModel) -> None:
    """The file has every token with its index and type, the special tokens and the chat template."""
    reader, tokenizer = gguf_reader(int4, "language"), Tokenizer.from_file(str(tiny_int4.path / "tokenizer.json"))
    settings = json.loads((tiny_int4.path / "tokenizer_config.json").read_text())
    tokens, types = metadata_value(reader, "tokenizer.ggml.tokens"), metadata_value(reader, "tokenizer.ggml.token_type")
    size = tokenizer.get_vocab_size()
    assert isinstance(tokens, list)
    assert isinstance(types, list)

    assert tokens == [tokenizer.id_to_token(number) for number in range(size)]
    assert {tokens[number] for number in range(size) if types[number] == TokenType.CONTROL} == {
        token.content for token in tokenizer.get_added_tokens_decoder().values()
    }
    assert tokens[int(str(metadata_value(reader, "tokenizer.ggml.eos_token_id")))] == "<|im_end|>"
    assert metadata_value(reader, "tokenizer.ggml.pre") == "qwen2"
    assert metadata_value(reader, "tokenizer.chat_template") == settings["chat_template"]
    with pytest.raises(AssertionError):
        metadata_value(reader, "tokenizer.ggml.bos_token_id")


def test_embedding_rows_without_a_token_get_unused_tokens(tmp_path: Path) -> None:
    """The embedding may have more rows than the tokenizer has tokens."""
    checkpoint = build_checkpoint(tmp_path / "tiny", {**CONFIG, "vocab_size": VOCAB_SIZE + 2})
    reader = gguf_reader(export_gguf(quantize_with(checkpoint, tmp_path, _all="keep"), tmp_path), "language")
    tokens, types = metadata_value(reader, "tokenizer.ggml.tokens"), metadata_value(reader, "tokenizer.ggml.token_type")
    assert isinstance(tokens, list)
    assert isinstance(types, list)

    assert tokens[VOCAB_SIZE - 1] == "</image_id>"
    assert tokens[VOCAB_SIZE:] == ["[PAD320]", "[PAD321]"]
    assert types[VOCAB_SIZE:] == [TokenType.UNUSED] * 2


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("int4-g32-asym", "zero point"),
        ("int8-g16", "32 columns"),
    ],
)
def test_a_scheme_without_a_ggml_type_is_rejected_before_work(scheme: str, reason: str, tiny_checkpoint: Path) -> None:
    """The error names the weight and the scheme, the hint the reason and the supported schemes."""
    recipe = Recipe.model_validate({"name": "test", "weights": {"language.*": scheme}})
    plan = make_plan(Checkpoint.open(tiny_checkpoint), recipe)

    with pytest.raises(FormatError, match=rf"language\.layers\.0\.attention\.q.*{scheme}") as caught:
        check_plan(plan, "gguf")

    assert reason in caught.value.hint
    assert "int4-g32" in caught.value.hint


def test_ragged_columns_are_rejected_where_they_cannot_be_padded(tmp_path: Path) -> None:
    """Only the intermediate size of an FFN can be padded, not the hidden size."""
    vision = {**CONFIG["vision_config"], "hidden_size": 48}
    checkpoint = build_checkpoint(tmp_path / "ragged", {**CONFIG, "vision_config": vision})
    recipe = Recipe.model_validate({"name": "test", "weights": {"vision.*": "int8-row"}})

    with pytest.raises(FormatError) as caught:
        check_plan(make_plan(Checkpoint.open(checkpoint), recipe), "gguf")

    assert "48 columns" in caught.value.hint


@pytest.mark.parametrize(
    ("size", "scheme", "padded"),
    [(144, "f32", 144), (144, "int8-g32", 160), (160, "int8-g32", 160), (144, "q4_k", 256), (64, "f32", 96)],
)
def test_the_ffn_is_padded_to_whole_blocks_and_never_square(
    size: int, scheme: str, padded: int, tmp_path: Path
) -> None:
    """llama.cpp swaps the matrices of a square FFN, so an intermediate size equal to the hidden size is padded too."""
    vision = {**CONFIG["vision_config"], "intermediate_size": size}
    checkpoint = build_checkpoint(tmp_path / "tiny", {**CONFIG, "vision_config": vision})

    assert padded_intermediate_size(quantize_with(checkpoint, tmp_path, vision__layers__1__mlp__down=scheme)) == padded


SMALL_IMAGE_SIZE = '"image_size": 700'  # 50 x 50 patches


def modified_copy(quantized: QuantizedModel, folder: Path, file: str, old: str, new: str) -> QuantizedModel:
    """Return a copy of a quantized model with one text file changed, and its hash in the manifest."""
    changed = folder / "changed"
    shutil.copytree(quantized.path, changed)
    text = (changed / file).read_text()
    assert old in text
    data = text.replace(old, new).encode()
    (changed / file).write_bytes(data)
    manifest = json.loads((changed / "mcpmq.json").read_text())
    [record] = [record for record in manifest["files"] if record["path"] == file]
    record |= {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for weight in manifest["weights"]:  # as in a checkpoint with the new image size
        if new == SMALL_IMAGE_SIZE and weight["name"] == "vision.position_embedding":
            weight["shape"] = [2500, 64]
    (changed / "mcpmq.json").write_text(json.dumps(manifest))
    return QuantizedModel.open(changed)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("tokenizer.json", r"(?i:'s|'t", r"(?i:'t|'s", "the pre-tokenizer of"),
        ("tokenizer.json", '"<image>"', '"<picture>"', "no token `<image>`"),
        ("tokenizer_config.json", "<|endoftext|>", "<|nothing|>", r"`<\|nothing\|>` has the index 320"),
        ("preprocessor_config.json", '"scale_resolution": 56', '"scale_resolution": 70', "slices of 70 pixels"),
        ("preprocessor_config.json", '"norm_mean": [', '"norm_mean": [1, ', "norm_mean"),
        ("config.json", '"image_size": 980', SMALL_IMAGE_SIZE, "position grid of side 50"),
    ],
)
def test_a_model_that_llama_cpp_would_not_reproduce_is_rejected_and_leaves_no_files(
    tiny_full: QuantizedModel, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    """Different tokenizers, slice resolutions and position grids are errors."""
    with pytest.raises((CheckpointError, FormatError), match=message):
        export_gguf(modified_copy(tiny_full, tmp_path, file, old, new), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["changed"]
