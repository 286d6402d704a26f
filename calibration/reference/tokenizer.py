"""The tokenizer of the reference checkpoint: byte-level BPE with the pre-tokenizer of Qwen2."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from calibration import prose, scenes

VOCAB_SIZE = 1024
END_OF_TEXT, TURN_START, TURN_END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
IMAGE_MARKS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, UNKNOWN, *IMAGE_MARKS)
SYSTEM_PROMPT = "You are a helpful assistant."

# The pre-tokenizer pattern of published Qwen2 checkpoints: single digits, words with the preceding space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    f"{{{{- '{TURN_START}system\\n{SYSTEM_PROMPT}{TURN_END}\\n' -}}}}"
    "{%- endif -%}"
    "{%- for turn in messages -%}"
    f"{{{{- '{TURN_START}' + turn.role + '\\n' + turn.content + '{TURN_END}\\n' -}}}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    f"{{{{- '{TURN_START}assistant\\n' -}}}}"
    "{%- endif -%}"
)


def training_texts(count: int) -> Iterator[str]:
    """Yield texts, questions and answers in the proportions of the training data."""
    rng = random.Random("tokenizer")
    for _ in range(count):
        yield f"system\n{SYSTEM_PROMPT}"
        yield f"user\n{prose.CONTINUE}{prose.text(rng)}"
        single, sliced = scenes.single_scene(rng), scenes.sliced_scene(rng, 112)
        pairs = (prose.question(rng), (single.question, single.answer), (sliced.question, sliced.answer))
        for question, answer in pairs:
            yield f"user\n{question}"
            yield f"assistant\n{answer}"


def train_tokenizer(count: int = 4000) -> Tokenizer:
    """Train a tokenizer of exactly VOCAB_SIZE tokens; see `byte_level_tokenizer`."""
    return byte_level_tokenizer(training_texts(count), VOCAB_SIZE, SPECIAL_TOKENS)


def byte_level_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """Train a tokenizer of exactly this size; the special tokens are last.

    Raises:
        ValueError: the texts have too few different words.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens instead of {vocab_size}: give more texts")
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a special token.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token `{token}`")
    return found


def tokenizer_config(marks: Sequence[str] = IMAGE_MARKS) -> dict[str, object]:
    """Return tokenizer_config.json; `marks` are further special tokens."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": UNKNOWN,
        "additional_special_tokens": list(marks),
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }


def write_tokenizer(tokenizer: Tokenizer, directory: Path, marks: Sequence[str] = IMAGE_MARKS) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(marks), indent=2) + "\n")
