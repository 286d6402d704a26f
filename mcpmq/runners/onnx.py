"""ONNX Runtime: the three graphs of an `onnx` artifact, loaded as an application loads them; no torch."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError, EngineError, MissingExtra
from mcpmq.families import family_named
from mcpmq.families.family import Family, Inputs, Pixels
from mcpmq.families.slicing import stretched
from mcpmq.runners.runner import Judge, Logits, Phases, Result, phases_of

ROUNDED = "ONNX Runtime rounds activations to 8 bits where they meet integer weights, as it does on phones"
SIGHT, READING = "vision+projector", ("embedding", "language")  # components of the artifact
STRETCHED = "the vision graph takes slices of one size: others were stretched to it"
Floats = NDArray[np.float32]
GRID = {"image_grid_thw": "grid_thw"}  # graphs of later models call it otherwise
EMPTY = {"batch_size": 1, "past_sequence_length": 0}
Cache = Mapping[str, Floats]  # the decoder's past_key_values, by the name of the input


@dataclass(frozen=True, slots=True)
class OnnxRunner:
    """Three sessions. Only the logits that are asked for are computed, and one slice is seen at a time."""

    vision: Any  # None: the model reads text only
    embedding: Any
    decoder: Any
    pixels: Pixels
    notes: tuple[str, ...] = ()
    only_size: tuple[int, int] | None = None  # of slices, height and width in pixels, where the vision graph is static
    recalled: Iterator[Floats] | None = None  # what was seen before, slice by slice

    def run(self, samples: Sequence[Inputs], judge: Judge[Result]) -> Iterator[Result]:
        """For every sample in order, what `judge` makes of the logits of its answer."""
        for sample in samples:
            yield judge(sample, self._logits(sample))

    def _logits(self, sample: Inputs) -> Iterator[Logits]:
        answer, length = len(sample.tokens) - sample.answer_start, len(sample.tokens) - 1
        embeddings, positions = self.embed(sample, length), self.pixels.positions(sample)[..., :length]
        logits, cache = self.decode(embeddings, self.empty_cache(), answer, positions)
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
        embeddings, positions = self.embed(sample, sample.answer_start), self.pixels.positions(sample)
        encoded = time.perf_counter()
        _, cache = self.decode(embeddings, self.empty_cache(), 1, positions[..., : sample.answer_start])
        read = time.perf_counter()
        for place in range(sample.answer_start, len(sample.tokens)):
            here = slice(place, place + 1)
            _, cache = self.decode(self.lookup(sample.tokens[here]), cache, 1, positions[..., here])
        return phases_of(sample, encoded - start, read - encoded, time.perf_counter() - read)

    def generate(self, sample: Inputs, count: int) -> list[int]:
        """The `count` likeliest next tokens after the prompt, one by one, whatever they are; answers are not read."""
        positions = self.pixels.positions(sample)[..., : sample.answer_start]
        logits, cache = self.decode(self.embed(sample, sample.answer_start), self.empty_cache(), 1, positions)
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < count:
            positions = positions[..., -1:] + 1  # text: the same along every axis, right behind the prompt's last
            embedded = self.lookup(np.array([tokens[-1]], np.int64))
            logits, cache = self.decode(embedded, cache, 1, positions)
            tokens.append(int(logits[-1].argmax()))
        return tokens

    def embed(self, sample: Inputs, length: int) -> Floats:
        """The first `length` tokens of a sample, images in their places: [length, width]; behind the features of a
        token those that later layers are to be given, where the model has such."""
        embeddings = self.lookup(sample.tokens[:length])
        for part, (start, end) in zip(sample.slices, sample.image_bounds.tolist(), strict=True):
            embeddings[start:end] = self.see(part)
        return embeddings

    def lookup(self, tokens: NDArray[np.int64]) -> Floats:
        """int64 [length] -> [length, width]."""
        embeddings: Floats = self.embedding.run(["inputs_embeds"], {"input_ids": tokens[None]})[0][0]
        return embeddings

    def see(self, part: NDArray[np.uint8]) -> Floats:
        """One slice uint8 [height, width, 3] -> [queries, width]."""
        if self.recalled is not None:
            return next(self.recalled)
        if self.only_size:
            part = stretched(part, *self.only_size)
        inputs, wanted = self.pixels.graph_inputs(part), self.vision.get_inputs()  # one size of slices: no sizes
        features: Floats = self.vision.run(None, {one.name: inputs[GRID.get(one.name, one.name)] for one in wanted})[0]
        return features

    def decode(
        self, embeddings: Floats, cache: Cache, kept: int, positions: NDArray[np.int64] | None = None
    ) -> tuple[Floats, Cache]:
        """Tokens [length, width] after those in the cache -> logits of the last `kept` (0: all), the grown cache.

        `positions` int64 [length] or [3, length] are where they stand; by default right behind those in the cache.
        """
        length = len(embeddings)
        past = next(value.shape[2] for name, value in cache.items() if name.endswith(".key"))
        if positions is None:
            positions = np.arange(past, past + length, dtype=np.int64)
        inputs = {
            "inputs_embeds": embeddings[None],
            "attention_mask": np.ones((1, past + length), np.int64),
            "position_ids": positions[..., None, :],
            "num_logits_to_keep": np.array(kept, np.int64),
        }
        names = [output.name for output in self.decoder.get_outputs()]
        outputs = dict(zip(names, self.decoder.run(names, {**inputs, **cache}), strict=True))
        logits: Floats = outputs.pop("logits")[0]
        return logits, {_past_name(name): value for name, value in outputs.items()}

    def empty_cache(self) -> Cache:
        """A cache of no tokens: no keys and values, and states of zeros."""
        pasts = [one for one in self.decoder.get_inputs() if one.name.startswith("past_")]
        return {one.name: np.zeros([EMPTY.get(size, size) for size in one.shape], np.float32) for one in pasts}


def _past_name(present: str) -> str:
    """`present_conv.3` -> `past_conv.3`; of keys and values `present.3.key` -> `past_key_values.3.key`."""
    return present.replace("present.", "past_key_values.").replace("present_", "past_")


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
    artifact, family = _opened(path)
    vision = _session(artifact, SIGHT, threads) if family.sees else None
    embedding, decoder = (_session(artifact, component, threads) for component in READING)
    notes, only_size = _notes(*filter(None, (vision, decoder))), _only_size(vision)
    if only_size:
        notes = (*notes, STRETCHED)
    return OnnxRunner(vision, embedding, decoder, family.pixels(path), notes, only_size)


def see_all(path: Path, threads: int, samples: Sequence[Inputs]) -> list[Floats]:
    """The embeddings [tokens, hidden] of every slice in order, with no other graph than that of vision in memory."""
    artifact, family = _opened(path)
    if not family.sees:
        return []
    vision = _session(artifact, SIGHT, threads)
    sight = OnnxRunner(vision, None, None, family.pixels(path), only_size=_only_size(vision))
    return [sight.see(part) for sample in samples for part in sample.slices]


def open_reader(path: Path, threads: int, seen: Sequence[Floats]) -> OnnxRunner:
    """The other two graphs; they recall what was seen."""
    artifact, family = _opened(path)
    embedding, decoder = (_session(artifact, component, threads) for component in READING)
    return OnnxRunner(None, embedding, decoder, family.pixels(path), _notes(decoder), recalled=iter(seen))


def _opened(path: Path) -> tuple[Artifact, Family]:
    artifact = Artifact.open(path)
    if artifact.manifest.kind != "onnx":
        raise ArtifactError(f"`{path}` is a {artifact.manifest.kind} artifact", "export it with `--format onnx`")
    return artifact, family_named(artifact.manifest.family)


def _only_size(vision: Any) -> tuple[int, int] | None:
    """Height and width in pixels of the only slice that a static graph takes."""
    if vision is None or "slice_patches" not in (told := _properties(vision)):
        return None
    [patch] = (one.shape[2] for one in vision.get_inputs() if one.name == "pixel_values")
    rows, columns = told["slice_patches"].split("x")
    return int(rows) * patch, int(columns) * patch


def _notes(*sessions: Any) -> tuple[str, ...]:
    rounded = any(_properties(session).get("activations") == "int8" for session in sessions)
    return (ROUNDED,) if rounded else ()


def _properties(session: Any) -> dict[str, str]:
    found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return found


def _session(artifact: Artifact, component: str, threads: int) -> Any:
    try:
        import onnxruntime as runtime
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "onnxruntime") from error
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
