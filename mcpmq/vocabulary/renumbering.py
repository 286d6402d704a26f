"""Text files of a checkpoint with the token ids of a trimmed vocabulary; the only place that renumbers ids."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mcpmq.checkpoint.text_files import to_json
from mcpmq.errors import CheckpointError
from mcpmq.families.special_tokens import ADDED_TOKENS, TOKENIZER_CONFIG
from mcpmq.system.json_file import read_json, read_text
from mcpmq.vocabulary.byte_level_bpe import ByteLevelBpe

# Keys of token ids in config.json, generation_config.json and others. Not of layers, as `insert_layer_id`.
ID_KEY = re.compile(
    r"(?:^|_)(?:token|start|end|bos|eos|pad|unk|sep|cls|mask)_ids?$|_token_index$|^(?:begin_)?suppress_tokens$"
)
TEXT_CONFIGS = ("text_config", "llm_config", "thinker_config")  # other parts have vocabularies of their own
SIZE_KEY = "vocab_size"
VOCABULARY, MERGES, TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"
ID_FILES = ("generation_config.json", "processor_config.json", "preprocessor_config.json")
NewIds = Mapping[int, int]


def token_ids_in(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the token ids of config.json or a similar file."""
    for key, value in config.items():
        if ID_KEY.search(key):
            yield from _integers(value)
        elif key in TEXT_CONFIGS and isinstance(value, Mapping):
            yield from token_ids_in(value)


def _integers(value: object) -> Iterator[int]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, list):
            yield from _integers(one)
        elif type(one) is int:
            yield one


def renumber_config(config: Mapping[str, Any], new_ids: NewIds, size: int | None = None) -> dict[str, Any]:
    """Return config.json or a similar file with new token ids, and with `size` as the size of its vocabulary.

    Other numbers, such as -1 for no token, stay.
    """
    result = dict(config)
    for key, value in config.items():
        if ID_KEY.search(key):
            result[key] = _renumber(value, new_ids)
        elif key in TEXT_CONFIGS and isinstance(value, Mapping):
            result[key] = renumber_config(value, new_ids, size)
        elif key == SIZE_KEY and size is not None:
            result[key] = size
    return result


def _renumber(value: Any, new_ids: NewIds) -> Any:
    if isinstance(value, list):
        return [_renumber(one, new_ids) for one in value]
    return new_ids.get(value, value) if type(value) is int else value


def renumbered_file(file: Path, bpe: ByteLevelBpe, new_ids: NewIds) -> str | None:
    """Return the text of a tokenizer or configuration file with new ids; None if it has none.

    Raises:
        CheckpointError: the file is not valid.
    """
    by_text = {text: new_ids[number] for text, number in bpe.all_ids.items() if number in new_ids}
    writers: dict[str, Callable[[], Any]] = {
        TOKENIZER: lambda: bpe.trimmed(by_text),
        TOKENIZER_CONFIG: lambda: _tokenizer_config(read_json(file), new_ids),
        VOCABULARY: lambda: {text: by_text[text] for text in read_json(file) if text in by_text},
        ADDED_TOKENS: lambda: {text: by_text.get(text, number) for text, number in read_json(file).items()},
        **{name: lambda: renumber_config(read_json(file), new_ids) for name in ID_FILES},
    }
    if file.name == MERGES:
        return "".join(line for line in read_text(file).splitlines(keepends=True) if _is_kept(line, by_text))
    return to_json(writers[file.name]()) if file.name in writers else None


def _tokenizer_config(config: Mapping[str, Any], new_ids: NewIds) -> dict[str, Any]:
    renumbered = renumber_config(config, new_ids)
    if isinstance(decoder := config.get("added_tokens_decoder"), Mapping):
        try:
            renumbered["added_tokens_decoder"] = {str(new_ids[int(key)]): token for key, token in decoder.items()}
        except (KeyError, ValueError) as error:
            message = f"`added_tokens_decoder` of `{TOKENIZER_CONFIG}` has a token that the tokenizer lacks: {error}"
            raise CheckpointError(message, "compare the tokenizer files with the published files") from error
    return renumbered


def _is_kept(line: str, by_text: Mapping[str, int]) -> bool:
    """Return whether a line of merges.txt is the version or a merge of kept tokens."""
    parts = line.split()
    return len(parts) != 2 or line.startswith("#version") or {*parts, "".join(parts)} <= by_text.keys()
