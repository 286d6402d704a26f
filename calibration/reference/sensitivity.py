"""Measures the reference checkpoint on the heldout set: how well it sees, and what rounding its weights costs.

    python -m calibration.reference.sensitivity

Prints the two tables of this directory's README. Only the linears of the language model are rounded; vision, resampler,
embedding and head stay as they are.
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

from calibration.reference.checkpoint_files import build_model, model_config, read_weights
from calibration.reference.samples import IGNORED, Example, collate, image_example
from calibration.reference.tokenizer import UNKNOWN
from calibration.reference.vision_probe import batched_features
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration

HERE = Path(__file__).parent
HELDOUT = HERE.parent / "heldout"
BATCH = 12
Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Group:
    """Samples that run together: embeddings [samples, tokens, hidden], labels, and one kind per sample."""

    embeddings: Tensor
    labels: Tensor
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Log-probabilities [tokens, vocabulary] of all answer tokens, their true ids, the kind and sample each is of."""

    log_probabilities: Tensor
    truth: Tensor
    kinds: tuple[str, ...]
    samples: tuple[int, ...]

    def losses(self) -> Tensor:
        """Cross-entropy of every answer token, float64."""
        return -self.log_probabilities.gather(1, self.truth[:, None])[:, 0]

    def perplexity(self, kinds: set[str] | None = None) -> float:
        """Over all answer tokens, or those of some kinds."""
        kept = torch.tensor([kinds is None or kind in kinds for kind in self.kinds])
        return math.exp(self.losses()[kept].mean())

    def whole_answers(self, kinds: set[str]) -> float:
        """Share of the samples of some kinds that greedy decoding answers exactly as written."""
        right: dict[int, bool] = {}
        hits = (self.log_probabilities.argmax(dim=-1) == self.truth).tolist()
        for hit, kind, sample in zip(hits, self.kinds, self.samples, strict=True):
            if kind in kinds:
                right[sample] = right.get(sample, True) and hit
        return sum(right.values()) / len(right)


def heldout() -> list[tuple[str, Example]]:
    """Kind and conversation of every heldout sample, without the pictures that are not square."""
    found = []
    for line in (HELDOUT / "manifest.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if "nonsquare" in sample["tags"]:
            continue
        asked, answered = sample["prompt"], sample["answer"]
        if "image" in sample:
            image = Image.open(HELDOUT / sample["image"]).convert("RGB")
            found.append((sample["tags"][1], image_example(image, asked, answered)))
        else:
            found.append((sample["tags"][1], Example(asked, answered)))
    return found


def batches(samples: list[tuple[str, Example]]) -> Iterator[list[tuple[str, Example]]]:
    """Samples of about equal length together, and only those with equally many slices."""
    for slices in (1, 5, 0):
        alike = [sample for sample in samples if len(sample[1].slices) == slices]
        for start in range(0, len(alike), BATCH):
            yield alike[start : start + BATCH]


def prepare(
    model: MiniCPMVForConditionalGeneration, tokenizer: Tokenizer, samples: list[tuple[str, Example]], exchange: bool
) -> list[Group]:
    """Everything before the language model, which no rounding changes; `exchange` swaps the pictures."""
    groups = []
    for part in batches(samples):
        batch = collate(tokenizer, [example for _, example in part])
        embeddings = model.get_input_embeddings()(batch.ids)
        if batch.pixels is not None:
            features = batched_features(model, batch.pixels).unflatten(0, (len(part), -1))
            features = features.roll(1, 0) if exchange else features
            place = (batch.ids == tokenizer.token_to_id(UNKNOWN))[..., None].expand_as(embeddings)
            embeddings = embeddings.masked_scatter(place, features)
        groups.append(Group(embeddings, batch.labels, tuple(kind for kind, _ in part)))
    return groups


def run(model: MiniCPMVForConditionalGeneration, groups: list[Group]) -> Outcome:
    """The language model over all groups."""
    found, truth, kinds, samples = [], [], [], []
    for group in groups:
        labels = group.labels[:, 1:]
        learned = labels != IGNORED
        states = model.llm.model(inputs_embeds=group.embeddings, use_cache=False).last_hidden_state
        logits = model.llm.lm_head(states[:, :-1][learned])
        found.append(torch.log_softmax(logits.double(), dim=-1))
        truth.append(labels[learned])
        counts = learned.sum(dim=1).tolist()
        first = samples[-1] + 1 if samples else 0
        samples += [first + number for number, count in enumerate(counts) for _ in range(count)]
        kinds += [kind for kind, count in zip(group.kinds, counts, strict=True) for _ in range(count)]
    return Outcome(torch.cat(found), torch.cat(truth), tuple(kinds), tuple(samples))


def integer_rounding(bits: int, group_size: int) -> Rounding:
    """To the nearest of 2^bits steps; the scale, in fp16, is the group's largest value over the lowest code."""
    lowest = -(2 ** (bits - 1))

    def nearest(weight: Tensor) -> Tensor:
        groups = weight.reshape(-1, group_size)
        largest = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
        scale = (largest / lowest).half().float()
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        codes = (groups / scale).round().clamp(lowest, -lowest - 1)
        return (codes * scale).view_as(weight)

    return nearest


def ggml_rounding(kind: gguf.GGMLQuantizationType) -> Rounding:
    """As ggml itself quantizes without importance."""
    package = importlib.util.find_spec("xllamacpp")
    if package is None or package.origin is None:
        raise ImportError("xllamacpp carries ggml's own code and is needed for this row")
    library = ctypes.CDLL(str(next(Path(package.origin).parent.glob("xllamacpp*.so"))))
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def nearest(weight: Tensor) -> Tensor:
        values = numpy.ascontiguousarray(weight.numpy(), dtype=numpy.float32)
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        stored = numpy.empty((len(values), values.shape[1] // block * nbytes), numpy.uint8)
        quantize(int(kind), values.ctypes.data, stored.ctypes.data, 0, *values.shape, None)
        return torch.from_numpy(gguf.dequantize(stored, kind).reshape(values.shape))

    return nearest


SCHEMES: dict[str, Callable[[], Rounding]] = {
    "int8-g32": lambda: integer_rounding(8, 32),
    "int4-g32": lambda: integer_rounding(4, 32),
    "int4-g128": lambda: integer_rounding(4, 128),
    "q4_k": lambda: ggml_rounding(gguf.GGMLQuantizationType.Q4_K),
}


def language_linears(model: MiniCPMVForConditionalGeneration) -> dict[str, torch.nn.Linear]:
    """What is rounded: every linear in the language model's layers."""
    return {name: part for name, part in model.llm.model.named_modules() if isinstance(part, torch.nn.Linear)}


def rounded_run(model: MiniCPMVForConditionalGeneration, groups: list[Group], rounding: Rounding) -> Outcome:
    """Run with rounded weights, then put the original ones back."""
    linears = language_linears(model)
    originals = {name: linear.weight.data for name, linear in linears.items()}
    for name, linear in linears.items():
        linear.weight.data = rounding(originals[name])
    outcome = run(model, groups)
    for name, linear in linears.items():
        linear.weight.data = originals[name]
    return outcome


def comparison(original: Outcome, rounded: Outcome, kinds: set[str]) -> tuple[float, float, float, float]:
    """Perplexity change in percent with its standard error, mean KL divergence, agreement of the first choice."""
    kept = torch.tensor([kind in kinds for kind in original.kinds])
    before, after = original.log_probabilities[kept], rounded.log_probabilities[kept]
    divergence = (before.exp() * (before - after)).sum(dim=-1).mean()
    agreement = (before.argmax(dim=-1) == after.argmax(dim=-1)).double().mean()
    differences = (rounded.losses() - original.losses())[kept]
    change = 100 * math.expm1(differences.mean())
    error = 100 * math.exp(differences.mean()) * float(differences.std()) / math.sqrt(len(differences))
    return change, error, float(divergence), float(agreement)


TEXT_KINDS = {"question", "continuation"}


def sight_table(original: Outcome, exchanged: Outcome) -> list[str]:
    """Perplexity by kind of sample, with the right and with another picture."""
    kinds = sorted(set(original.kinds) - TEXT_KINDS)
    rows = ["| answers | tokens | perplexity | pictures exchanged | wholly right |", "|---|--:|--:|--:|--:|"]
    chosen = [("**all pictures**", set(kinds)), *((kind, {kind}) for kind in kinds), ("**all text**", TEXT_KINDS)]
    for title, named in [*chosen, *((kind, {kind}) for kind in sorted(TEXT_KINDS))]:
        count = sum(kind in named for kind in original.kinds)
        other = f"{exchanged.perplexity(named):.2f}" if named <= set(kinds) else ""
        right = f"{100 * original.whole_answers(named):.0f} %"
        rows.append(f"| {title} | {count} | {original.perplexity(named):.3f} | {other} | {right} |")
    return rows


def sensitivity_table(model: MiniCPMVForConditionalGeneration, groups: list[Group], original: Outcome) -> list[str]:
    """What each scheme costs."""
    pictures = set(original.kinds) - TEXT_KINDS
    rows = [
        "| to nearest | picture perplexity | KL | same first choice | text perplexity | KL | same first choice |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rounding in SCHEMES.items():
        rounded = rounded_run(model, groups, rounding())
        cells = []
        for kinds in (pictures, TEXT_KINDS):
            change, error, divergence, agreement = comparison(original, rounded, kinds)
            cells += [f"{change:+.2f} ± {error:.2f} %", f"{divergence:.4f}", f"{100 * agreement:.1f} %"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


@torch.no_grad()
def tables(directory: Path) -> str:
    """Both tables of a checkpoint, in Markdown."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = build_model(model_config(tokenizer)).eval()
    model.load_state_dict({name: weight.float() for name, weight in read_weights(directory).items()})
    samples = heldout()
    groups = prepare(model, tokenizer, samples, exchange=False)
    original, exchanged = run(model, groups), run(model, prepare(model, tokenizer, samples, exchange=True))
    rows = [*sight_table(original, exchanged), "", *sensitivity_table(model, groups, original)]
    return "\n".join(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(tables(HERE))
