"""A checkpoint's tokenizer, and the checks that its tokens pass."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mcpmq.errors import CalibrationError, CheckpointError


def open_tokenizer(checkpoint: Path, needed: tuple[str, ...], vocabulary: int) -> tuple[Tokenizer, dict[str, int]]:
    """The tokenizer, and the ids of the needed and of all special tokens.

    Raises:
        CheckpointError: there is none, it is broken, or it lacks a needed token.
    """
    file = checkpoint / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"no `{file.name}` in `{file.parent}`", "fetch the tokenizer's files too")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"`{file}` is no tokenizer: {error}", "fetch it again") from error
    return tokenizer, _special_tokens(tokenizer, needed, vocabulary)


def _special_tokens(tokenizer: Tokenizer, needed: tuple[str, ...], vocabulary: int) -> dict[str, int]:
    ids = {token: number for token in needed if (number := tokenizer.token_to_id(token)) is not None}
    if missing := [token for token in needed if ids.get(token, vocabulary) >= vocabulary]:
        raise CheckpointError(
            f"the tokenizer lacks `{missing[0]}`, or the model has no embedding for it",
            "compare with the published one",
        )
    added = tokenizer.get_added_tokens_decoder()
    return ids | {token.content: number for number, token in added.items() if token.special}


def refuse_special(sample_id: str, special: Mapping[str, int], *texts: str) -> None:
    """Refuse a prompt or an answer that holds a special token.

    Raises:
        CalibrationError: one does.
    """
    for text in texts:
        if found := [token for token in special if token in text]:
            raise CalibrationError(
                f"sample `{sample_id}` holds the special token `{found[0]}` in its text",
                "images are named by `image`, never written into the prompt; remove the token",
            )


def check_range(sample_id: str, tokens: NDArray[np.int64], vocabulary: int, context: int) -> None:
    """Refuse tokens that the model does not have, or more of them than it can read.

    Raises:
        CheckpointError: the tokenizer is not the model's.
        CalibrationError: the sample is too long.
    """
    if tokens.max() >= vocabulary:
        raise CheckpointError(
            f"sample `{sample_id}`: the tokenizer gives token {tokens.max()}, the model has {vocabulary}",
            "tokenizer.json and config.json belong to different models",
        )
    if len(tokens) > context:
        raise CalibrationError(
            f"sample `{sample_id}` has {len(tokens)} tokens, more than the {context} of the model",
            "shorten it",
        )
