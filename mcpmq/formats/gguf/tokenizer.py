"""The tokenizer of a checkpoint as llama.cpp's metadata: a byte-level BPE in Qwen2's manner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from mcpmq.errors import FormatError
from mcpmq.json_file import read_json

# How Qwen2 splits text before merging: llama.cpp knows the expression by the name `qwen2`.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEEDED = ("<image>", "</image>", "<slice>", "</slice>", "Ċ")  # llama.cpp looks them up; the last is a line feed


def add_tokenizer(writer: GGUFWriter, folder: Path, vocabulary_size: int) -> None:
    """Write vocabulary, merges, special tokens and chat template.

    A model with more rows than the tokenizer has tokens gets unused ones for the rest.

    Raises:
        FormatError: the tokenizer is not one that llama.cpp would reproduce.
    """
    tokenizer, settings = read_json(folder / "tokenizer.json"), read_json(folder / "tokenizer_config.json")
    _refuse_other_tokenizers(tokenizer)
    added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
    vocabulary = {**tokenizer["model"]["vocab"], **{token["content"]: number for number, token in added.items()}}
    _refuse_misfit(vocabulary, vocabulary_size)
    texts = {number: text for text, number in vocabulary.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(vocabulary_size)])
    writer.add_token_types([_type(number, texts, added) for number in range(vocabulary_size)])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    )
    _add_special_tokens(writer, settings, vocabulary)
    if template := _chat_template(folder, settings):
        writer.add_chat_template(template)


def _refuse_other_tokenizers(tokenizer: Mapping[str, Any]) -> None:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or "merges" not in model:
        raise FormatError("`tokenizer.json` holds no byte-level BPE", "MiniCPM-V 2.6 comes with one")
    if QWEN2_SPLIT not in _split_expressions(tokenizer.get("pre_tokenizer")):
        raise FormatError(
            "`tokenizer.json` does not split text as Qwen2 does, so llama.cpp would read other tokens",
            "use the tokenizer that was published with the model",
        )


def _split_expressions(pre_tokenizer: object) -> list[object]:
    if not isinstance(pre_tokenizer, dict):
        return []
    steps = [pre_tokenizer, *pre_tokenizer.get("pretokenizers", [])]
    return [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]


def _refuse_misfit(vocabulary: Mapping[str, int], size: int) -> None:
    if missing := [token for token in NEEDED if token not in vocabulary]:
        raise FormatError(
            f"the tokenizer has no token `{missing[0]}`, which llama.cpp puts around images",
            "use the tokenizer that was published with the model",
        )
    if (largest := max(vocabulary.values())) >= size:
        raise FormatError(
            f"the tokenizer has a token {largest:,}, the model only {size:,} rows", "they belong to different models"
        )


def _type(number: int, texts: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> TokenType:
    if number in added:
        return TokenType.CONTROL if added[number].get("special") else TokenType.USER_DEFINED
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
