"""Measure the reference checkpoint on the heldout set: dependence on images, and loss by scheme with round-to-nearest.

    python -m calibration.reference.sensitivity

Prints the two tables of the README in this folder. Only the linear layers of the language model are quantized.
"""

import ctypes
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from calibration.reference.batched_vision import batched_features
from calibration.reference.checkpoint_files import build_model, model_config, read_weights
from calibration.reference.samples import IGNORED_LABEL, Example, collate, image_example
from calibration.reference.tokenizer import UNKNOWN, token_id
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration

HERE = Path(__file__).parent
HELDOUT = HERE.parent / "heldout"
BATCH_SIZE = 12
RoundingFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EncodedBatch:
    """Samples of one batch: embeddings [samples, tokens, hidden], labels, and one skill per sample."""

    embeddings: Tensor
    labels: Tensor
    skills: tuple[str, ...]


@dataclass(frozen=True)
class AnswerLogprobs:
    """Log-probabilities [tokens, vocabulary] of all answer tokens, and the id, skill and sample of each token."""

    logprobs: Tensor
    truth: Tensor
    skills: tuple[str, ...]
    samples: tuple[int, ...]

    def losses(self) -> Tensor:
        """Return the cross-entropy of every answer token, float64."""
        return -self.logprobs.gather(1, self.truth[:, None])[:, 0]

    def perplexity(self, kinds: set[str] | None = None) -> float:
        """Return the perplexity of all answer tokens or of those of some skills."""
        kept = torch.tensor([kinds is None or kind in kinds for kind in self.skills])
        return math.exp(self.losses()[kept].mean())

    def exact_match(self, kinds: set[str]) -> float:
        """Return the share of samples of some skills that greedy decoding answers exactly."""
        right: dict[int, bool] = {}
        hits = (self.logprobs.argmax(dim=-1) == self.truth).tolist()
        for hit, kind, sample in zip(hits, self.skills, self.samples, strict=True):
            if kind in kinds:
                right[sample] = right.get(sample, True) and hit
        return sum(right.values()) / len(right)


def load_heldout() -> list[tuple[str, Example]]:
    """Return skill and conversation of every heldout sample with a square image or none."""
    found = []
    for line in (HELDOUT / "manifest.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if "nonsquare" in sample["tags"]:
            continue
        prompt, answer = sample["prompt"], sample["answer"]
        if "image" in sample:
            image = Image.open(HELDOUT / sample["image"]).convert("RGB")
            found.append((sample["tags"][1], image_example(image, prompt, answer)))
        else:
            found.append((sample["tags"][1], Example(prompt, answer)))
    return found


def batches(samples: list[tuple[str, Example]]) -> Iterator[list[tuple[str, Example]]]:
    """Yield samples with the same number of slices in batches."""
    for slices in (1, 5, 0):
        alike = [sample for sample in samples if len(sample[1].slices) == slices]
        for start in range(0, len(alike), BATCH_SIZE):
            yield alike[start : start + BATCH_SIZE]


def encode_batches(
    model: MiniCPMVForConditionalGeneration, tokenizer: Tokenizer, samples: list[tuple[str, Example]], swap_images: bool
) -> list[EncodedBatch]:
    """Compute the inputs of the language model; `swap_images` gives every question the image of another one."""
    groups = []
    for part in batches(samples):
        batch = collate(tokenizer, [example for _, example in part])
        embeddings = model.get_input_embeddings()(batch.ids)
        if batch.pixels is not None:
            features = batched_features(model, batch.pixels).unflatten(0, (len(part), -1))
            features = features.roll(1, 0) if swap_images else features
            place = batch.ids.eq(token_id(tokenizer, UNKNOWN))[..., None].expand_as(embeddings)
            embeddings = embeddings.masked_scatter(place, features)
        groups.append(EncodedBatch(embeddings, batch.labels, tuple(kind for kind, _ in part)))
    return groups


def run_language_model(model: MiniCPMVForConditionalGeneration, groups: list[EncodedBatch]) -> AnswerLogprobs:
    """Run the language model on all batches."""
    found, truth, kinds = [], [], []
    samples: list[int] = []
    for group in groups:
        labels = group.labels[:, 1:]
        learned = labels != IGNORED_LABEL
        states = model.llm.model(inputs_embeds=group.embeddings, use_cache=False).last_hidden_state
        logits = model.llm.lm_head(states[:, :-1][learned])
        found.append(torch.log_softmax(logits.double(), dim=-1))
        truth.append(labels[learned])
        counts = learned.sum(dim=1).tolist()
        first = samples[-1] + 1 if samples else 0
        samples += [first + number for number, count in enumerate(counts) for _ in range(count)]
        kinds += [kind for kind, count in zip(group.skills, counts, strict=True) for _ in range(count)]
    return AnswerLogprobs(torch.cat(found), torch.cat(truth), tuple(kinds), tuple(samples))


def integer_rounding(bits: int, group_size: int) -> RoundingFunction:
    """Return round-to-nearest on 2^bits levels; the fp16 scale is the largest value of a group over the lowest code."""
    lowest = -(2 ** (bits - 1))

    def round_groups(weight: Tensor) -> Tensor:
        """Round a weight whose columns are a multiple of the group size."""
        groups = weight.reshape(-1, group_size)
        largest = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
        scale = (largest / lowest).half().float()
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        codes = (groups / scale).round().clamp(lowest, -lowest - 1)
        return (codes * scale).view_as(weight)

    return round_groups


def ggml_rounding(kind: gguf.GGMLQuantizationType) -> RoundingFunction:
    """Return the quantization of ggml without an importance matrix."""
    package = importlib.util.find_spec("xllamacpp")
    if package is None or package.origin is None:
        raise ImportError("the q4_k row needs xllamacpp, which contains ggml")
    library = ctypes.CDLL(str(next(Path(package.origin).parent.glob("xllamacpp*.so"))))
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def round_blocks(weight: Tensor) -> Tensor:
        """Quantize and dequantize a weight with ggml."""
        values = numpy.ascontiguousarray(weight.numpy(), dtype=numpy.float32)
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        stored = numpy.empty((len(values), values.shape[1] // block * nbytes), numpy.uint8)
        quantize(int(kind), values.ctypes.data, stored.ctypes.data, 0, *values.shape, None)
        return torch.from_numpy(gguf.dequantize(stored, kind).reshape(values.shape))

    return round_blocks


SCHEMES: dict[str, Callable[[], RoundingFunction]] = {
    "int8-g32": lambda: integer_rounding(8, 32),
    "int4-g32": lambda: integer_rounding(4, 32),
    "int4-g128": lambda: integer_rounding(4, 128),
    "q4_k": lambda: ggml_rounding(gguf.GGMLQuantizationType.Q4_K),
}


def quantized_linears(model: MiniCPMVForConditionalGeneration) -> dict[str, torch.nn.Linear]:
    """Return all linear layers of the decoder."""
    return {name: part for name, part in model.llm.model.named_modules() if isinstance(part, torch.nn.Linear)}


def run_quantized(
    model: MiniCPMVForConditionalGeneration, groups: list[EncodedBatch], rounding: RoundingFunction
) -> AnswerLogprobs:
    """Run with quantized weights, then restore the original weights."""
    linears = quantized_linears(model)
    originals = {name: linear.weight.data for name, linear in linears.items()}
    for name, linear in linears.items():
        linear.weight.data = rounding(originals[name])
    outcome = run_language_model(model, groups)
    for name, linear in linears.items():
        linear.weight.data = originals[name]
    return outcome


def compare(original: AnswerLogprobs, rounded: AnswerLogprobs, kinds: set[str]) -> tuple[float, float, float, float]:
    """Return perplexity change in percent, half of its 95 % interval, mean KL divergence, and top-1 agreement."""
    kept = torch.tensor([kind in kinds for kind in original.skills])
    before, after = original.logprobs[kept], rounded.logprobs[kept]
    divergence = (before.exp() * (before - after)).sum(dim=-1).mean()
    agreement = (before.argmax(dim=-1) == after.argmax(dim=-1)).double().mean()
    differences = (rounded.losses() - original.losses())[kept]
    change = 100 * math.expm1(differences.mean())
    half_width = 1.96 * 100 * math.exp(differences.mean()) * float(differences.std()) / math.sqrt(len(differences))
    return change, half_width, float(divergence), float(agreement)


TEXT_SKILLS = {"question", "continuation"}


def image_swap_table(original: AnswerLogprobs, exchanged: AnswerLogprobs) -> list[str]:
    """Return perplexity by skill with the right image and with another one."""
    kinds = sorted(set(original.skills) - TEXT_SKILLS)
    rows = ["| answers | tokens | perplexity | images swapped | exact match |", "|---|--:|--:|--:|--:|"]
    chosen = [("**all images**", set(kinds)), *((kind, {kind}) for kind in kinds), ("**all text**", TEXT_SKILLS)]
    for title, named in [*chosen, *((kind, {kind}) for kind in sorted(TEXT_SKILLS))]:
        count = sum(kind in named for kind in original.skills)
        other = f"{exchanged.perplexity(named):.2f}" if named <= set(kinds) else ""
        right = f"{100 * original.exact_match(named):.0f} %"
        rows.append(f"| {title} | {count} | {original.perplexity(named):.3f} | {other} | {right} |")
    return rows


def sensitivity_table(
    model: MiniCPMVForConditionalGeneration, groups: list[EncodedBatch], original: AnswerLogprobs
) -> list[str]:
    """Return the loss of each scheme."""
    image_skills = set(original.skills) - TEXT_SKILLS
    rows = [
        "| RTN | image: perplexity | mean KLD | same top-1 | text: perplexity | mean KLD | same top-1 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rounding in SCHEMES.items():
        rounded = run_quantized(model, groups, rounding())
        cells = []
        for kinds in (image_skills, TEXT_SKILLS):
            change, half_width, divergence, agreement = compare(original, rounded, kinds)
            cells += [f"{change:+.2f} ± {half_width:.2f} %", f"{divergence:.4f}", f"{100 * agreement:.1f} %"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


@torch.no_grad()
def tables(directory: Path) -> str:
    """Return both tables of a checkpoint in Markdown."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = build_model(model_config(tokenizer)).eval()
    model.load_state_dict({name: weight.float() for name, weight in read_weights(directory).items()})
    samples = load_heldout()
    groups = encode_batches(model, tokenizer, samples, swap_images=False)
    original, exchanged = (
        run_language_model(model, groups),
        run_language_model(model, encode_batches(model, tokenizer, samples, swap_images=True)),
    )
    rows = [*image_swap_table(original, exchanged), "", *sensitivity_table(model, groups, original)]
    return "\n".join(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(tables(HERE))
