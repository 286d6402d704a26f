"""The settings of a recipe for audio, speech output and the embedding, applied to a checkpoint."""

from collections.abc import Iterator

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import RecipeError
from mcpmq.families.family import TensorSpec
from mcpmq.recipe import Recipe

SPEECH = "speech"  # component of the weights that synthesize speech


def _check_settings(checkpoint: Checkpoint, recipe: Recipe) -> None:
    audio, name = checkpoint.architecture.audio, checkpoint.family.name
    if recipe.gguf_audio != "none" and (audio is None or audio.kind != "minicpm-o"):
        raise RecipeError(
            f'recipe `{recipe.name}` has `gguf_audio = "{recipe.gguf_audio}"`, which is for the audio encoder of'
            f" MiniCPM-o; the checkpoint is {name}",
            "leave it out: other audio encoders have their own projector in llama.cpp",
        )
    if recipe.onnx_embedding == "shared" and not checkpoint.architecture.language.tied_embeddings:
        message = f'recipe `{recipe.name}` has `onnx_embedding = "shared"`, and the checkpoint has a head of its own'
        raise RecipeError(message, "leave it out: no array is in two graphs")
    if recipe.drops_speech and all(component != SPEECH for component, _ in checkpoint.family.passthrough):
        message = f'recipe `{recipe.name}` has `speech_output = "drop"`, and {name} has no speech output'
        raise RecipeError(message, "leave it out")


def kept_specs(checkpoint: Checkpoint, recipe: Recipe) -> list[TensorSpec]:
    """Return the tensors of a checkpoint that its quantized model has.

    Raises:
        RecipeError: the model has no speech output that could be left out, no audio encoder of MiniCPM-o or no tied
            embedding, and the recipe has a setting for it.
    """
    _check_settings(checkpoint, recipe)
    return [spec for spec in checkpoint.specs if spec.component != SPEECH or not recipe.drops_speech]


def speech_notes(checkpoint: Checkpoint, recipe: Recipe) -> Iterator[str]:
    """Yield a note with the number and size of the tensors of speech output that are left out."""
    dropped = [spec for spec in checkpoint.specs if spec.component == SPEECH] if recipe.drops_speech else []
    if dropped:
        nbytes = sum(checkpoint.entries[spec.name].nbytes for spec in dropped)
        yield f"without speech output: {len(dropped):,} tensors of {nbytes:,} bytes are left out"
