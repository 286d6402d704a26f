"""Chat engine of quantized models, Hugging Face artifacts and checkpoints: native classes in PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mcpmq.evaluate.measure import engine_name
from mcpmq.families.family import Family
from mcpmq.formats.format import Engine
from mcpmq.runners import dequantized, torch, transformers
from mcpmq.runners.torch import TorchRunner
from mcpmq.runners.transformers import TransformersRunner
from mcpmq.serving.decoding import DecodingEngine, decoding_engine

OPENERS: Mapping[Engine, Callable[[Path, int], TorchRunner | TransformersRunner]] = {
    "torch": torch.open_runner,
    "dequantized": dequantized.open_runner,
    "transformers": transformers.open_runner,
}


def open_engine(
    path: Path, family: Family, engine: Engine, threads: int, context: int, adapters: Sequence[Path] = ()
) -> DecodingEngine:
    """Load a folder whole: a checkpoint with its adapters, a quantized model, or an artifact of Hugging Face.

    Raises:
        McpmqError: a file is missing or damaged.
        EngineError: the weights need more memory than is available.
        MissingExtra: the package of the format is not installed.
    """
    runner = torch.open_runner(path, threads, adapters) if adapters else OPENERS[engine](path, threads)
    notes = runner.notes
    if isinstance(runner, TorchRunner):
        runner.load_all()
        notes = notes[:-1]  # without the note on weights that are read block by block
    return decoding_engine(
        engine_name(engine),
        family,
        path,
        lambda prompt, _: runner.predict(prompt),
        context=context,
        notes=notes,
    )
