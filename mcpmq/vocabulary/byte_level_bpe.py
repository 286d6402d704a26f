"""Byte-level BPE: the tokens that a smaller vocabulary must keep so that the tokens of kept text do not change.

BPE applies the applicable merge of lowest rank. A token of a text is the result of the merges of its own bytes, because
no merge crosses its ends. If all of these merges are kept, and all other kept merges are some of the original ones in
their order, the same merge has the lowest rank in every step: a text whose tokens are kept has the same tokens.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

from mcpmq.errors import CheckpointError

HINT = "remove [vocabulary] from the recipe, or `--trim-vocabulary`: only byte-level BPE can be trimmed"
UNSUPPORTED_KEYS = ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
POST_PROCESSORS = ("ByteLevel", "Sequence", "TemplateProcessing", "BertProcessing", "RobertaProcessing")
Pair = tuple[str, str]


def byte_of_character() -> dict[str, int]:
    """Return the byte of each character that byte-level tokenizers write (`bytes_to_unicode` of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTES = byte_of_character()


def token_bytes(text: str) -> bytes | None:
    """Return the bytes of a token; None if it is not one of bytes."""
    numbers = [BYTES.get(character) for character in text]
    return bytes(number for number in numbers if number is not None) if None not in numbers else None


@dataclass(frozen=True)
class ByteLevelBpe:
    """The byte-level BPE model in the content of a tokenizer.json, complete with the tokens of other files."""

    content: Mapping[str, Any]
    ids: Mapping[str, int]  # of the BPE model
    merges: tuple[Pair, ...]  # in the order of their ranks
    added: Mapping[str, int]

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Self:
        """Read the content of a tokenizer.json.

        Raises:
            CheckpointError: it is not byte-level BPE, or has a part that depends on ids and is not supported.
        """
        model = content.get("model")
        if not isinstance(model, dict) or model.get("type") != "BPE" or reason_against(content):
            found = model.get("type") if isinstance(model, dict) else None
            reason = reason_against(content) if found == "BPE" else f"its model is {found}"
            raise CheckpointError(f"the vocabulary cannot be trimmed: {reason}", HINT)
        merges = tuple(_pair(merge) for merge in model["merges"])
        added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        bpe = cls(content, model["vocab"], merges, added)
        if missing := [character for character in BYTES if character not in bpe.ids]:
            raise CheckpointError(f"the vocabulary lacks {len(missing)} of 256 bytes, so it cannot be trimmed", HINT)
        return bpe

    @cached_property
    def all_ids(self) -> dict[str, int]:
        """The ids of all tokens, those of the model and the added ones."""
        return {**self.ids, **self.added}

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        ranks: dict[Pair, int] = {}
        for rank, pair in enumerate(self.merges):
            ranks.setdefault(pair, rank)
        return ranks

    @cached_property
    def _pairs(self) -> dict[str, list[Pair]]:
        """The pairs that each token can be merged from."""
        pairs: dict[str, list[Pair]] = {}
        for left, right in self._ranks:
            pairs.setdefault(left + right, []).append((left, right))
        return pairs

    def last_merge(self, token: str) -> tuple[str, ...]:
        """Return the pair that a token is merged from in a text; () for one that no merge of its bytes makes."""
        pairs = self._pairs.get(token, [])
        if len(pairs) < 2:
            return pairs[0] if pairs else ()
        parts, last = list(token), tuple[str, ...]()
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self.merges)) for pair in pairwise(parts)]
            if (lowest := min(ranks)) == len(self.merges):
                return ()
            index = ranks.index(lowest)
            last = tuple(parts[index : index + 2])
            parts[index : index + 2] = ["".join(last)]
        return last

    def closure(self, tokens: Iterable[str], closed: Set[str] = frozenset()) -> set[str]:
        """Return tokens and all tokens that they are merged from, without those of a set that is closed itself."""
        found: set[str] = set()
        waiting = list(tokens)
        while waiting:
            if (token := waiting.pop()) not in found and token not in closed:
                found.add(token)
                waiting += self.last_merge(token)
        return found

    def trimmed(self, new_ids: Mapping[str, int]) -> dict[str, Any]:
        """Return the content of a tokenizer.json with the tokens of `new_ids` only."""
        model = self.content["model"]
        kept = {token: new_ids[token] for token in self.ids if token in new_ids}
        merges = [
            merge
            for merge, (left, right) in zip(model["merges"], self.merges, strict=True)
            if left in kept and right in kept and left + right in kept
        ]
        added = [{**token, "id": new_ids[token["content"]]} for token in self.content.get("added_tokens", [])]
        result = {**self.content, "model": {**model, "vocab": kept, "merges": merges}}
        result |= {"added_tokens": added} if "added_tokens" in self.content else {}
        if processor := self.content.get("post_processor"):
            result["post_processor"] = _renumbered_processor(processor, new_ids)
        return result


def reason_against(content: Mapping[str, Any]) -> str:
    """Return why the BPE model of a tokenizer.json cannot be trimmed; an empty string if it can."""
    model, steps = content["model"], _steps(content.get("pre_tokenizer"), "pretokenizers")
    if set_keys := [key for key in UNSUPPORTED_KEYS if model.get(key)]:
        return f"its BPE model sets `{set_keys[0]}`" + (
            ", as SentencePiece does" if set_keys[0] == "byte_fallback" else ""
        )
    if not any(step.get("type") == "ByteLevel" for step in steps):
        return "its pre-tokenizer has no byte level"
    unknown = [
        step["type"]
        for step in _steps(content.get("post_processor"), "processors")
        if step.get("type") not in POST_PROCESSORS
    ]
    return f"its post-processor `{unknown[0]}` is not supported" if unknown else ""


def _pair(merge: Any) -> Pair:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _steps(part: object, key: str) -> list[Any]:
    """Return a part of a tokenizer, or the members of a sequence of them."""
    if not isinstance(part, dict):
        return []
    return [step for one in part[key] for step in _steps(one, key)] if part.get("type") == "Sequence" else [part]


def _renumbered_processor(processor: Mapping[str, Any], new_ids: Mapping[str, int]) -> dict[str, Any]:
    """Return a post-processor with the new ids of the special tokens that it inserts."""
    match processor["type"]:
        case "Sequence":
            return {**processor, "processors": [_renumbered_processor(one, new_ids) for one in processor["processors"]]}
        case "TemplateProcessing":
            special = {
                name: {**token, "ids": [new_ids[text] for text in token["tokens"]]}
                for name, token in processor["special_tokens"].items()
            }
            return {**processor, "special_tokens": special}
        case "BertProcessing" | "RobertaProcessing":
            return {**processor, **{key: [processor[key][0], new_ids[processor[key][0]]] for key in ("sep", "cls")}}
    return dict(processor)
