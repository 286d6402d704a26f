"""Checks of token ids and texts."""

import json
from pathlib import Path

import numpy as np
import pytest

from mcpmq.errors import CheckpointError, DatasetError
from mcpmq.families.tokenizer import check_special_tokens, check_tokens, read_tokenizer


def test_token_ids_below_the_vocabulary_size_are_accepted() -> None:
    """The largest id is `vocab_size` - 1, the longest sample has `context_length` tokens."""
    check_tokens("sample `a`", np.array([0, 319, 7]), vocab_size=320, context_length=3)


def test_a_token_id_outside_the_vocabulary_is_rejected() -> None:
    """The error has the sample, the id and the vocabulary size."""
    with pytest.raises(CheckpointError, match=r"`sign-7`: token id 320 .* 320"):
        check_tokens("sample `sign-7`", np.array([0, 320]), vocab_size=320, context_length=2048)


def test_a_sample_with_one_token_too_many_is_rejected() -> None:
    """The error has the number of tokens and the context length."""
    with pytest.raises(DatasetError, match="4 tokens, more than the context length of 3"):
        check_tokens("sample `a`", np.zeros(4, np.int64), vocab_size=320, context_length=3)


def test_all_texts_are_checked_for_special_tokens() -> None:
    """A special token inside the last text raises an error, ordinary text does not."""
    special_tokens = {"<unk>": 3, "<image>": 4}
    check_special_tokens("sample `a`", special_tokens, "an image", "unk")

    with pytest.raises(DatasetError, match="`<image>`"):
        check_special_tokens("sample `a`", special_tokens, "an image", "see<image>")


def test_a_large_token_id_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The tokenizers library would allocate gigabytes for an id of nine digits."""
    content = json.loads((tiny_checkpoint / "tokenizer.json").read_text())
    content["added_tokens"][-1]["id"] = 2_147_483_647
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))

    with pytest.raises(CheckpointError, match="more than 8 digits"):
        read_tokenizer(tmp_path)
