"""The tokenizer of a checkpoint as llama.cpp's metadata: a byte-level BPE, or one in SentencePiece's manner."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from mcpmq.errors import FormatError
from mcpmq.system.json_file import read_json

# How byte-level tokenizers split text before merging, and what llama.cpp calls it.
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen35",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
}
SENTENCEPIECE = "llama"  # llama.cpp's name of its kind
LINE_FEED = {SENTENCEPIECE: "<0x0A>"}  # how the token is written; byte-level tokenizers write "Ċ"
BYTE = re.compile("<0x[0-9A-F]{2}>")
SPACE = "▁"
PREPENDS = {"type": "Prepend", "prepend": SPACE}
NEVER_MERGED = -1e9


def add_tokenizer(
    writer: GGUFWriter,
    folder: Path,
    vocabulary_size: int,
    needed: tuple[str, ...] = (),
    template: str | None = None,
) -> None:
    """Write vocabulary, merges, special tokens and chat template, which is `template` where no file has one.

    A model with more rows than the tokenizer has tokens gets unused ones for the rest.

    Raises:
        FormatError: the tokenizer is not one that llama.cpp would reproduce, or lacks a needed token.
    """
    tokenizer, settings = read_json(folder / "tokenizer.json"), read_json(folder / "tokenizer_config.json")
    kind = _kind(tokenizer)
    added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
    vocabulary = {**tokenizer["model"]["vocab"], **{token["content"]: number for number, token in added.items()}}
    _refuse_misfit(vocabulary, vocabulary_size, [LINE_FEED.get(kind, "Ċ") if text == "\n" else text for text in needed])
    texts = {number: text for text, number in vocabulary.items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(vocabulary_size)]
    writer.add_token_list(tokens)
    writer.add_token_types([_type(number, texts, added, kind) for number in range(vocabulary_size)])
    if kind == SENTENCEPIECE:
        writer.add_tokenizer_model(SENTENCEPIECE)
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(PREPENDS in _steps(tokenizer.get("normalizer"), "normalizers"))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind)
        writer.add_token_merges(merges)
    _add_special_tokens(writer, settings, vocabulary)
    if found := _chat_template(folder, settings) or template:
        writer.add_chat_template(found)


def _kind(tokenizer: Mapping[str, Any]) -> str:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or "merges" not in model:
        raise FormatError("`tokenizer.json` holds no BPE", "every supported family comes with one")
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    splits = [SPLITS.get(step["pattern"].get("Regex")) for step in steps if step.get("type") == "Split"]
    if found := next(filter(None, splits), None):
        return found
    if model.get("byte_fallback") and not steps:
        return SENTENCEPIECE
    raise FormatError(
        f"`tokenizer.json` does not split text as {', '.join(SPLITS.values())} or SentencePiece do,"
        " so llama.cpp would read other tokens",
        "use the tokenizer that was published with the model",
    )


def _steps(part: object, several: str) -> list[Any]:
    return [part, *part.get(several, [])] if isinstance(part, dict) else []


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """llama.cpp merges the pair whose result has the highest score: the merge that was learnt first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks[token]) if token in ranks else NEVER_MERGED for token in tokens]


def _refuse_misfit(vocabulary: Mapping[str, int], size: int, needed: list[str]) -> None:
    if missing := [token for token in needed if token not in vocabulary]:
        raise FormatError(
            f"the tokenizer has no token `{missing[0]}`, which llama.cpp puts around images",
            "use the tokenizer that was published with the model",
        )
    if (largest := max(vocabulary.values())) >= size:
        raise FormatError(
            f"the tokenizer has a token {largest:,}, the model only {size:,} rows", "they belong to different models"
        )


def _type(number: int, texts: Mapping[int, str], added: Mapping[int, Mapping[str, Any]], kind: str) -> TokenType:
    if kind == SENTENCEPIECE and texts.get(number) == "<unk>":
        return TokenType.UNKNOWN
    if number in added:
        return TokenType.CONTROL if added[number].get("special") else TokenType.USER_DEFINED
    if kind == SENTENCEPIECE and BYTE.fullmatch(texts.get(number, "")):
        return TokenType.BYTE
    return TokenType.NORMAL if number in texts else TokenType.UNUSED


def _add_special_tokens(writer: GGUFWriter, settings: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
    adders = {
        "bos_token": writer.add_bos_token_id,
        "eos_token": writer.add_eos_token_id,
        "pad_token": writer.add_pad_token_id,
        "unk_token": writer.add_unk_token_id,
    }
    for key, add in adders.items():
        token = settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if text is None:
            continue
        if text not in vocabulary:
            raise FormatError(f"`{key}` of `tokenizer_config.json` is `{text}`, which the tokenizer does not have")
        add(vocabulary[text])
    writer.add_add_bos_token(bool(settings.get("add_bos_token")))


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text()
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None
