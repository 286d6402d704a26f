"""llama.cpp's functions: checked layouts, the same tokenizer, no guessing."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mcpmq.errors import EngineError
from mcpmq.quantized_model import Quantized
from mcpmq.runners.llamacpp import LlamaCpp, chunk_size, llamacpp
from mcpmq.runners.llamacpp.language import Context, LanguageModel
from tests.gguf_tools import exported


@pytest.fixture(scope="module")
def language(tiny_int4: Quantized, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """The language model of the tiny checkpoint, loaded."""
    [file] = exported(tiny_int4, tmp_path_factory.mktemp("int4")).files_of("language")
    return LanguageModel(llamacpp(), file)


def test_another_layout_of_parameters_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults that do not lie where they should are an error before any model is loaded."""
    monkeypatch.setattr("mcpmq.runners.llamacpp.CONTEXT_LAYOUT", {4: (512, 2048)})

    with pytest.raises(EngineError, match="not known here"):
        LlamaCpp()


@given(st.binary(max_size=120))
def test_an_unknown_saved_image_has_no_size(saved: bytes) -> None:
    """Whatever a later version saves, it is not taken for a size."""
    assert chunk_size(saved) is None


def test_llama_cpp_splits_text_into_the_same_tokens(language: LanguageModel, tiny_checkpoint: Path) -> None:
    """The tokenizer in the file is the one of the checkpoint, whatever script the text has."""
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
        room, encoded = np.zeros(200, np.int32), text.encode()
        count = tokenize(vocabulary, encoded, len(encoded), room.ctypes.data, len(room), False, True)

        assert room[:count].tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_logits_come_for_wanted_positions_only(language: LanguageModel) -> None:
    """One row of the vocabulary each, the same whether others are wanted too."""
    tokens, some, all_of_them = np.arange(5, dtype=np.int32), np.array([0, 1, 0, 0, 1], np.bool_), np.ones(5, np.bool_)
    context = Context(language, 5, 1, exact=False)
    rows = [row.copy() for row in context.read(tokens, np.arange(5)[None], some)]
    context.clear()
    every = [row.copy() for row in context.read(tokens, np.arange(5)[None], all_of_them)]

    assert [row.shape for row in rows] == [(language.vocabulary,)] * 2
    np.testing.assert_array_equal(rows, [every[1], every[4]])


def test_more_tokens_than_there_is_room_for_is_an_error(language: LanguageModel) -> None:
    """llama.cpp's own reason is told."""
    context = Context(language, 10, 1, exact=False)

    with pytest.raises(EngineError, match="find a memory slot"):
        list(context.read(np.zeros(300, np.int32), np.arange(300)[None], np.zeros(300, np.bool_)))
