"""Tokenizer metadata: token types, merges or scores, special tokens, and rejected vocabularies."""

from typing import Any

import pytest
from gguf import TokenType

from mcpmq.errors import FormatError
from mcpmq.formats.gguf.tokenizer import add_vocabulary

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class _Recorder:
    """A writer that records the arguments of its calls."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.calls.update({name: value})


def _byte_level(vocabulary: dict[str, int]) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}}
    return {
        "model": {"vocab": vocabulary, "merges": ["a b", ["ab", "c"]]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]},
        "added_tokens": [
            {"id": len(vocabulary), "content": "<end>", "special": True},
            {"id": len(vocabulary) + 1, "content": "<tool>", "special": False},
        ],
    }


def _sentencepiece(normalizer: dict[str, Any] | None) -> dict[str, Any]:
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "▁": 2, "a": 3, "▁a": 4, "aa": 5, "▁aa": 6}
    model = {"vocab": vocabulary, "merges": ["a a", "▁ a", "▁ aa", "▁a a"], "byte_fallback": True}
    return {"model": model, "pre_tokenizer": None, "normalizer": normalizer, "added_tokens": []}


def _added(tokenizer: dict[str, Any], special: dict[str, str], **options: Any) -> dict[str, Any]:
    recorder = _Recorder()
    add_vocabulary(recorder, tokenizer, special, **{"vocab_size": 7, **options})  # type: ignore[arg-type]
    return recorder.calls


def test_a_byte_level_tokenizer_has_merges() -> None:
    """Added tokens are control or user-defined tokens, and rows without a token are unused."""
    calls = _added(_byte_level({"a": 0, "b": 1, "ab": 2, "Ċ": 3}), {"eos_token": "<end>"})

    assert calls["add_token_list"] == ["a", "b", "ab", "Ċ", "<end>", "<tool>", "[PAD6]"]
    assert calls["add_token_types"] == [
        *[TokenType.NORMAL] * 4,
        TokenType.CONTROL,
        TokenType.USER_DEFINED,
        TokenType.UNUSED,
    ]
    assert (calls["add_tokenizer_model"], calls["add_tokenizer_pre"]) == ("gpt2", "qwen2")
    assert calls["add_token_merges"] == ["a b", "ab c"]
    assert calls["add_eos_token_id"] == 4
    assert not {"add_bos_token_id", "add_token_scores"} & calls.keys()


@pytest.mark.parametrize(
    ("digits", "bytes_"),
    [
        ({}, {}),
        ({"individual_digits": False}, {}),
        ({}, {"use_regex": False}),
        ({}, {"add_prefix_space": True}),
        ({"type": "Punctuation"}, {}),
    ],
)
def test_a_split_of_single_digits_is_that_of_smollm(digits: dict[str, Any], bytes_: dict[str, Any]) -> None:
    """Digits one by one, then the regular expression of GPT-2; another setting of one of them is not supported."""
    tokenizer = _byte_level({"a": 0})
    steps = [
        {"type": "Digits", "individual_digits": True, **digits},
        {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False, **bytes_},
    ]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}

    if not digits and not bytes_:
        assert _added(tokenizer, {})["add_tokenizer_pre"] == "smollm"
        return
    with pytest.raises(FormatError, match="is not one of: qwen2, .*smollm"):
        _added(tokenizer, {})


def test_a_sentencepiece_tokenizer_has_scores() -> None:
    """The first merge that produces a token gives its score; other tokens can not be the result of a merge."""
    calls = _added(_sentencepiece({"type": "Prepend", "prepend": "▁"}), {})

    assert calls["add_tokenizer_model"] == "llama"
    assert calls["add_token_scores"] == [-1e9, -1e9, -1e9, -1e9, -1.0, 0.0, -2.0]
    assert calls["add_token_types"][:3] == [TokenType.UNKNOWN, TokenType.BYTE, TokenType.NORMAL]
    assert calls["add_add_space_prefix"] is True


def test_the_space_prefix_follows_the_normalizer() -> None:
    """Without a `Prepend` normalizer, llama.cpp must not insert a space before the text."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}

    assert _added(_sentencepiece(None), {})["add_add_space_prefix"] is False
    assert _added(_sentencepiece(replace), {})["add_add_space_prefix"] is False


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_a_line_feed_is_required_as_the_tokenizer_writes_it(kind: str) -> None:
    """Byte-level tokenizers write it as `Ċ`, SentencePiece as `<0x0A>`."""
    tokenizer = _byte_level({"a": 0, "Ċ": 1}) if kind == "byte-level" else _sentencepiece(None)
    _added(tokenizer, {}, required_tokens=("\n",))
    tokenizer["model"]["vocab"] = {"a": 0}

    with pytest.raises(FormatError, match="has no token `(Ċ|<0x0A>)`"):
        _added(tokenizer, {}, required_tokens=("\n",))


def test_a_token_after_the_last_embedding_row_is_rejected() -> None:
    """The largest index must be smaller than the number of rows."""
    tokenizer = _byte_level({"a": 0, "b": 1})
    _added(tokenizer, {}, vocab_size=4)

    with pytest.raises(FormatError, match="`<tool>` has the index 3, the embedding only 3 rows"):
        _added(tokenizer, {}, vocab_size=3)


def test_a_special_token_outside_of_the_vocabulary_is_rejected() -> None:
    """The error has the name and the text."""
    tokenizer = _byte_level({"a": 0})
    assert _added(tokenizer, {"pad_token": "<tool>"})["add_pad_token_id"] == 2

    with pytest.raises(FormatError, match="`bos_token` is `<s>`"):
        _added(tokenizer, {"bos_token": "<s>"})


def test_a_tokenizer_without_bpe_is_rejected() -> None:
    """Unigram and WordPiece models have no merges."""
    with pytest.raises(FormatError, match="has no BPE model"):
        _added({"model": {"vocab": {"a": 0}}}, {})
