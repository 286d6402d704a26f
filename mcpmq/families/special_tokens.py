"""Special tokens of a checkpoint: their names and texts from all files that define them, as transformers reads them."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from mcpmq.errors import CheckpointError
from mcpmq.system.json_file import read_optional_json

TOKENIZER_CONFIG, TOKENS_MAP, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA_KEYS = ("extra_special_tokens", "additional_special_tokens")  # the second is the name before transformers 5
SETTINGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
# A tokenizer class of transformers that takes only vocabulary and merges from tokenizer.json. It is the class of these
# model types if tokenizer_config.json has no other; where its class counts, tokenizer_config.json can select it.
REBUILT_CLASS = "Qwen2Tokenizer"
REBUILT_MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen2_5_omni", "internvl")
SELECTABLE_MODEL_TYPES = ("minicpmo", None)
# With a class of their own, also if tokenizer_config.json has another one.
ALWAYS_REBUILT_MODEL_TYPES = ("qwen3_5", "qwen3_5_moe")
HINT = "compare the tokenizer files with the published files"


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json with the tokens of special_tokens_map.json; an empty dict if neither exists.

    As in transformers, the map takes precedence if tokenizer_config.json has no `added_tokens_decoder`.

    Raises:
        CheckpointError: a file is invalid, or the tokenizer would encode special tokens as text.
    """
    config, tokens = (_read(folder / name) for name in (TOKENIZER_CONFIG, TOKENS_MAP))
    if config.get("split_special_tokens"):
        raise CheckpointError(
            f"`{TOKENIZER_CONFIG}` sets `split_special_tokens`, which is not supported", "remove the key"
        )
    return {**tokens, **config} if "added_tokens_decoder" in config else {**config, **tokens}


def named_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each named special token, for example of `eos_token`.

    Raises:
        CheckpointError: the value of a standard name is not a token.
    """
    extra = [value for key in EXTRA_KEYS if isinstance(value := config.get(key), dict)]
    named = {key: value for table in (config, *extra) for key, value in table.items() if key.endswith("_token")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    if invalid := [key for key in NAMES if key in texts and not isinstance(texts[key], str)]:
        raise CheckpointError(f"`{invalid[0]}` of `{TOKENIZER_CONFIG}` is not a token: {texts[invalid[0]]!r}", HINT)
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def add_configured_tokens(tokenizer: Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Add the tokens that only the other tokenizer files define; tokens of tokenizer.json get their settings.

    Raises:
        CheckpointError: a definition is invalid, or the files give a token different ids.
    """
    special = list(dict.fromkeys((*named_special_tokens(config).values(), *_extra_texts(config))))
    declared = _declared_tokens(folder, config, special)
    present = tokenizer.get_added_tokens_decoder()
    settings = {repr(token) for token in present.values()}
    new = [token for _, token in sorted(declared.items()) if repr(token) not in settings]
    for token in new:
        token.special = token.special or token.content in special
    texts = {token.content for token in (*present.values(), *new)}
    if is_rebuilt(folder, config):
        if "added_tokens_decoder" in config:
            _check_none_is_lost(present, declared)
        texts = set()  # the settings of special tokens are reset
    tokenizer.add_tokens([*new, *(AddedToken(text, special=True) for text in special if text not in texts)])
    for number, token in declared.items():
        if (found := tokenizer.token_to_id(token.content)) != number:
            raise CheckpointError(
                f"the tokenizer files give the token `{token.content}` the id {number}, tokenizer.json the id {found}",
                HINT,
            )


def is_rebuilt(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer class of transformers takes only the vocabulary and merges of tokenizer.json."""
    model_type = _read(folder / "config.json").get("model_type")
    if model_type in ALWAYS_REBUILT_MODEL_TYPES:
        return True
    default = REBUILT_CLASS if model_type in REBUILT_MODEL_TYPES else ""
    name = str(config.get("tokenizer_class", default)).removesuffix("Fast")
    return name == REBUILT_CLASS and model_type in (*REBUILT_MODEL_TYPES, *SELECTABLE_MODEL_TYPES)


def _check_none_is_lost(present: Mapping[int, AddedToken], declared: Mapping[int, AddedToken]) -> None:
    if lost := {token.content for token in present.values()} - {token.content for token in declared.values()}:
        raise CheckpointError(
            f"`added_tokens_decoder` of `{TOKENIZER_CONFIG}` lacks the token `{min(lost)}` of tokenizer.json, so"
            " transformers would give it another id",
            "remove `added_tokens_decoder`: tokenizer.json has the tokens",
        )


def end_token(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer, end_of_turn: str) -> str:
    """Return the end-of-sequence token.

    It is `eos_token` of the tokenizer, else the first known token among `eos_token_id` of generation_config.json and
    config.json, else `end_of_turn`.

    Raises:
        CheckpointError: a file is invalid.
    """
    if text := named_special_tokens(config).get("eos_token"):
        return text
    tokens = (tokenizer.id_to_token(number) for number in end_token_ids(folder))
    return next((token for token in tokens if token is not None), end_of_turn)


def end_token_ids(folder: Path) -> list[int]:
    """Return the ids in `eos_token_id` of generation_config.json, else of config.json; an empty list if none has it.

    Raises:
        CheckpointError: a file is invalid, or a value is not a token id.
    """
    config = _read(folder / "config.json")
    text = config.get("text_config")
    for source in (_read(folder / "generation_config.json"), config, text if isinstance(text, dict) else {}):
        if (value := source.get("eos_token_id")) is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(type(number) is int and 0 <= number < 1 << 32 for number in ids):
                raise CheckpointError(f"`eos_token_id` is not a token id: {value!r}", HINT)
            return ids
    return []


def _read(file: Path) -> dict[str, Any]:
    """Return the keys of a file that are not null; an empty dict for a missing file."""
    return {key: value for key, value in read_optional_json(file).items() if value is not None}


def _extra_texts(config: Mapping[str, Any]) -> Iterator[str]:
    for key in EXTRA_KEYS:
        extra = config.get(key)
        for token in extra if isinstance(extra, list) else ():
            if isinstance(text := token.get("content") if isinstance(token, dict) else token, str):
                yield text


def _added_token(token: Mapping[str, Any]) -> AddedToken:
    if not isinstance(token["content"], str) or not token["content"]:
        raise ValueError(f"`content` is {token['content']!r}")
    return AddedToken(token["content"], **{key: bool(token[key]) for key in SETTINGS if key in token})


def _declared_tokens(folder: Path, config: Mapping[str, Any], special: Collection[str]) -> dict[int, AddedToken]:
    """Return the tokens of `added_tokens_decoder`, or of the older added_tokens.json, by id."""
    try:
        if "added_tokens_decoder" in config:
            decoder = config["added_tokens_decoder"].items()
            return {int(number): _added_token(token) for number, token in decoder}
        older = _read(folder / ADDED_TOKENS).items()
        return {
            int(number): AddedToken(text, normalized=text not in special, special=text in special)
            for text, number in older
        }
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the added tokens of the tokenizer files are invalid: {error}", HINT) from error
