"""The reference checkpoint's tokenizer: byte-level BPE in the manner of Qwen2, learned from the project's own texts."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from calibration import prose, scenes

VOCABULARY = 1024
END_OF_TEXT, TURN_START, TURN_END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
IMAGE_MARKS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END, UNKNOWN, *IMAGE_MARKS)
SYSTEM = "You are a helpful assistant."

# The split that Qwen2 checkpoints are published with: every digit by itself, a word with the space before it.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    f"{{{{- '{TURN_START}system\\n{SYSTEM}{TURN_END}\\n' -}}}}"
    "{%- endif -%}"
    "{%- for turn in messages -%}"
    f"{{{{- '{TURN_START}' + turn.role + '\\n' + turn.content + '{TURN_END}\\n' -}}}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    f"{{{{- '{TURN_START}assistant\\n' -}}}}"
    "{%- endif -%}"
)


def reading_matter(count: int) -> Iterator[str]:
    """Texts, questions and answers in the proportions that the model will meet them."""
    rng = random.Random("tokenizer")
    for _ in range(count):
        yield f"system\n{SYSTEM}"
        yield f"user\n{prose.CONTINUE}{prose.text(rng)}"
        single, sliced = scenes.single_scene(rng), scenes.sliced_scene(rng, 112)
        asked = (prose.question(rng), (single.question, single.answer), (sliced.question, sliced.answer))
        for question, answer in asked:
            yield f"user\n{question}"
            yield f"assistant\n{answer}"


def train_tokenizer(count: int = 4000) -> Tokenizer:
    """A tokenizer of exactly VOCABULARY tokens, the special ones last."""
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
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(reading_matter(count), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens instead of {VOCABULARY}: give it more to read")
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """What stands in tokenizer_config.json."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": UNKNOWN,
        "additional_special_tokens": list(IMAGE_MARKS),
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n")
