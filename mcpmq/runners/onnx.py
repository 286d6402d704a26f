"""Run the three graphs of an `onnx` artifact in ONNX Runtime, without torch."""

import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError, EngineError, MissingExtra
from mcpmq.families import family_named
from mcpmq.families.family import Family, VisionInputs
from mcpmq.families.inputs import Inputs
from mcpmq.families.slicing import resize_slice
from mcpmq.runners.generation import Choose, Predictions, generate, greedy
from mcpmq.runners.runner import Logits, Metric, PhaseTimings, Result, SliceEmbeddings, phase_timings

INT8_ACTIVATIONS_NOTE = (
    "ONNX Runtime rounds activations to 8 bits where they meet integer weights, as it does on phones"
)
RESIZED_SLICES_NOTE = "the vision graph accepts slices of one size; other slices were resized to it"
VISION_COMPONENT, AUDIO_COMPONENT = "vision+projector", "audio+audio_projector"  # components of the artifact
LANGUAGE_COMPONENTS = ("embedding", "language")
GRAPH_INPUT_NAMES = {"image_grid_thw": "grid_thw"}  # graph input name -> name in `VisionInputs`, where they differ
TOKEN_TYPES = "token_type_ids"  # an input of models whose image tokens attend to one another in both directions
EMPTY_CACHE_DIMENSIONS = {"batch_size": 1, "past_sequence_length": 0}
Floats = NDArray[np.float32]
KeyValueCache = Mapping[str, Floats]  # the decoder's past_key_values, by input name


@dataclass(frozen=True, slots=True)
class OnnxRunner:
    """Three inference sessions; one slice is encoded at a time, and only the requested logits are computed."""

    vision: Any  # None for a text-only model
    embedding: Any
    decoder: Any
    vision_inputs: VisionInputs
    notes: tuple[str, ...] = ()
    fixed_slice_size: tuple[int, int] | None = None  # height and width in pixels, if the vision graph is static
    precomputed: Iterator[Floats] | None = None  # embeddings of all slices, in order, then of audio
    audio: Any = None  # None for a model without an audio encoder

    def run(self, samples: Sequence[Inputs], metric: Metric[Result]) -> Iterator[Result]:
        """Yield `metric(sample, logits)` for each sample, in order."""
        for sample in samples:
            yield metric(sample, self._logits(sample))

    def _logits(self, sample: Inputs) -> Iterator[Logits]:
        length = len(sample.tokens) - 1
        embeddings, positions = self.embed(sample, length), self.vision_inputs.position_ids(sample)
        cache, done = self.empty_cache(), 0
        for start, end in sample.answer_spans:  # the logits of one answer at a time are in memory
            part = slice(done, end - 1)
            flags = sample.image_flags[part]
            logits, cache = self.decode(embeddings[part], cache, end - start, positions[..., part], flags)
            if not np.isfinite(logits).all():
                source = _first_non_finite(embeddings[: end - 1], cache)
                raise EngineError(
                    f"sample `{sample.id}`: first non-finite values in the output of {source}",
                    "its weights or activations overflow in this engine",
                )
            yield from logits
            done = end - 1

    def time_phases(self, sample: Inputs) -> PhaseTimings:
        """Time image encoding, prefill, and token-by-token decode of the answer."""
        start = time.perf_counter()
        embeddings, positions = self.embed(sample, sample.answer_start), self.vision_inputs.position_ids(sample)
        encoded = time.perf_counter()
        prompt = slice(sample.answer_start)
        _, cache = self.decode(embeddings, self.empty_cache(), 1, positions[..., prompt], sample.image_flags[prompt])
        prefilled = time.perf_counter()
        for index in range(sample.answer_start, len(sample.tokens)):
            token = slice(index, index + 1)
            _, cache = self.decode(self.embed_tokens(sample.tokens[token]), cache, 1, positions[..., token])
        return phase_timings(sample, encoded - start, prefilled - encoded, time.perf_counter() - prefilled)

    def generate(
        self, sample: Inputs, max_tokens: int, choose: Choose = greedy, stop: Collection[int] = ()
    ) -> Generator[int, None, None]:
        """Yield at most `max_tokens` tokens after the prompt; a token of `stop` ends the answer."""
        return generate(self.predict(sample), max_tokens, choose, stop)

    def predict(self, sample: Inputs) -> Predictions:
        """Yield the logits after the prompt, then those after every token that is sent."""
        prompt = slice(sample.answer_start)
        positions, embeddings = self.vision_inputs.position_ids(sample)[..., prompt], self.embed(sample, prompt.stop)
        logits, cache = self.decode(embeddings, self.empty_cache(), 1, positions, sample.image_flags[prompt])
        while True:
            token = yield logits[-1]
            positions = positions[..., -1:] + 1  # a text token has the same position on all M-RoPE axes
            logits, cache = self.decode(self.embed_tokens(np.array([token], np.int64)), cache, 1, positions)

    def embed(self, sample: Inputs, length: int) -> Floats:
        """Return the embeddings [length, input size] of the first tokens of a sample, with image features inserted.

        The input size is the hidden size, plus the features that DeepStack models add to later layers.
        """
        embeddings = self.embed_tokens(sample.tokens[:length])
        for pixels, (start, end) in zip(sample.slices, sample.image_bounds.tolist(), strict=True):
            embeddings[start:end] = self.encode_slice(pixels)
        if sample.audio:
            embeddings[sample.audio_tokens] = np.concatenate([self.encode_audio(one) for one in sample.audio])
        return embeddings

    def embed_tokens(self, tokens: NDArray[np.int64]) -> Floats:
        """Convert token ids int64 [length] to embeddings [length, input size]."""
        embeddings: Floats = self.embedding.run(["inputs_embeds"], {"input_ids": tokens[None]})[0][0]
        return embeddings

    def encode_slice(self, pixels: NDArray[np.uint8]) -> Floats:
        """Convert a slice uint8 RGB [height, width, 3] to embeddings [tokens, input size]."""
        if self.precomputed is not None:
            return next(self.precomputed)
        if self.fixed_slice_size:
            pixels = resize_slice(pixels, *self.fixed_slice_size)
        arrays = self.vision_inputs.graph_inputs(pixels)
        names = [one.name for one in self.vision.get_inputs()]  # a static graph has no input for the slice size
        features: Floats = self.vision.run(None, {name: arrays[GRAPH_INPUT_NAMES.get(name, name)] for name in names})[0]
        return features

    def encode_audio(self, samples: Floats) -> Floats:
        """Convert mono samples at 16 kHz, float32 [samples], to embeddings [tokens, input size]."""
        if self.precomputed is not None:
            return next(self.precomputed)
        segments = self.vision_inputs.audio_graph_inputs(samples)
        return np.concatenate([self.audio.run(None, arrays)[0] for arrays in segments])

    def decode(
        self,
        embeddings: Floats,
        cache: KeyValueCache,
        num_logits: int,
        positions: NDArray[np.int64] | None = None,
        image_flags: NDArray[np.int64] | None = None,
    ) -> tuple[Floats, KeyValueCache]:
        """Decode embeddings [length, input size] after the cached tokens; return logits and the extended cache.

        The logits are those of the last `num_logits` tokens, or of all for 0. `positions` is int64 [length], or
        [3, length] for M-RoPE; by default the positions follow those of the cache. `image_flags`, int64 [length], is 1
        for the tokens of images, which some models attend to in both directions; by default all tokens are text.
        """
        length = len(embeddings)
        past = next(value.shape[2] for name, value in cache.items() if name.endswith(".key"))
        if positions is None:
            positions = np.arange(past, past + length, dtype=np.int64)
        inputs = {
            "inputs_embeds": embeddings[None],
            "attention_mask": np.ones((1, past + length), np.int64),
            "position_ids": positions[..., None, :],
            "num_logits_to_keep": np.array(num_logits, np.int64),
        }
        optional = [one.name for one in self.decoder.get_overridable_initializers()]
        if image_flags is not None and TOKEN_TYPES in optional:
            inputs[TOKEN_TYPES] = image_flags[None]
        names = [output.name for output in self.decoder.get_outputs()]
        outputs = dict(zip(names, self.decoder.run(names, {**inputs, **cache}), strict=True))
        logits: Floats = outputs.pop("logits")[0]
        return logits, {_past_name(name): value for name, value in outputs.items()}

    def empty_cache(self) -> KeyValueCache:
        """Return a cache without tokens: empty keys and values, and zero states of linear attention layers."""
        pasts = [one for one in self.decoder.get_inputs() if one.name.startswith("past_")]
        shapes = {one.name: [EMPTY_CACHE_DIMENSIONS.get(size, size) for size in one.shape] for one in pasts}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _past_name(present: str) -> str:
    """Convert an output name to an input name: `present_conv.3` -> `past_conv.3`, `present.3.key` ->
    `past_key_values.3.key`."""
    return present.replace("present.", "past_key_values.").replace("present_", "past_")


def _first_non_finite(embeddings: Floats, cache: KeyValueCache) -> str:
    """Locate an overflow by the cached keys and values, which are computed from the output of the layer before."""
    if not np.isfinite(embeddings).all():
        return "`vision`, `projector` or `embedding`"
    layers = sorted({int(name.split(".")[1]) for name, values in cache.items() if not np.isfinite(values).all()})
    if not layers:
        return f"`language.layers.{max(int(name.split('.')[1]) for name in cache)}` or `head`"
    return f"`language.layers.{max(layers[0] - 1, 0)}` or the keys and values of `language.layers.{layers[0]}`"


def open_runner(path: Path, threads: int) -> OnnxRunner:
    """Load an artifact of the `onnx` format.

    Raises:
        MissingExtra: onnxruntime is not installed.
        ArtifactError: the artifact has another format.
        EngineError: ONNX Runtime rejects a graph.
    """
    artifact, family = _open_artifact(path)
    vision, audio = _encoders(artifact, family, threads)
    embedding, decoder = (_session(artifact, component, threads) for component in LANGUAGE_COMPONENTS)
    notes, slice_size = _notes(*filter(None, (vision, audio, decoder))), _fixed_slice_size(vision)
    if slice_size:
        notes = (*notes, RESIZED_SLICES_NOTE)
    return OnnxRunner(vision, embedding, decoder, family.open_vision_inputs(path), notes, slice_size, audio=audio)


def _encoders(artifact: Artifact, family: Family, threads: int) -> tuple[Any, Any]:
    """Return the sessions of the vision and the audio graph; None for an encoder that the model does not have."""
    vision = _session(artifact, VISION_COMPONENT, threads) if family.has_vision else None
    return vision, _session(artifact, AUDIO_COMPONENT, threads) if artifact.component_files(AUDIO_COMPONENT) else None


def encode_images(path: Path, threads: int, samples: Sequence[Inputs]) -> SliceEmbeddings:
    """Return the embeddings of every slice and audio, in order, with only the graphs of the encoders in memory."""
    artifact, family = _open_artifact(path)
    if not family.has_vision:
        return []
    vision, audio = _encoders(artifact, family, threads)
    slice_size, inputs = _fixed_slice_size(vision), family.open_vision_inputs(path)
    runner = OnnxRunner(vision, None, None, inputs, fixed_slice_size=slice_size, audio=audio)
    embeddings: SliceEmbeddings = []
    for sample in samples:
        embeddings += map(runner.encode_slice, sample.slices)
        embeddings += map(runner.encode_audio, sample.audio)
    return embeddings


def open_language_model(path: Path, threads: int, embeddings: SliceEmbeddings) -> OnnxRunner:
    """Load the embedding and decoder graphs; the embeddings of slices are taken from `embeddings`, in order."""
    artifact, family = _open_artifact(path)
    embedding, decoder = (_session(artifact, component, threads) for component in LANGUAGE_COMPONENTS)
    vision_inputs = family.open_vision_inputs(path)
    return OnnxRunner(None, embedding, decoder, vision_inputs, _notes(decoder), precomputed=iter(embeddings))


def _open_artifact(path: Path) -> tuple[Artifact, Family]:
    artifact = Artifact.open(path)
    if artifact.manifest.kind != "onnx":
        raise ArtifactError(f"`{path}` is a {artifact.manifest.kind} artifact", "export it with `--format onnx`")
    return artifact, family_named(artifact.manifest.family)


def _fixed_slice_size(vision: Any) -> tuple[int, int] | None:
    """Return the height and width in pixels of the only slice size of a static graph."""
    if vision is None or "slice_patches" not in (properties := _properties(vision)):
        return None
    [patch] = (one.shape[2] for one in vision.get_inputs() if one.name == "pixel_values")
    rows, columns = properties["slice_patches"].split("x")
    return int(rows) * patch, int(columns) * patch


def _notes(*sessions: Any) -> tuple[str, ...]:
    int8_activations = any(_properties(session).get("activations") == "int8" for session in sessions)
    return (INT8_ACTIVATIONS_NOTE,) if int8_activations else ()


def _properties(session: Any) -> dict[str, str]:
    found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return found


def _session(artifact: Artifact, component: str, threads: int) -> Any:
    try:
        import onnxruntime as runtime
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "onnxruntime") from error
    graphs = [file for file in artifact.component_files(component) if file.suffix == ".onnx"]
    if len(graphs) != 1:
        raise ArtifactError(
            f"`{artifact.path}` has {len(graphs)} graphs of `{component}`; expected 1", "export the artifact again"
        )
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of inputs with a default value
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Each of the three sessions has a thread pool; without this, idle pools spin while another one works.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(str(graphs[0]), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base class
        raise EngineError(
            f"ONNX Runtime {runtime.__version__} cannot load `{graphs[0]}`: {error}", "export it again"
        ) from error
