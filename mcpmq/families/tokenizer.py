"""Tokenizer of a checkpoint, and checks of its tokens."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mcpmq.errors import CheckpointError, DatasetError


def open_tokenizer(
    checkpoint: Path, required_tokens: tuple[str, ...], vocab_size: int
) -> tuple[Tokenizer, dict[str, int]]:
    """Open tokenizer.json; return the tokenizer and the ids of all special and all required tokens.

    Raises:
        CheckpointError: the file is missing or invalid, or has no id below `vocab_size` for a required token.
    """
    file = checkpoint / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"no `{file.name}` in `{file.parent}`", "download the tokenizer files")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no specific exception
        raise CheckpointError(f"`{file}` is not a valid tokenizer: {error}", "download it again") from error
    return tokenizer, _special_tokens(tokenizer, required_tokens, vocab_size)


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode text, including special tokens written in it, without adding any."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _special_tokens(tokenizer: Tokenizer, required: tuple[str, ...], vocab_size: int) -> dict[str, int]:
    ids = {token: number for token in required if (number := tokenizer.token_to_id(token)) is not None}
    if missing := [token for token in required if ids.get(token, vocab_size) >= vocab_size]:
        raise CheckpointError(
            f"the tokenizer has no token `{missing[0]}`, or its id is not below the vocab_size of {vocab_size}",
            "compare tokenizer.json with the published file",
        )
    added = tokenizer.get_added_tokens_decoder()
    return ids | {token.content: number for number, token in added.items() if token.special}


def check_special_tokens(sample_id: str, special_tokens: Mapping[str, int], *texts: str) -> None:
    """Check that no text contains a special token.

    Raises:
        DatasetError: a text contains one.
    """
    for text in texts:
        if found := [token for token in special_tokens if token in text]:
            raise DatasetError(
                f"sample `{sample_id}` contains the special token `{found[0]}`",
                "remove the token; an image is given in the field `image`, not in the prompt",
            )


def check_tokens(sample_id: str, tokens: NDArray[np.int64], vocab_size: int, context_length: int) -> None:
    """Check token ids against the vocabulary size, and their number against the context length.

    Raises:
        CheckpointError: a token id is not below `vocab_size`.
        DatasetError: the sample is longer than `context_length`.
    """
    if tokens.max() >= vocab_size:
        raise CheckpointError(
            f"sample `{sample_id}`: token id {tokens.max()} is not below the vocab_size of {vocab_size}",
            "tokenizer.json and config.json belong to different models",
        )
    if len(tokens) > context_length:
        raise DatasetError(
            f"sample `{sample_id}` has {len(tokens)} tokens, more than the context length of {context_length}",
            "shorten the sample",
        )
