"""Tokenizer, special tokens and chat template in GGUF metadata, from all files of a checkpoint."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from gguf import GGUFWriter, TokenType

from mcpmq.families.chat_template import read_chat_template
from mcpmq.families.qwen2vl import QWEN2_VL
from mcpmq.formats.gguf.tokenizer import add_tokenizer
from tests.checkpoint_tools import build_family, edit_json

NEW = {"content": "<|new|>", "special": True}


class Recorder:
    """Records the calls of a GGUFWriter."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        return lambda value: self.values.update({name.removeprefix("add_"): value})


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


def metadata(folder: Path, vocab_size: int = 320) -> Mapping[str, Any]:
    """Return the metadata of a tokenizer by the name of the key."""
    recorder = Recorder()
    add_tokenizer(cast(GGUFWriter, recorder), folder, vocab_size, QWEN2_VL.prompt_format, ("<|vision_start|>",))
    return recorder.values


def test_the_beginning_of_sequence_follows_the_tokenizer_config(folder: Path) -> None:
    """llama.cpp inserts it if `add_bos_token` is set."""
    assert metadata(folder)["add_bos_token"] is False
    edit_json(folder / "tokenizer_config.json", add_bos_token=True)
    assert metadata(folder)["add_bos_token"] is True


def test_an_end_of_sequence_is_written_wherever_it_is_defined(folder: Path) -> None:
    """llama.cpp would stop at token 11 without one; the end of a turn is the last resort."""
    assert metadata(folder)["eos_token_id"] == 315
    edit_json(folder / "tokenizer_config.json", "eos_token")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [317, 313]}))
    assert metadata(folder)["eos_token_id"] == 317
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_start|>"}}))
    assert metadata(folder)["eos_token_id"] == 314
    for name in ("special_tokens_map.json", "generation_config.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert metadata(folder)["eos_token_id"] == 315


@pytest.mark.parametrize("place", ["chat_template.json", "chat_template.jinja", "processor_config.json", "list"])
def test_the_chat_template_is_that_of_the_prompts(place: str, folder: Path) -> None:
    """The file has the template with which samples are encoded, wherever the checkpoint has it."""
    expected = metadata(folder)["chat_template"]
    template = edit_json(folder / "tokenizer_config.json", "chat_template")["chat_template"]
    content = {"chat_template": template}
    if place == "list":
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
        edit_json(folder / "tokenizer_config.json", chat_template=named)
    else:
        (folder / place).write_text(template if place.endswith("jinja") else json.dumps(content))

    assert metadata(folder)["chat_template"] == expected == read_chat_template(folder) == template


def test_tokens_of_other_files_have_their_rows(folder: Path) -> None:
    """A token that only `added_tokens_decoder` defines is a control token, not an unused row."""
    edit_json(folder / "tokenizer_config.json", tokenizer_class="A", added_tokens_decoder={"320": NEW})

    written = metadata(folder, 322)

    assert written["token_list"][319:] == ["<|video_pad|>", "<|new|>", "[PAD321]"]
    assert written["token_types"][320:] == [TokenType.CONTROL, TokenType.UNUSED]
