"""Compare drawn conversations of every tiny family with transformers, and write the result.

python -m benchmarks.conversations [--count 200] [--seed 1]            texts and images
python -m benchmarks.conversations --videos [--count 200] [--seed 1]   also videos, at least one in each
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks.commands import provenance, write_result
from benchmarks.conversations.compare import compare
from mcpmq.families import family_named
from tests.tiny_families import EXPERT_FAMILIES, TINY_FAMILIES


def main() -> None:
    """Compare all families with vision; exit with 1 if a conversation differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--videos", action="store_true", help="give every conversation a video")
    options = parser.parse_args()
    families = {}
    for family in (*TINY_FAMILIES, *EXPERT_FAMILIES):
        known = family_named(family.name)
        if not known.has_vision or (options.videos and not known.prompt_format.supports_video):
            continue
        start, name = perf_counter(), family.name + family.variant
        with TemporaryDirectory() as folder:
            checkpoint = family.build(Path(folder) / "tiny")
            found = compare(checkpoint, Path(folder), options.count, options.seed, with_videos=options.videos)
        families[name] = asdict(found)
        print(name, asdict(found), f"{perf_counter() - start:.0f} s", flush=True)
    record = provenance("benchmarks.conversations", "transformers", "tokenizers", "numpy", "pillow")
    settings = {"count": options.count, "seed": options.seed, "families": families}
    write_result("conversations-videos" if options.videos else "conversations", {**record, **settings})
    raise SystemExit(any(one["different"] for one in families.values()))


if __name__ == "__main__":
    main()
