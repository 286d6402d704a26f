"""Tokenizer metadata: token types, merges or scores, special tokens, and rejected vocabularies."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from mcpmq.errors import FormatError
from mcpmq.formats.gguf.tokenizer import add_tokenizer

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


def _added(folder: Path, tokenizer: dict[str, Any], config: dict[str, Any], **options: Any) -> dict[str, Any]:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    recorder = _Recorder()
    add_tokenizer(recorder, folder, **{"vocab_size": 7, **options})  # type: ignore[arg-type]
    return recorder.calls


def test_a_byte_level_tokenizer_has_merges(tmp_path: Path) -> None:
    """Added tokens are control or user-defined tokens, and rows without a token are unused."""
    calls = _added(tmp_path, _byte_level({"a": 0, "b": 1, "ab": 2, "Ċ": 3}), {"eos_token": "<end>"})

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
    assert calls["add_add_bos_token"] is False
    assert not {"add_bos_token_id", "add_chat_template", "add_token_scores"} & calls.keys()


def test_a_sentencepiece_tokenizer_has_scores(tmp_path: Path) -> None:
    """The first merge that produces a token gives its score; other tokens can not be the result of a merge."""
    calls = _added(tmp_path, _sentencepiece({"type": "Prepend", "prepend": "▁"}), {"add_bos_token": True})

    assert calls["add_tokenizer_model"] == "llama"
    assert calls["add_token_scores"] == [-1e9, -1e9, -1e9, -1e9, -1.0, 0.0, -2.0]
    assert calls["add_token_types"][:3] == [TokenType.UNKNOWN, TokenType.BYTE, TokenType.NORMAL]
    assert calls["add_add_space_prefix"] is True
    assert calls["add_add_bos_token"] is True


def test_the_space_prefix_follows_the_normalizer(tmp_path: Path) -> None:
    """Without a `Prepend` normalizer, llama.cpp must not insert a space before the text."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}

    assert _added(tmp_path, _sentencepiece(None), {})["add_add_space_prefix"] is False
    assert _added(tmp_path, _sentencepiece(replace), {})["add_add_space_prefix"] is False


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_a_line_feed_is_required_as_the_tokenizer_writes_it(kind: str, tmp_path: Path) -> None:
    """Byte-level tokenizers write it as `Ċ`, SentencePiece as `<0x0A>`."""
    tokenizer = _byte_level({"a": 0, "Ċ": 1}) if kind == "byte-level" else _sentencepiece(None)
    _added(tmp_path, tokenizer, {}, required_tokens=("\n",))
    tokenizer["model"]["vocab"] = {"a": 0}

    with pytest.raises(FormatError, match="has no token `(Ċ|<0x0A>)`"):
        _added(tmp_path, tokenizer, {}, required_tokens=("\n",))


def test_a_token_after_the_last_embedding_row_is_rejected(tmp_path: Path) -> None:
    """The largest index must be smaller than the number of rows."""
    tokenizer = _byte_level({"a": 0, "b": 1})
    _added(tmp_path, tokenizer, {}, vocab_size=4)

    with pytest.raises(FormatError, match="a token with index 3, the embedding only 3 rows"):
        _added(tmp_path, tokenizer, {}, vocab_size=3)


def test_a_special_token_outside_of_the_vocabulary_is_rejected(tmp_path: Path) -> None:
    """A special token may be a text or a dictionary with its content."""
    tokenizer = _byte_level({"a": 0})
    assert _added(tmp_path, tokenizer, {"pad_token": {"content": "<tool>"}})["add_pad_token_id"] == 2

    with pytest.raises(FormatError, match="`bos_token` of `tokenizer_config.json` is `<s>`"):
        _added(tmp_path, tokenizer, {"bos_token": "<s>"})


def test_the_chat_template_of_a_file_takes_precedence(tmp_path: Path) -> None:
    """The order is chat_template.jinja, tokenizer_config.json, the default of the family."""
    tokenizer = _byte_level({"a": 0})

    assert _added(tmp_path, tokenizer, {}, default_template="c")["add_chat_template"] == "c"
    assert _added(tmp_path, tokenizer, {"chat_template": "b"}, default_template="c")["add_chat_template"] == "b"
    (tmp_path / "chat_template.jinja").write_text("a")
    assert _added(tmp_path, tokenizer, {"chat_template": "b"}, default_template="c")["add_chat_template"] == "a"


def test_a_tokenizer_without_bpe_is_rejected(tmp_path: Path) -> None:
    """Unigram and WordPiece models have no merges."""
    with pytest.raises(FormatError, match="has no BPE model"):
        _added(tmp_path, {"model": {"vocab": {"a": 0}}}, {})
