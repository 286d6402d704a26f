"""Byte-level BPE tokenizers for tests, trained on the texts of this repository."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mcpmq.dataset import SampleSet
from tests.tiny import SPLIT_REGEX

ROOT = Path(__file__).parent.parent.parent
MULTILINGUAL = ROOT / "calibration" / "multilingual"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def english_texts() -> list[str]:
    """Return the documents of this repository, split into paragraphs."""
    files = sorted((ROOT / "docs").glob("*.md"))[:6]
    return [part for file in files for part in file.read_text(encoding="utf-8").split("\n\n")]


def multilingual_texts() -> Iterator[tuple[str, str]]:
    """Yield language and text of all prompts and answers of the multilingual set."""
    for sample in SampleSet.open(MULTILINGUAL):
        yield from ((sample.id[:2], text) for text in (sample.prompt, sample.answer))


def train(vocab_size: int = 2500) -> Tokenizer:
    """Train a tokenizer with the pre-tokenizer of Qwen2 and special tokens after the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    others = [text for _, text in multilingual_texts() for _ in range(4)]
    tokenizer.train_from_iterator([*english_texts(), *others], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def with_all_merges(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the tokenizer as those of Llama 3: every pair that gives a token is a merge, and whole words come first.

    Its post-processor inserts a special token, whose id it has.
    """
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    pairs = {(token[:cut], token[cut:]): rank for token, rank in vocab.items() for cut in range(1, len(token))}
    kept = {pair: rank for pair, rank in pairs.items() if pair[0] in vocab and pair[1] in vocab}
    content["model"]["merges"] = sorted(map(list, kept), key=lambda pair: (kept[tuple(pair)], vocab[pair[0]]))
    content["model"]["ignore_merges"] = True
    begin = [("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
    processor = processors.TemplateProcessing(single="<|endoftext|> $A", pair="$A $B", special_tokens=begin)
    tokenizer.post_processor = processor
    content["post_processor"] = json.loads(tokenizer.to_str())["post_processor"]
    return content
