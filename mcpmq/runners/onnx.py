"""ONNX Runtime: the three graphs of an `onnx` artifact, loaded as an application loads them; no torch."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError, EngineError, MissingExtra
from mcpmq.families.family import Inputs
from mcpmq.families.minicpmv_inputs import Slicing, packed_pixels, stretched, target_sizes
from mcpmq.json_file import read_json
from mcpmq.runners.runner import Judge, Logits, Phases, Result, phases_of

ROUNDED = "ONNX Runtime rounds activations to 8 bits where they meet integer weights, as it does on phones"
SIGHT, READING = "vision+projector", ("embedding", "language")  # components of the artifact
STRETCHED = "the vision graph takes slices of one size: others were stretched to it"
Floats = NDArray[np.float32]
Cache = Mapping[str, Floats]  # the decoder's past_key_values, by the name of the input


@dataclass(frozen=True, slots=True)
class OnnxRunner:
    """Three sessions. Only the logits that are asked for are computed, and one slice is seen at a time."""

    vision: Any
    embedding: Any
    decoder: Any
    slicing: Slicing
    notes: tuple[str, ...] = ()
    only_size: tuple[int, int] | None = None  # of slices, rows and columns of patches, where the vision graph is static
    recalled: Iterator[Floats] | None = None  # what was seen before, slice by slice

    def run(self, samples: Sequence[Inputs], judge: Judge[Result]) -> Iterator[Result]:
        """For every sample in order, what `judge` makes of the logits of its answer."""
        for sample in samples:
            yield judge(sample, self._logits(sample))

    def _logits(self, sample: Inputs) -> Iterator[Logits]:
        answer = len(sample.tokens) - sample.answer_start
        embeddings = self.embed(sample, len(sample.tokens) - 1)
        logits, cache = self.decode(embeddings, self.empty_cache(), answer)
        if not np.isfinite(logits).all():
            where = _first_not_finite(embeddings, cache)
            raise EngineError(
                f"sample `{sample.id}`: values that are not finite first come out of {where}",
                "its weights or activations overflow in this engine",
            )
        yield from logits

    def phases(self, sample: Inputs) -> Phases:
        """Take the time of encoding the images, reading the prompt, and reading the answer token by token."""
        start = time.perf_counter()
        embeddings = self.embed(sample, sample.answer_start)
        encoded = time.perf_counter()
        _, cache = self.decode(embeddings, self.empty_cache(), 1)
        read = time.perf_counter()
        for token in sample.tokens[sample.answer_start :]:
            _, cache = self.decode(self.lookup(np.array([token], np.int64)), cache, 1)
        return phases_of(sample, encoded - start, read - encoded, time.perf_counter() - read)

    def generate(self, sample: Inputs, count: int) -> list[int]:
        """The `count` likeliest next tokens after the prompt, one by one, whatever they are; answers are not read."""
        logits, cache = self.decode(self.embed(sample, sample.answer_start), self.empty_cache(), 1)
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < count:
            embedded = self.lookup(np.array([tokens[-1]], np.int64))
            logits, cache = self.decode(embedded, cache, 1)
            tokens.append(int(logits[-1].argmax()))
        return tokens

    def embed(self, sample: Inputs, length: int) -> Floats:
        """The first `length` tokens of a sample, images in their places: [length, hidden]."""
        embeddings = self.lookup(sample.tokens[:length])
        for part, (start, end) in zip(sample.slices, sample.image_bounds.tolist(), strict=True):
            embeddings[start:end] = self.see(part)
        return embeddings

    def lookup(self, tokens: NDArray[np.int64]) -> Floats:
        """int64 [length] -> [length, hidden]."""
        embeddings: Floats = self.embedding.run(["inputs_embeds"], {"input_ids": tokens[None]})[0][0]
        return embeddings

    def see(self, part: NDArray[np.uint8]) -> Floats:
        """One slice uint8 [height, width, 3] -> [queries, hidden]."""
        if self.recalled is not None:
            return next(self.recalled)
        settings = self.slicing
        if self.only_size:
            part = stretched(part, self.only_size, settings.patch_size)
        pixels = packed_pixels(part, settings.norm_mean, settings.norm_std, settings.patch_size)
        inputs: dict[str, NDArray[Any]] = {"pixel_values": pixels[None]}
        if not self.only_size:
            inputs["tgt_sizes"] = target_sizes([part], settings.patch_size)
        features: Floats = self.vision.run(["image_features"], inputs)[0]
        return features

    def decode(self, embeddings: Floats, cache: Cache, kept: int) -> tuple[Floats, Cache]:
        """Tokens [length, hidden] after those in the cache -> logits of the last `kept` (0: all), the grown cache."""
        past, length = next(iter(cache.values())).shape[2], len(embeddings)
        inputs = {
            "inputs_embeds": embeddings[None],
            "attention_mask": np.ones((1, past + length), np.int64),
            "position_ids": np.arange(past, past + length, dtype=np.int64)[None],
            "num_logits_to_keep": np.array(kept, np.int64),
        }
        names = [output.name for output in self.decoder.get_outputs()]
        outputs = dict(zip(names, self.decoder.run(names, {**inputs, **cache}), strict=True))
        logits: Floats = outputs.pop("logits")[0]
        return logits, {name.replace("present", "past_key_values"): value for name, value in outputs.items()}

    def empty_cache(self) -> Cache:
        """A cache of no tokens."""
        pasts = [one for one in self.decoder.get_inputs() if one.name.startswith("past_key_values.")]
        return {one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32) for one in pasts}


def _first_not_finite(embeddings: Floats, cache: Cache) -> str:
    """What a layer gives shows in the keys and values of the next one."""
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
        ArtifactError: the folder holds another kind of artifact.
        EngineError: the runtime refuses a graph.
    """
    vision, embedding, decoder = _sessions(path, threads, (SIGHT, *READING))
    slicing = Slicing.model_validate(read_json(path / "preprocessor_config.json"))
    if only_size := _only_size(vision):
        return OnnxRunner(vision, embedding, decoder, slicing, (*_notes(vision, decoder), STRETCHED), only_size)
    return OnnxRunner(vision, embedding, decoder, slicing, _notes(vision, decoder))


def see_all(path: Path, threads: int, samples: Sequence[Inputs]) -> list[Floats]:
    """The embeddings [queries, hidden] of every slice in order, with no other graph than that of vision in memory."""
    [vision] = _sessions(path, threads, (SIGHT,))
    slicing = Slicing.model_validate(read_json(path / "preprocessor_config.json"))
    sight = OnnxRunner(vision, None, None, slicing, only_size=_only_size(vision))
    return [sight.see(part) for sample in samples for part in sample.slices]


def open_reader(path: Path, threads: int, seen: Sequence[Floats]) -> OnnxRunner:
    """The other two graphs; they recall what was seen."""
    embedding, decoder = _sessions(path, threads, READING)
    slicing = Slicing.model_validate(read_json(path / "preprocessor_config.json"))
    return OnnxRunner(None, embedding, decoder, slicing, _notes(decoder), recalled=iter(seen))


def _sessions(path: Path, threads: int, components: Sequence[str]) -> list[Any]:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "onnxruntime") from error
    artifact = Artifact.open(path)
    if artifact.manifest.kind != "onnx":
        raise ArtifactError(f"`{path}` is a {artifact.manifest.kind} artifact", "export it with `--format onnx`")
    return [_session(onnxruntime, artifact, component, threads) for component in components]


def _only_size(vision: Any) -> tuple[int, int] | None:
    """Rows and columns of patches of the only slice that a static graph takes."""
    if any(one.name == "tgt_sizes" for one in vision.get_inputs()):
        return None
    rows, columns = _properties(vision)["slice_patches"].split("x")
    return int(rows), int(columns)


def _notes(*sessions: Any) -> tuple[str, ...]:
    rounded = any(_properties(session).get("activations") == "int8" for session in sessions)
    return (ROUNDED,) if rounded else ()


def _properties(session: Any) -> dict[str, str]:
    found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return found


def _session(runtime: ModuleType, artifact: Artifact, component: str, threads: int) -> Any:
    graphs = [file for file in artifact.files_of(component) if file.suffix == ".onnx"]
    if len(graphs) != 1:
        raise ArtifactError(f"`{artifact.path}` has {len(graphs)} graphs of `{component}`, not one")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Three sessions have a pool of threads each: two would spin while one works.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(str(graphs[0]), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors share no class of their own
        raise EngineError(
            f"ONNX Runtime {runtime.__version__} cannot load `{graphs[0]}`: {error}", "export it again"
        ) from error
