"""Compare drawn conversations of every tiny family with transformers, and write the result.

python -m benchmarks.conversations [--count 200] [--seed 1]
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks.commands import provenance, write_result
from benchmarks.conversations.compare import compare
from tests.tiny_families import TINY_FAMILIES


def main() -> None:
    """Compare all families with vision; exit with 1 if a conversation differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    families = {}
    for family in TINY_FAMILIES:
        if "vision_config" not in family.config:
            continue
        start = perf_counter()
        with TemporaryDirectory() as folder:
            found = compare(family.build(Path(folder) / "tiny"), Path(folder), options.count, options.seed)
        families[family.name + family.variant] = asdict(found)
        print(family.name + family.variant, asdict(found), f"{perf_counter() - start:.0f} s", flush=True)
    record = provenance("benchmarks.conversations", "transformers", "tokenizers", "numpy", "pillow")
    write_result("conversations", {**record, "count": options.count, "seed": options.seed, "families": families})
    raise SystemExit(any(one["different"] for one in families.values()))


if __name__ == "__main__":
    main()
