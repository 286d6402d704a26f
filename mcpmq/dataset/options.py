"""Options of reading a sample set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options of reading a sample set.

    Attributes:
        num_samples: number of records to draw; None for all.
        seed: selects which records are drawn.
        skip_invalid: leave out invalid records, which the set lists, instead of raising an error.
        image_folder: folder of the image files; None for the folder of the set.
        ignored_keys: keys of records of training sets that have no content.
    """

    num_samples: int | None = None
    seed: int = 0
    skip_invalid: bool = False
    image_folder: Path | None = None
    ignored_keys: tuple[str, ...] = ()

    def draw(self, count: int) -> Sequence[int]:
        """Return the indices of the records to read, in their order.

        The draw is that of the smallest hashes of seed and index, the same on every machine and in every version; a
        larger draw with the same seed contains a smaller one.
        """
        if self.num_samples is None or self.num_samples >= count:
            return range(count)
        hashes = sorted((hashlib.sha256(f"{self.seed} {index}".encode()).digest(), index) for index in range(count))
        return sorted(index for _, index in hashes[: self.num_samples])


READ_ALL = ReadOptions()
