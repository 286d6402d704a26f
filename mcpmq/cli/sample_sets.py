"""Open the sample sets of commands."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help imports no library
    from mcpmq.dataset import SampleSet


def open_set(path: Path, samples: int | None = None, seed: int = 0) -> "SampleSet":
    """Open a set, or a draw of it, without its invalid records, which are counted and named on stderr.

    Raises:
        DatasetError: the set has no valid record.
        MissingExtra: the records are in Parquet files, and pyarrow is not installed.
    """
    from mcpmq import ui
    from mcpmq.dataset import ReadOptions, SampleSet

    opened = SampleSet.open(path, ReadOptions(samples, seed, skip_invalid=True))
    if warning := opened.left_out_warning:
        ui.print_notice(warning)
    return opened


def open_optional_set(path: Path | None, samples: int | None = None, seed: int = 0) -> "SampleSet | None":
    """Open a set as `open_set`, or return None if none is given."""
    return open_set(path, samples, seed) if path else None
