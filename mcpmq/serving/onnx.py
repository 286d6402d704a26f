"""Chat engine of ONNX artifacts: ONNX Runtime, with the text files of the artifact."""

from mcpmq.artifact import Artifact
from mcpmq.evaluate.measure import engine_name
from mcpmq.families import family_named
from mcpmq.runners.onnx import open_runner
from mcpmq.serving.decoding import DecodingEngine, decoding_engine


def open_engine(artifact: Artifact, threads: int, context: int) -> DecodingEngine:
    """Load an artifact of the `onnx` format.

    Raises:
        ArtifactError: a graph is missing.
        CheckpointError: a text file is missing or invalid.
        EngineError: ONNX Runtime rejects a graph.
        MissingExtra: onnxruntime is not installed.
    """
    runner = open_runner(artifact.path, threads)
    return decoding_engine(
        engine_name("onnx"),
        family_named(artifact.manifest.family),
        artifact.path,
        lambda prompt, _: runner.predict(prompt),
        context=context,
        notes=runner.notes,
    )
