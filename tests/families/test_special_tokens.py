"""Tokens and special tokens from all tokenizer files, compared with transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mcpmq.errors import CheckpointError
from mcpmq.families.special_tokens import end_token, end_token_ids, named_special_tokens, read_tokenizer_config
from mcpmq.families.tokenizer import complete_tokenizer, open_tokenizer, read_tokenizer, token_ids
from tests.checkpoint_tools import build_family, edit_json

NEW = {
    "content": "<|new|>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}
WIDE = {**NEW, "lstrip": True, "rstrip": True}
TEXT = "cafe\u0301 What <|new|> does <|im_end|> the sign say? <|extra|> <|vision_start|>"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text files of the tiny Qwen2-VL."""
    return build_family("qwen2-vl", tmp_path_factory.mktemp("checkpoint") / "qwen2-vl")


@pytest.fixture
def folder(qwen: Path, tmp_path: Path) -> Path:
    """A copy of them, to be changed."""
    for file in qwen.glob("*.json"):
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def in_decoder(folder: Path, **changes: object) -> None:
    present = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    decoder = {str(token.pop("id")): token for token in present}
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={**decoder, "320": NEW, **changes})


def in_decoder_with_other_settings(folder: Path) -> None:
    in_decoder(folder, **{"315": {**WIDE, "content": "<|im_end|>"}})


def in_decoder_alone(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={"320": NEW}, tokenizer_class="TokenizersBackend")


def in_added_tokens(folder: Path) -> None:
    write(folder / "added_tokens.json", {"<|new|>": 320})


def in_extra_tokens(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", extra_special_tokens=["<|extra|>", "<|new|>"])


def in_additional_tokens(folder: Path) -> None:
    write(folder / "special_tokens_map.json", {"additional_special_tokens": ["<|extra|>", "<|vision_start|>"]})


def in_named_tokens(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", extra_special_tokens={"audio_token": "<|extra|>"}, bos_token="<|new|>")


def with_truncation(folder: Path) -> None:
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fill: dict[str, object] = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None}
    fill |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    edit_json(folder / "tokenizer.json", truncation=cut, padding=fill)


CHANGES = [
    in_decoder,
    in_decoder_with_other_settings,
    in_decoder_alone,
    in_added_tokens,
    in_extra_tokens,
    in_additional_tokens,
    in_named_tokens,
    with_truncation,
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_tokens_are_those_of_transformers(change: Callable[[Path], None], folder: Path) -> None:
    """A token that any of the files defines has the id of transformers, and the text splits in the same way."""
    change(folder)
    expected = AutoTokenizer.from_pretrained(folder)
    tokenizer = read_tokenizer(folder)

    assert token_ids(tokenizer, TEXT) == expected(TEXT, add_special_tokens=False).input_ids
    assert {text: tokenizer.token_to_id(text) for text in expected.get_added_vocab()} == expected.get_added_vocab()


def test_tokens_of_other_files_are_special(folder: Path) -> None:
    """They are rejected in samples as those of tokenizer.json are."""
    in_decoder(folder)

    assert open_tokenizer(folder, ("<|new|>",), 321)[1]["<|new|>"] == 320
    with pytest.raises(CheckpointError, match="vocab_size of 320"):
        open_tokenizer(folder, ("<|new|>",), 320)


def test_the_completed_tokenizer_has_all_tokens(folder: Path) -> None:
    """Readers of tokenizer.json alone get the tokens of the other files; without any it stays unchanged."""
    assert complete_tokenizer(folder) is None
    in_decoder(folder)

    completed = complete_tokenizer(folder)

    assert Tokenizer.from_str(json.dumps(completed)).token_to_id("<|new|>") == 320


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"added_tokens_decoder": {"320": NEW}}, r"lacks the token `<\|endoftext\|>` of tokenizer.json"),
        ({"tokenizer_class": "A", "added_tokens_decoder": {"400": NEW}}, "the id 400, tokenizer.json the id 320"),
        ({"added_tokens_decoder": {"first": NEW}}, "invalid"),
        ({"added_tokens_decoder": {"320": {"text": "<|new|>"}}}, "invalid"),
        ({"added_tokens_decoder": ["<|new|>"]}, "invalid"),
        ({"eos_token": ["<|im_end|>"]}, "`eos_token` .* is not a token"),
        ({"pad_token": 5}, "`pad_token` .* is not a token"),
        ({"split_special_tokens": True}, "split_special_tokens"),
    ],
)
def test_invalid_and_contradictory_definitions_are_rejected(config: dict[str, Any], message: str, folder: Path) -> None:
    """The error names the token or the key."""
    edit_json(folder / "tokenizer_config.json", **config)

    with pytest.raises(CheckpointError, match=message) as caught:
        read_tokenizer(folder)
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["qwen3.5", "qwen3-vl"])
@pytest.mark.parametrize("tokenizer_class", [None, "Qwen2TokenizerFast", "TokenizersBackend"])
def test_the_tokenizer_class_changes_what_it_changes_in_transformers(
    tokenizer_class: str | None, name: str, tmp_path: Path
) -> None:
    """The class of Qwen3.5 always normalizes texts, that of other models only if tokenizer_config.json selects it."""
    build_family(name, tmp_path)
    if tokenizer_class:
        edit_json(tmp_path / "tokenizer_config.json", tokenizer_class=tokenizer_class)

    expected = AutoTokenizer.from_pretrained(tmp_path).encode(TEXT, add_special_tokens=False)

    assert token_ids(read_tokenizer(tmp_path), TEXT) == expected


def test_tokenizer_json_is_required(folder: Path) -> None:
    """The hint is to download it or to save it with transformers."""
    (folder / "tokenizer.json").unlink()

    with pytest.raises(CheckpointError, match=r"no `tokenizer\.json`") as caught:
        read_tokenizer(folder)
    assert "AutoTokenizer" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decoder", [{}, {"added_tokens_decoder": {}}])
def test_the_map_of_special_tokens_has_the_precedence_of_transformers(decoder: dict[str, Any], folder: Path) -> None:
    """special_tokens_map.json counts if tokenizer_config.json has no `added_tokens_decoder`, else it fills gaps."""
    edit_json(folder / "tokenizer_config.json", "pad_token", **decoder)
    write(folder / "special_tokens_map.json", {"eos_token": {"content": "<|vision_end|>"}, "pad_token": "<|im_start|>"})

    named = named_special_tokens(read_tokenizer_config(folder))

    assert named["eos_token"] == AutoTokenizer.from_pretrained(folder).eos_token
    assert named["pad_token"] == "<|im_start|>"


def test_the_end_of_sequence_comes_from_any_file(folder: Path) -> None:
    """Tokenizer files precede generation_config.json, that precedes config.json, and the end of a turn is last."""

    def end() -> str:
        return end_token(folder, read_tokenizer_config(folder), read_tokenizer(folder), "<|im_start|>")

    assert end() == "<|im_end|>"
    edit_json(folder / "tokenizer_config.json", "eos_token")
    write(folder / "generation_config.json", {"eos_token_id": [9999, 317, 313]})  # the first is not in the vocabulary
    assert end() == "<|vision_end|>"
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", eos_token_id=316)
    assert end() == "<|vision_start|>"
    edit_json(folder / "config.json", "eos_token_id", text_config={"eos_token_id": 313})
    assert end() == "<|endoftext|>"
    edit_json(folder / "config.json", "text_config")
    assert end_token_ids(folder) == []
    assert end() == "<|im_start|>"
    write(folder / "special_tokens_map.json", {"eos_token": "<|image_pad|>"})
    assert end() == "<|image_pad|>"


@pytest.mark.parametrize("value", ["<|im_end|>", -1, True, [1, "2"], 1 << 40, {}])
def test_ids_that_are_not_token_ids_are_rejected(value: object, folder: Path) -> None:
    """The error has the value."""
    write(folder / "generation_config.json", {"eos_token_id": value})

    with pytest.raises(CheckpointError, match="is not a token id"):
        end_token_ids(folder)
