"""Tokenizer of a checkpoint, and checks of its tokens."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers

from mcpmq.errors import CheckpointError, DatasetError
from mcpmq.families.chat_template import read_chat_template
from mcpmq.families.special_tokens import (
    add_configured_tokens,
    end_token_ids,
    is_rebuilt,
    named_special_tokens,
    read_tokenizer_config,
)
from mcpmq.system.json_file import read_json, read_text

UNNAMED_CONTROL_TOKENS = ("<s>", "</s>", "<unk>", "<pad>")  # conventional texts that older files do not name
LARGE_ID = re.compile(r'"(?!max_length|stride)[^"\\]*"\s*:\s*\d{9,}')


class SampleTooLongError(DatasetError):
    """A sample or chat has more tokens than the context length."""

    def __init__(self, label: str, num_tokens: int, context_length: int) -> None:
        self.num_tokens = num_tokens
        super().__init__(
            f"{label} has {num_tokens} tokens, more than the context length of {context_length}",
            "shorten the text, or give fewer or smaller images",
        )


def open_tokenizer(
    checkpoint: Path, required_tokens: tuple[str, ...], vocab_size: int
) -> tuple[Tokenizer, dict[str, int]]:
    """Open the tokenizer; return it and the ids of its control tokens, which include the required tokens.

    Raises:
        CheckpointError: a file is missing or invalid, or has no id below `vocab_size` for a required token.
    """
    tokenizer = read_tokenizer(checkpoint)
    required = _required_ids(tokenizer, required_tokens, vocab_size)
    return tokenizer, required | _control_tokens(tokenizer, checkpoint)


def read_tokenizer(checkpoint: Path) -> Tokenizer:
    """Read tokenizer.json, with the tokens that other files add, and without truncation and padding.

    Raises:
        CheckpointError: a file is missing or invalid, or two files contradict each other.
    """
    tokenizer = _parse(checkpoint / "tokenizer.json")
    tokenizer.no_truncation()  # settings of the last training run; transformers does not use them either
    tokenizer.no_padding()
    config = read_tokenizer_config(checkpoint)
    if is_rebuilt(checkpoint, config):
        tokenizer.normalizer = normalizers.NFC()
    add_configured_tokens(tokenizer, checkpoint, config)
    return tokenizer


def complete_tokenizer(checkpoint: Path) -> dict[str, Any] | None:
    """Return tokenizer.json with the tokens that other files add; None if they add none.

    Raises:
        CheckpointError: a file is missing or invalid, or two files contradict each other.
    """
    tokenizer = _parse(checkpoint / "tokenizer.json")
    before = tokenizer.to_str()
    add_configured_tokens(tokenizer, checkpoint, read_tokenizer_config(checkpoint))
    after = tokenizer.to_str()
    completed: dict[str, Any] = json.loads(after)
    return completed if before != after else None


def _parse(file: Path) -> Tokenizer:
    content = read_text(file, "download the tokenizer files, or save them with `AutoTokenizer` of transformers")
    if found := LARGE_ID.search(content):  # the library would allocate memory for all ids below
        raise CheckpointError(f"`{file}` has the token id `{found[0]}`, more than 8 digits", "download it again")
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the library has no specific exception
        raise CheckpointError(f"`{file}` is not a valid tokenizer: {error}", "download it again") from error


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode text, including special tokens written in it, without adding any."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def placeholder_id(tokenizer: Tokenizer, token: str, vocab_size: int) -> int:
    """Return the id of a placeholder that only some samples need.

    Raises:
        CheckpointError: the tokenizer has no id below `vocab_size` for it.
    """
    return _required_ids(tokenizer, (token,), vocab_size)[token]


def _required_ids(tokenizer: Tokenizer, required: tuple[str, ...], vocab_size: int) -> dict[str, int]:
    ids = {token: number for token in required if (number := tokenizer.token_to_id(token)) is not None}
    if missing := [token for token in required if ids.get(token, vocab_size) >= vocab_size]:
        raise CheckpointError(
            f"the tokenizer has no token `{missing[0]}`, or its id is not below the vocab_size of {vocab_size}",
            "compare tokenizer.json with the published file",
        )
    return ids


def _control_tokens(tokenizer: Tokenizer, checkpoint: Path) -> dict[str, int]:
    """Return the special tokens that structure a prompt: named ones, and those of the chat template and config.json.

    The other special tokens mark content, for example `<box>`: they may be part of a prompt or an answer.
    """
    config, template = read_json(checkpoint / "config.json"), read_chat_template(checkpoint) or ""
    named = {*named_special_tokens(read_tokenizer_config(checkpoint)).values(), *UNNAMED_CONTROL_TOKENS}
    inner = (config.get(key) for key in ("text_config", "thinker_config"))
    parts = (config, *(one for one in inner if isinstance(one, dict)))
    ids = {*end_token_ids(checkpoint), *(number for part in parts for number in _token_ids_in(part))}
    special = ((number, one.content) for number, one in tokenizer.get_added_tokens_decoder().items() if one.special)
    return {text: number for number, text in special if text in named or text in template or number in ids}


def _token_ids_in(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the values of keys such as `image_token_id`, `slice_start_id` and `audio_token_index`."""
    return (value for key, value in config.items() if key.endswith(("_id", "_index")) and type(value) is int)


def check_special_tokens(label: str, control_tokens: Mapping[str, int], *texts: str) -> None:
    """Check that no text of a sample or chat contains a control token.

    Raises:
        DatasetError: a text contains one.
    """
    for text in texts:
        if found := [token for token in control_tokens if token in text]:
            raise DatasetError(
                f"{label} contains the special token `{found[0]}`, which structures prompts",
                "remove the token; images and audio are given beside the text",
            )


def check_tokens(label: str, tokens: NDArray[np.int64], vocab_size: int, context_length: int) -> None:
    """Check token ids against the vocabulary size, and their number against the context length.

    Raises:
        CheckpointError: a token id is not below `vocab_size`.
        SampleTooLongError: there are more tokens than `context_length`.
    """
    if tokens.max() >= vocab_size:
        raise CheckpointError(
            f"{label}: token id {tokens.max()} is not below the vocab_size of {vocab_size}",
            "tokenizer.json and config.json belong to different models",
        )
    if len(tokens) > context_length:
        raise SampleTooLongError(label, len(tokens), context_length)
