"""Chat engine of GGUF artifacts on the tokens and image slices of the original, as evaluations run them."""

from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.evaluate.measure import engine_name
from mcpmq.families import family_named
from mcpmq.formats.kv_cache import F16_CACHE, KvCache
from mcpmq.runners.gguf import open_runner
from mcpmq.serving.decoding import DecodingEngine, decoding_engine


def open_engine(
    artifact: Artifact, source: Path, threads: int, context: int, kv_cache: KvCache | None = None
) -> DecodingEngine:
    """Load a GGUF artifact; `source` is a folder with the text files of the original.

    Raises:
        ArtifactError: the folder is not a GGUF artifact with all files.
        CheckpointError: a text file of the original is missing or invalid.
        EngineError: llama.cpp cannot load a file.
        MissingExtra: llama.cpp is not installed.
    """
    runner = open_runner(artifact.path, threads, kv_cache=str(kv_cache or F16_CACHE))
    return decoding_engine(
        engine_name("gguf"),
        family_named(artifact.manifest.family),
        source,
        runner.predict,
        context=context,
        close=runner.close,
    )
