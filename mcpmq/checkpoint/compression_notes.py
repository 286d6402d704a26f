"""Notes about the parts that a compressed checkpoint does not have."""

from collections.abc import Iterator

from mcpmq.checkpoint import Checkpoint


def compression_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a note with the numbers of kept and removed tokens of a trimmed vocabulary, of layers, and image limits."""
    if kept := checkpoint.vocabulary:
        removed = ", ".join(f"{script} {kept.removed_by_script[script]:,}" for script in kept.affected_scripts)
        yield f"vocabulary trimmed to {kept}; removed by script: {removed}"
    if checkpoint.layers:
        yield f"layers: {checkpoint.layers}"
    if checkpoint.images:
        yield f"limits of images: {checkpoint.images}"
