"""The part of a vocabulary that a model keeps: the ids of the original, and the numbers of removed tokens by script."""

import hashlib
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_ROWS = 1 << 22


class KeptVocabulary(BaseModel):
    """The kept tokens of a trimmed vocabulary; a token's new id is its index among `ids`.

    The rows of the embedding and the head that have no kept token are removed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    original_size: Annotated[int, Field(gt=0, le=MAX_ROWS)]  # rows of the embedding of the original
    size: Annotated[int, Field(gt=0, le=MAX_ROWS)]
    kept: str  # one bit per row of the original, compressed by zlib, in base64
    kept_by_script: dict[str, int]  # number of tokens by the script of their letters
    removed_by_script: dict[str, int]
    corpus: dict[str, str] = {}  # SHA-256 of the texts whose tokens are kept, by name

    @classmethod
    def from_ids(
        cls,
        ids: NDArray[np.int64],
        original_size: int,
        kept_by_script: Mapping[str, int],
        removed_by_script: Mapping[str, int],
        corpus: Mapping[str, str],
    ) -> Self:
        """Return the record of ascending ids of the original."""
        bits = np.zeros(original_size, np.bool_)
        bits[ids] = True
        packed = b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()
        counts = {"kept_by_script": dict(kept_by_script), "removed_by_script": dict(removed_by_script)}
        return cls(original_size=original_size, size=len(ids), kept=packed, corpus=dict(corpus), **counts)

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        limit = (self.original_size + 7) // 8
        stream = zlib.decompressobj()
        try:
            packed = stream.decompress(b64decode(self.kept, validate=True), limit)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"`kept` is damaged: {error}") from error
        if len(packed) != limit or len(self.ids) != self.size:
            raise ValueError(f"`kept` does not have {self.size} of {self.original_size} rows")
        return self

    @property
    def ids(self) -> NDArray[np.int64]:
        """The kept ids of the original, ascending: int64 [size]."""
        packed = np.frombuffer(zlib.decompress(b64decode(self.kept)), np.uint8)
        return np.flatnonzero(np.unpackbits(packed, count=self.original_size))

    @property
    def new_ids(self) -> NDArray[np.int64]:
        """The new id of every id of the original, -1 for a removed one: int64 [original_size]."""
        numbers = np.full(self.original_size, -1, np.int64)
        numbers[self.ids] = np.arange(self.size)
        return numbers

    @property
    def sha256(self) -> str:
        """SHA-256 of the kept ids."""
        return hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest()

    @property
    def affected_scripts(self) -> list[str]:
        """The scripts that lost tokens, those with most removed tokens first."""
        return sorted(self.removed_by_script, key=lambda script: (-self.removed_by_script[script], script))

    def __str__(self) -> str:
        share = self.size / self.original_size
        return f"{self.size:,} of {self.original_size:,} tokens ({share:.1%})"
