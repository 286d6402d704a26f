"""The tokens that a [vocabulary] table of a recipe keeps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mcpmq.compression_tables import VocabularyTable
from mcpmq.errors import RecipeError
from mcpmq.vocabulary.byte_level_bpe import BYTES, ByteLevelBpe, token_bytes
from mcpmq.vocabulary.letters import Letters

ROW_MULTIPLE = 32  # of the rows of a trimmed embedding and head: kernels of engines need multiples of 8 to 32


@dataclass(slots=True)
class _Selection:
    """Kept tokens with all tokens that they are merged from, up to a number."""

    bpe: ByteLevelBpe
    limit: int
    kept: set[str] = field(default_factory=set)

    def add(self, token: str) -> None:
        """Keep a token, if it and the tokens that it is merged from are within the limit."""
        if token not in self.kept:
            added = self.bpe.closure([token], self.kept)
            if len(self.kept) + len(added) <= self.limit:
                self.kept |= added


def select_tokens(
    bpe: ByteLevelBpe, table: VocabularyTable, required: Iterable[int], counts: Mapping[int, int]
) -> NDArray[np.int64]:
    """Return the ids that remain, ascending: int64 [kept].

    All bytes, added tokens and `required` ids remain; then the tokens of the corpus, from the most frequent one, and
    those of the languages and scripts, from the lowest id, up to `max_tokens`. More tokens fill the number of rows up
    to a multiple of `ROW_MULTIPLE`.

    Raises:
        RecipeError: a language is not known, `max_tokens` is too small, or no token would be removed.
    """
    texts = {number: text for text, number in bpe.all_ids.items()}
    selection = _Selection(bpe, len(texts), bpe.closure((*BYTES, *bpe.added, *(texts[one] for one in required))))
    selection.limit = _limit(table, len(selection.kept), len(texts))
    frequent = [number for number, count in counts.items() if count >= table.min_count]
    for number in sorted(frequent, key=lambda one: (-counts[one], one)):
        selection.add(texts[number])
    for token in _written(bpe, table):
        selection.add(token)
    selection.limit = min(selection.limit, -(-len(selection.kept) // ROW_MULTIPLE) * ROW_MULTIPLE)
    for number in sorted(texts):
        if len(selection.kept) == selection.limit:
            break
        selection.add(texts[number])
    if len(selection.kept) == len(texts):
        raise RecipeError(f"[vocabulary] keeps all {len(texts):,} tokens", "keep fewer languages, or set `max_tokens`")
    return np.array(sorted(bpe.all_ids[token] for token in selection.kept), np.int64)


def _limit(table: VocabularyTable, required: int, total: int) -> int:
    """Return the maximum number of tokens.

    Raises:
        RecipeError: it is smaller than the number of required tokens.
    """
    if table.max_tokens is None:
        return total
    limit = table.max_tokens // ROW_MULTIPLE * ROW_MULTIPLE
    if limit < required:
        raise RecipeError(
            f"`max_tokens` in [vocabulary] is {table.max_tokens:,}, rounded down to a multiple of {ROW_MULTIPLE}, and"
            f" the bytes, added tokens and tokens of prompts are {required:,}",
            f"allow at least {-(-required // ROW_MULTIPLE) * ROW_MULTIPLE:,}",
        )
    return min(limit, total)


def _written(bpe: ByteLevelBpe, table: VocabularyTable) -> list[str]:
    """Return the tokens that texts in the languages and scripts can have, by id; all if only a number is given."""
    ordered = sorted(bpe.ids, key=bpe.ids.__getitem__)
    if not (table.languages or table.scripts):
        return [] if table.corpus else ordered
    letters = Letters.of(table.languages, table.scripts)
    return [token for token in ordered if (part := token_bytes(token)) is not None and letters.can_contain(part)]
