"""Text of docs/performance.md about the processor time of an evaluation."""

from benchmarks.markdown import load_result, with_provenance


def evaluation_cost() -> str:
    """Return the processor time of evaluations and of the engine alone."""
    result = load_result("evaluation-overhead")
    engine, found = result["engine_alone"], result["processor_seconds"]
    alone = engine["load_seconds"] + engine["run_seconds"]
    sizes = f"{engine['samples']} samples with {engine['tokens']:,} tokens"
    text = (
        f"An artifact with 1.1 G weights and {sizes}, one thread: llama.cpp alone computes the logits of all answers in"
        f" {alone:.0f} processor seconds. An evaluation takes {found['evaluation']:.0f} ({result['overhead']:+.0%}),"
        f" and {found['evaluation with the original']:.0f} if the original is not measured yet."
    )
    return with_provenance(text, result)
