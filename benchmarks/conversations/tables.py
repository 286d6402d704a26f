"""Table of benchmarks/README.md about the inputs of conversations."""

from benchmarks.markdown import load_result, table, with_provenance

HEADINGS = ("family", "conversations", "turns", "images", "videos", "audios", "tokens", "different")


def conversations_table(name: str = "conversations") -> str:
    """Return the number of drawn conversations of every family, and of those that differ from transformers."""
    result = load_result(name)
    rows = [
        [name, *(f"{one.get(key, 0):,}" for key in HEADINGS[1:-1]), str(len(one["different"]))]
        for name, one in result["families"].items()
    ]
    return with_provenance(table(HEADINGS, rows, text_columns=1), result)
