"""The bindings to llama.cpp: layout checks, tokenizer and decoding."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mcpmq.errors import EngineError
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners.llamacpp import LOG_CALLBACK, LlamaCpp, image_chunk_size, llamacpp
from mcpmq.runners.llamacpp.language import Context, LanguageModel
from mcpmq.runners.llamacpp.vision import token_grid
from tests.gguf_tools import export_gguf


@pytest.fixture(scope="module")
def language(tiny_int4: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """The language model of the tiny checkpoint, loaded."""
    [file] = export_gguf(tiny_int4, tmp_path_factory.mktemp("int4")).component_files("language")
    return LanguageModel(llamacpp(), file)


def test_an_unknown_parameter_layout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Default values at other offsets raise an error before a model is loaded."""
    monkeypatch.setattr("mcpmq.runners.llamacpp.CONTEXT_LAYOUT", {4: (512, 2048)})

    with pytest.raises(EngineError, match="unknown layout"):
        LlamaCpp()


@given(st.binary(max_size=120))
def test_an_unknown_image_chunk_has_no_size(saved: bytes) -> None:
    """Arbitrary bytes are not read as a size."""
    assert image_chunk_size(saved) is None


def test_llama_cpp_tokenizes_like_the_checkpoint(language: LanguageModel, tiny_checkpoint: Path) -> None:
    """The tokenizer in the GGUF file gives the tokens of tokenizer.json for Latin, Japanese and special tokens."""
    engine = llamacpp()
    tokenize = engine.optional(
        "llama_tokenize",
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_bool,
        ctypes.c_bool,
    )
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    vocabulary = engine("llama_model_get_vocab", language.pointer)
    for text in (
        "What does the sign say?\n\n 3 circles!",
        "naïve  Übung — 猫が123見る\t🙂",
        "<image><unk></image>it's",
    ):
        tokens, encoded = np.zeros(200, np.int32), text.encode()
        count = tokenize(vocabulary, encoded, len(encoded), tokens.ctypes.data, len(tokens), False, True)

        assert tokens[:count].tolist() == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("size", "num_tokens", "grid"), [((56, 84), 24, (4, 6)), ((392, 112), 56, (14, 4)), ((56, 56), 7, (1, 7))]
)
def test_tokens_of_a_slice_form_a_grid(size: tuple[int, int], num_tokens: int, grid: tuple[int, int]) -> None:
    """Tokens that are squares of pixels have rows and columns; other tokens form one row."""
    assert token_grid(size, num_tokens) == grid


def test_logits_are_returned_for_masked_positions_only(language: LanguageModel) -> None:
    """Each True of the mask gives one row [vocab_size], equal to that of a full mask."""
    tokens, some, full = np.arange(5, dtype=np.int32), np.array([0, 1, 0, 0, 1], np.bool_), np.ones(5, np.bool_)
    context = Context(language, 5, 1, f32_attention=False)
    rows = [row.copy() for row in context.decode(tokens, np.arange(5)[None], some)]
    context.clear()
    every = [row.copy() for row in context.decode(tokens, np.arange(5)[None], full)]

    assert [row.shape for row in rows] == [(language.vocab_size,)] * 2
    np.testing.assert_array_equal(rows, [every[1], every[4]])


def test_messages_are_recorded_after_another_log_handler(language: LanguageModel) -> None:
    """A server in the same process replaces the handlers; the next context sets them again."""
    language.engine("llama_log_set", LOG_CALLBACK(), None)
    context = Context(language, 10, 1, f32_attention=False)

    with pytest.raises(EngineError, match="find a memory slot"):
        list(context.decode(np.zeros(300, np.int32), np.arange(300)[None], np.zeros(300, np.bool_)))


def test_more_tokens_than_the_context_holds_are_an_error(language: LanguageModel) -> None:
    """The error has the log message of llama.cpp."""
    context = Context(language, 10, 1, f32_attention=False)

    with pytest.raises(EngineError, match="find a memory slot"):
        list(context.decode(np.zeros(300, np.int32), np.arange(300)[None], np.zeros(300, np.bool_)))
