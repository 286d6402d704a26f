"""The two GGUF files: names, metadata, refusals."""

import json
import shutil
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, TokenType
from tokenizers import Tokenizer

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError
from mcpmq.formats import check
from mcpmq.formats.gguf.tensors import widened_ffn
from mcpmq.plan import make_plan
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from tests.gguf_tools import exported, field, quantized_by, reader_of
from tests.tiny import CONFIG, VOCABULARY, build_checkpoint


@pytest.fixture(scope="module")
def int4(tiny_int4: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """phone-int4 as GGUF."""
    return exported(tiny_int4, tmp_path_factory.mktemp("int4"))


def test_files_are_named_as_llama_cpp_names_them(int4: Artifact) -> None:
    """The source, then the type of most weights; what sees begins with `mmproj-`."""
    names = {record.component: record.path for record in int4.manifest.files}

    assert names == {"language": "tiny-Q4_0.gguf", "vision+projector": "mmproj-tiny-Q8_0.gguf"}


def test_a_mixture_of_k_quants_is_named_as_one(tiny_quality: Quantized, tmp_path: Path) -> None:
    """Q4_K with better matrices among them is Q4_K_M, in the name and in `general.file_type`."""
    artifact = exported(tiny_quality, tmp_path)

    assert artifact.files_of("language")[0].name == "tiny-Q4_K_M.gguf"
    assert field(reader_of(artifact, "language"), "general.file_type") == 15


def test_the_same_model_gives_the_same_bytes(tiny_int4: Quantized, int4: Artifact, tmp_path: Path) -> None:
    """Written again, every file has the same hash."""
    assert exported(tiny_int4, tmp_path).manifest.files == int4.manifest.files


def test_the_language_model_says_what_it_is(int4: Artifact) -> None:
    """Sizes, types and where it came from."""
    reader = reader_of(int4, "language")
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

    assert {key: field(reader, key) for key in expected} == expected
    assert field(reader, "qwen2.attention.layer_norm_rms_epsilon") == pytest.approx(CONFIG["rms_norm_eps"])


def test_what_sees_says_what_it_is(int4: Artifact) -> None:
    """Sizes as llama.cpp's multimodal part reads them; the FFN is as wide as its whole blocks."""
    reader, vision = reader_of(int4, "vision+projector"), CONFIG["vision_config"]
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

    assert {key: field(reader, key) for key in expected} == expected


def test_types_are_those_of_the_schemes(int4: Artifact) -> None:
    """Integers become Q4_0 and Q8_0; what is no matrix or table is F32."""
    types = {
        tensor.name: tensor.tensor_type
        for component in ("language", "vision+projector")
        for tensor in reader_of(int4, component).tensors
    }

    assert types["blk.0.attn_q.weight"] == GGMLQuantizationType.Q4_0
    assert types["token_embd.weight"] == types["v.blk.1.ffn_down.weight"] == GGMLQuantizationType.Q8_0
    for name in ("blk.0.attn_q.bias", "output_norm.weight", "resampler.query", "v.patch_embd.weight", "v.post_ln.bias"):
        assert types[name] == GGMLQuantizationType.F32


def test_the_tokenizer_is_whole(int4: Artifact, tiny_int4: Quantized) -> None:
    """Every token at its number with its kind, the merges, the special tokens and the template."""
    reader, tokenizer = reader_of(int4, "language"), Tokenizer.from_file(str(tiny_int4.path / "tokenizer.json"))
    settings = json.loads((tiny_int4.path / "tokenizer_config.json").read_text())
    tokens, types = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    size = tokenizer.get_vocab_size()
    assert isinstance(tokens, list)
    assert isinstance(types, list)

    assert tokens == [tokenizer.id_to_token(number) for number in range(size)]
    assert {tokens[number] for number in range(size) if types[number] == TokenType.CONTROL} == {
        token.content for token in tokenizer.get_added_tokens_decoder().values()
    }
    assert tokens[int(str(field(reader, "tokenizer.ggml.eos_token_id")))] == "<|im_end|>"
    assert field(reader, "tokenizer.ggml.pre") == "qwen2"
    assert field(reader, "tokenizer.chat_template") == settings["chat_template"]
    with pytest.raises(AssertionError):
        field(reader, "tokenizer.ggml.bos_token_id")


def test_rows_without_a_token_get_an_unused_one(tmp_path: Path) -> None:
    """The model's vocabulary is rounded up, the tokenizer's is not."""
    checkpoint = build_checkpoint(tmp_path / "tiny", {**CONFIG, "vocab_size": VOCABULARY + 2})
    reader = reader_of(exported(quantized_by(checkpoint, tmp_path, _all="keep"), tmp_path), "language")
    tokens, types = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    assert isinstance(tokens, list)
    assert isinstance(types, list)

    assert tokens[VOCABULARY - 1] == "</image_id>"
    assert tokens[VOCABULARY:] == ["[PAD320]", "[PAD321]"]
    assert types[VOCABULARY:] == [TokenType.UNUSED] * 2


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("int4-g32-asym", "zero point"),
        ("int8-g16", "32 columns"),
    ],
)
def test_a_scheme_that_llama_cpp_cannot_hold_is_refused_before_work(
    scheme: str, reason: str, tiny_checkpoint: Path
) -> None:
    """The error names the weight, the scheme, the reason and what to take instead."""
    recipe = Recipe.model_validate({"name": "test", "weights": {"language.*": scheme}})
    plan = make_plan(Checkpoint.open(tiny_checkpoint), recipe)

    with pytest.raises(FormatError, match=rf"language\.layers\.0\.attention\.q.*{scheme}") as caught:
        check(plan, "gguf")

    assert reason in caught.value.hint
    assert "int4-g32" in caught.value.hint


def test_ragged_columns_are_refused_where_zeros_cannot_widen_them(tmp_path: Path) -> None:
    """The hidden width of the vision tower is no hidden width of an FFN."""
    vision = {**CONFIG["vision_config"], "hidden_size": 48}
    checkpoint = build_checkpoint(tmp_path / "ragged", {**CONFIG, "vision_config": vision})
    recipe = Recipe.model_validate({"name": "test", "weights": {"vision.*": "int8-row"}})

    with pytest.raises(FormatError) as caught:
        check(make_plan(Checkpoint.open(checkpoint), recipe), "gguf")

    assert "48 columns" in caught.value.hint


@pytest.mark.parametrize(
    ("ffn", "scheme", "width"),
    [(144, "f32", 144), (144, "int8-g32", 160), (160, "int8-g32", 160), (144, "q4_k", 256), (64, "f32", 96)],
)
def test_the_ffn_is_widened_to_whole_blocks_and_never_square(ffn: int, scheme: str, width: int, tmp_path: Path) -> None:
    """llama.cpp takes the matrices of a square FFN for each other, so that width is avoided too."""
    vision = {**CONFIG["vision_config"], "intermediate_size": ffn}
    checkpoint = build_checkpoint(tmp_path / "tiny", {**CONFIG, "vision_config": vision})

    assert widened_ffn(quantized_by(checkpoint, tmp_path, vision__layers__1__mlp__down=scheme)) == width


def changed(quantized: Quantized, folder: Path, file: str, old: str, new: str) -> Quantized:
    """A copy of a quantized artifact with one text file changed."""
    shutil.copytree(quantized.path, folder / "changed")
    text = (folder / "changed" / file).read_text()
    assert old in text
    (folder / "changed" / file).write_text(text.replace(old, new))
    return Quantized.open(folder / "changed")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("tokenizer.json", r"(?i:'s|'t", r"(?i:'t|'s", "does not split text"),
        ("tokenizer.json", '"<image>"', '"<picture>"', "no token `<image>`"),
        ("tokenizer_config.json", "<|endoftext|>", "<|nothing|>", "`pad_token`"),
        ("preprocessor_config.json", '"scale_resolution": 56', '"scale_resolution": 70', "slices of 70 pixels"),
        ("preprocessor_config.json", '"norm_mean": [', '"norm_mean": [1, ', "not three numbers"),
        ("config.json", '"image_size": 980', '"image_size": 700', "positions a side"),
    ],
)
def test_what_llama_cpp_would_not_reproduce_is_refused_and_leaves_nothing(
    tiny_full: Quantized, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    """Another tokenizer, other slices, another table of positions."""
    with pytest.raises(FormatError, match=message):
        exported(changed(tiny_full, tmp_path, file, old, new), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["changed"]
