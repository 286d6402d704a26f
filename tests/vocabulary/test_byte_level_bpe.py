"""Trimmed byte-level BPE gives kept text the tokens of the tokenizers library with the original vocabulary."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from mcpmq.compression_tables import VocabularyTable
from mcpmq.errors import CheckpointError
from mcpmq.vocabulary.byte_level_bpe import BYTES, ByteLevelBpe, token_bytes
from mcpmq.vocabulary.selection import select_tokens
from tests.vocabulary import byte_level

TEXTS = byte_level.english_texts()


@pytest.fixture(scope="module", params=["one merge for a token", "every pair, whole words first"])
def content(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The content of a tokenizer.json with one merge for every token, or with all."""
    tokenizer = byte_level.train()
    if request.param == "one merge for a token":
        trained: dict[str, Any] = json.loads(tokenizer.to_str())
        return trained
    return byte_level.with_all_merges(tokenizer)


def trim(content: Mapping[str, Any], table: VocabularyTable, counts: Mapping[int, int]) -> tuple[Tokenizer, list[int]]:
    """Return the trimmed tokenizer, and the id of the original of each of its tokens."""
    bpe = ByteLevelBpe.parse(content)
    ids = select_tokens(bpe, table, [], counts).tolist()
    new_ids = {number: index for index, number in enumerate(ids)}
    by_text = {text: new_ids[number] for text, number in bpe.all_ids.items() if number in new_ids}
    return Tokenizer.from_str(json.dumps(bpe.trimmed(by_text))), ids


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a text without special tokens."""
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return tokens


def test_bytes_are_those_of_the_library() -> None:
    """The characters of bytes are the alphabet of the library, which encodes each byte of a text to one of them."""
    tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "a é 你 🙂 \n\x00\x7f"

    assert BYTES.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    [(encoded, _)] = tokenizer.pre_tokenize_str(text)
    assert token_bytes(encoded) == text.encode()


def test_corpus_keeps_its_tokens(content: dict[str, Any]) -> None:
    """All texts of the corpus have the tokens of the original; other texts decode to themselves, in more tokens."""
    original = Tokenizer.from_str(json.dumps(content))
    corpus, others = TEXTS[::2], [text for _, text in byte_level.multilingual_texts()]
    counts = dict.fromkeys((token for text in corpus for token in tokens_of(original, text)), 1)

    trimmed, ids = trim(content, VocabularyTable(corpus=["x"]), counts)

    assert len(ids) % 32 == 0
    assert len(ids) < 0.75 * original.get_vocab_size()
    for text in corpus:
        assert [ids[token] for token in tokens_of(trimmed, text)] == tokens_of(original, text)
    for text in others:
        assert trimmed.decode(tokens_of(trimmed, text), skip_special_tokens=False) == text
    assert sum(len(tokens_of(trimmed, text)) for text in others) > sum(
        len(tokens_of(original, text)) for text in others
    )


LETTERS = st.sampled_from(
    sorted({letter for text in TEXTS for letter in text if letter.isascii()} | set("äöüßÄÖÜ€🙂—"))
)
WORDS = st.sampled_from(sorted({word for text in TEXTS[:200] for word in text.split()} | {"Größe", "über", "Wörter"}))
GERMAN = st.lists(st.one_of(WORDS.filter(lambda word: word.isascii()), st.text(LETTERS, max_size=9)), max_size=12)


@pytest.fixture(scope="module")
def german(content: dict[str, Any]) -> tuple[Tokenizer, Tokenizer, list[int]]:
    """The original tokenizer, the one trimmed to German, and its ids."""
    return Tokenizer.from_str(json.dumps(content)), *trim(content, VocabularyTable(languages=["de"]), {})


@given(words=GERMAN, separator=st.sampled_from([" ", "", "\n", "  \n"]))
def test_any_text_in_the_letters_of_a_language_keeps_its_tokens(
    german: tuple[Tokenizer, Tokenizer, list[int]], words: list[str], separator: str
) -> None:
    """Every text in the letters of a kept language, with digits, punctuation and emoji, has the original's tokens."""
    original, trimmed, ids = german
    text = separator.join(words)

    assert [ids[token] for token in tokens_of(trimmed, text)] == tokens_of(original, text)


@given(text=st.text(max_size=40))
def test_any_text_is_decoded_without_loss(german: tuple[Tokenizer, Tokenizer, list[int]], text: str) -> None:
    """Text of any script is encoded and decoded without loss."""
    _, trimmed, _ = german

    assert trimmed.decode(tokens_of(trimmed, text), skip_special_tokens=False) == text


def test_post_processor_has_the_new_ids(content: dict[str, Any]) -> None:
    """Special tokens that a post-processor inserts have their new ids."""
    original = Tokenizer.from_str(json.dumps(content))
    [*_, the] = tokens_of(original, "the")
    trimmed, ids = trim(content, VocabularyTable(corpus=["x"], max_tokens=512), {the: 1})

    assert [ids[token] for token in trimmed.encode("the").ids] == original.encode("the").ids
    assert len(ids) <= 288  # 256 bytes, 3 special tokens, "the", and tokens that fill a multiple of 32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "Unigram"}, "its model is Unigram"),
        ({"byte_fallback": True}, "sets `byte_fallback`, as SentencePiece does"),
        ({"dropout": 0.1}, "sets `dropout`"),
        ({"end_of_word_suffix": "</w>"}, "sets `end_of_word_suffix`"),
    ],
)
def test_other_tokenizers_are_rejected(change: dict[str, Any], reason: str) -> None:
    """A tokenizer for which the tokens of kept text could change is an error with the reason."""
    content: dict[str, Any] = json.loads(byte_level.train(300).to_str())

    vocab = {token: number for token, number in content["model"]["vocab"].items() if token != "Ġ"}

    with pytest.raises(CheckpointError, match=reason):
        ByteLevelBpe.parse({**content, "model": {**content["model"], **change}})
    with pytest.raises(CheckpointError, match="has no byte level"):
        ByteLevelBpe.parse({**content, "pre_tokenizer": {"type": "Whitespace"}})
    with pytest.raises(CheckpointError, match="lacks 1 of 256 bytes"):
        ByteLevelBpe.parse({**content, "model": {**content["model"], "vocab": vocab}})
