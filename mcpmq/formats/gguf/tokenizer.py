"""The tokenizer of a checkpoint as GGUF metadata: byte-level BPE, or BPE with SentencePiece conventions."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from mcpmq.errors import FormatError
from mcpmq.families.chat_template import read_chat_template
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.special_tokens import end_token, named_special_tokens, read_tokenizer_config
from mcpmq.families.tokenizer import read_tokenizer

# Regular expressions of byte-level pre-tokenizers, and llama.cpp's names of them (`tokenizer.ggml.pre`).
PRE_TOKENIZERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen35",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
}
SINGLE_DIGITS = "smollm"  # the regular expression of GPT-2 after a split of digits
SENTENCEPIECE = "llama"  # value of `tokenizer.ggml.model`
LINE_FEED = {SENTENCEPIECE: "<0x0A>"}  # byte-level tokenizers write "Ċ"
BYTE = re.compile("<0x[0-9A-F]{2}>")
SPACE = "▁"
# A split at spaces has no effect after a normalizer that replaces them.
UNUSED_SPLITS = ({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},)
PREPEND_NORMALIZER = {"type": "Prepend", "prepend": SPACE}
UNMERGED_SCORE = -1e9


def add_tokenizer(
    writer: GGUFWriter,
    folder: Path,
    vocab_size: int,
    prompt_format: PromptFormat,
    required_tokens: tuple[str, ...] = (),
) -> None:
    """Write vocabulary, merges, special tokens and the chat template.

    Embedding rows without a token get an unused token. The end of sequence is always written: llama.cpp would assume
    token 11, which is a comma.

    Raises:
        CheckpointError: a tokenizer file is missing or invalid.
        FormatError: llama.cpp would not reproduce the tokenizer, or it lacks a required token.
    """
    tokenizer, config = read_tokenizer(folder), read_tokenizer_config(folder)
    end = end_token(folder, config, tokenizer, prompt_format.end_of_turn)
    special = named_special_tokens(config) | {"eos_token": end}
    add_vocabulary(writer, json.loads(tokenizer.to_str()), special, vocab_size, required_tokens)
    writer.add_add_bos_token(bool(config.get("add_bos_token")))
    if template := read_chat_template(folder) or prompt_format.default_chat_template:
        writer.add_chat_template(template)


def add_vocabulary(
    writer: GGUFWriter,
    tokenizer: Mapping[str, Any],
    special: Mapping[str, str],
    vocab_size: int,
    required_tokens: tuple[str, ...] = (),
) -> None:
    """Write vocabulary, merges and special tokens of the content of a tokenizer.json.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer, or it lacks a required token.
    """
    kind = _kind(tokenizer)
    added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
    vocabulary = {**tokenizer["model"]["vocab"], **{token["content"]: index for index, token in added.items()}}
    required = [text.replace("\n", LINE_FEED.get(kind, "Ċ")) for text in required_tokens]
    _check_vocabulary(vocabulary, vocab_size, required)
    texts = {index: text for text, index in vocabulary.items()}
    tokens = [texts.get(index, f"[PAD{index}]") for index in range(vocab_size)]
    writer.add_token_list(tokens)
    writer.add_token_types([int(_token_type(index, texts, added, kind)) for index in range(vocab_size)])
    _add_merges(writer, tokenizer, tokens, kind)
    _add_special_tokens(writer, special, vocabulary)


def _add_merges(writer: GGUFWriter, tokenizer: Mapping[str, Any], tokens: list[str], kind: str) -> None:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    if kind == SENTENCEPIECE:
        writer.add_tokenizer_model(SENTENCEPIECE)
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(PREPEND_NORMALIZER in _steps(tokenizer.get("normalizer"), "normalizers"))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind)
        writer.add_token_merges(merges)


def _kind(tokenizer: Mapping[str, Any]) -> str:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or "merges" not in model:
        raise FormatError("`tokenizer.json` has no BPE model", "use the tokenizer of the published checkpoint")
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    splits = [PRE_TOKENIZERS.get(step["pattern"].get("Regex")) for step in steps if step.get("type") == "Split"]
    if name := next(filter(None, splits), None):
        return name
    if _splits_single_digits(steps):
        return SINGLE_DIGITS
    if model.get("byte_fallback") and all(step in UNUSED_SPLITS for step in steps):
        return SENTENCEPIECE
    raise FormatError(
        f"the pre-tokenizer of `tokenizer.json` is not one of: {', '.join(PRE_TOKENIZERS.values())}, {SINGLE_DIGITS},"
        " SentencePiece;"
        " llama.cpp would produce different tokens",
        "use the tokenizer of the published checkpoint",
    )


def _splits_single_digits(steps: list[Any]) -> bool:
    """Return True for a split of every digit, followed by the split of GPT-2."""
    kinds = [step.get("type") for step in steps if step.get("type") != "Sequence"]
    digits, bytes_ = ([step for step in steps if step.get("type") == kind] for kind in ("Digits", "ByteLevel"))
    if kinds != ["Digits", "ByteLevel"]:
        return False
    is_split = digits[0].get("individual_digits") and bytes_[0].get("use_regex", True)
    return bool(is_split) and not bytes_[0].get("add_prefix_space", True)


def _steps(part: object, key: str) -> list[Any]:
    """Return a normalizer or pre-tokenizer and the members of a sequence of them."""
    return [part, *part.get(key, [])] if isinstance(part, dict) else []


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return a score for every token; llama.cpp merges the pair whose result has the highest score."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks[token]) if token in ranks else UNMERGED_SCORE for token in tokens]


def _check_vocabulary(vocabulary: Mapping[str, int], vocab_size: int, required: list[str]) -> None:
    if missing := [token for token in required if token not in vocabulary]:
        raise FormatError(
            f"the tokenizer has no token `{missing[0]}`, which llama.cpp inserts around images",
            "use the tokenizer of the published checkpoint",
        )
    if outside := [text for text, index in vocabulary.items() if index >= vocab_size]:
        index = vocabulary[outside[0]]
        raise FormatError(
            f"the token `{outside[0]}` has the index {index:,}, the embedding only {vocab_size:,} rows",
            "use the tokenizer files of the published checkpoint",
        )


def _token_type(index: int, texts: Mapping[int, str], added: Mapping[int, Mapping[str, Any]], kind: str) -> TokenType:
    if kind == SENTENCEPIECE and texts.get(index) == "<unk>":
        return TokenType.UNKNOWN
    if index in added:
        return TokenType.CONTROL if added[index].get("special") else TokenType.USER_DEFINED
    if kind == SENTENCEPIECE and BYTE.fullmatch(texts.get(index, "")):
        return TokenType.BYTE
    return TokenType.NORMAL if index in texts else TokenType.UNUSED


def _add_special_tokens(writer: GGUFWriter, special: Mapping[str, str], vocabulary: Mapping[str, int]) -> None:
    adders = {
        "bos_token": writer.add_bos_token_id,
        "eos_token": writer.add_eos_token_id,
        "pad_token": writer.add_pad_token_id,
        "unk_token": writer.add_unk_token_id,
    }
    for key, add in adders.items():
        if (text := special.get(key)) is None:
            continue
        if text not in vocabulary:
            raise FormatError(
                f"`{key}` is `{text}`, which is not in the vocabulary", "use the tokenizer of the published checkpoint"
            )
        add(vocabulary[text])
