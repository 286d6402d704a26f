"""Train the vision encoder of the checkpoint with images: on labels, then on answers of the frozen language model.

    python -m benchmarks.real_weights.tower.train --out OUT --tokenizer CHECKPOINT/tokenizer.json

Budgets are seconds, or steps with `--steps`, which makes a run reproducible on one machine. OUT/tower.safetensors is
written every half minute as fp16, so that an interrupted run has one; with `--state` it resumes. Images are drawn by
`--workers` processes while the model trains. `--random` replaces the language model by one with random weights, to
test the script without its package.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from benchmarks.real_weights import smollm2
from benchmarks.real_weights.tower.batches import IMAGE_TOKEN, WORDS, Batch, BatchSpec, drawn_ahead
from benchmarks.real_weights.tower.language import (
    SHA256,
    LanguageModel,
    random_weights,
    weights_sha256,
    word_embeddings,
)
from benchmarks.real_weights.tower.training_model import (
    Score,
    TrainingModel,
    answer_logits,
    on_device,
    probe_sum,
    score_answers,
)
from calibration.reference.training_state import (
    Phase,
    TrainingClock,
    load_state,
    save_state,
    scheduled_rate,
    train_step,
)

SEED = 3
FILE = "tower.safetensors"
QUESTIONS, LARGE_EVERY = 4, 4  # questions about an image; every fourth batch of answers has large images
SAVE_SECONDS, VALIDATE_SECONDS, LOG_STEPS = 30.0, 20.0, 25
PROBE_WEIGHT, PROBE_END = 0.3, 0.8  # of the loss of answers; progress at which the probe ends
WEIGHT_DECAY, WARMUP_STEPS = 0.05, 100
ENCODER_SHARE = 0.5  # of the learning rate on answers
LossOf = Callable[["Run", int, float], Tensor]
Draw = Callable[[Iterable[BatchSpec]], Iterator[Batch]]


@dataclass(frozen=True)
class Run:
    """Everything that one training needs."""

    model: TrainingModel
    language: LanguageModel
    image_token: int
    device: torch.device
    batches: Iterator[Batch]
    validation: Sequence[Batch]
    out: Path
    state: Path | None
    start: float

    def log(self, **fields: object) -> None:
        """Print a line and append it to the log."""
        line = json.dumps({"seconds": round(time.monotonic() - self.start, 1), **fields})
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")


def specs(images: int, phase: str, start: int) -> Iterator[BatchSpec]:
    """Yield the batches of a phase from step `start`; large images have four times the image tokens."""
    for step in count(start):
        large = phase == "answers" and step % LARGE_EVERY == LARGE_EVERY - 1
        number = images // 2 if large else images if phase == "answers" else 3 * images
        yield BatchSpec(f"{SEED}/{phase}/{step}", number, QUESTIONS if phase == "answers" else 1, large)


def vision_loss(run: Run, step: int, progress: float) -> Tensor:
    """Return the loss of the probe."""
    tensors = on_device(next(run.batches), run.device)
    parts = run.model.probe_losses(*run.model.encode(tensors["pixels"]), tensors)
    if step % LOG_STEPS == 0:
        run.log(phase="vision", step=step, progress=round(progress, 3), **_rounded(parts))
    return probe_sum(parts)


def answers_loss(run: Run, step: int, progress: float) -> Tensor:
    """Return the loss of answers and, of small images, a decreasing share of that of the probe."""
    tensors = on_device(next(run.batches), run.device)
    states, features = run.model.encode(tensors["pixels"])
    logits = answer_logits(run.language, tensors, features, run.image_token)
    loss = functional.cross_entropy(logits, tensors["targets"])
    parts = {"answers": loss}
    if "words" in tensors and progress < PROBE_END:
        parts |= run.model.probe_losses(states, features, tensors)
        loss = loss + PROBE_WEIGHT * (PROBE_END - progress) * probe_sum(parts)
    if step % LOG_STEPS == 0:
        run.log(phase="answers", step=step, progress=round(progress, 3), **_rounded(parts))
    return loss


PHASES: Mapping[str, tuple[LossOf, float]] = {"vision": (vision_loss, 1e-3), "answers": (answers_loss, 1e-3)}


def _rounded(parts: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: round(part.item(), 4) for name, part in parts.items()}


@torch.no_grad()
def validate(run: Run, shuffled: bool = False) -> dict[str, Score]:
    """Return the scores of held-out images by skill; `shuffled`: of questions about other images."""
    scores: dict[str, Score] = {}
    for batch in run.validation:
        tensors = on_device(batch, run.device)
        _, features = run.model.encode(tensors["pixels"])
        if shuffled:
            features = features.roll(len(features) // 2, 0)
        score_answers(answer_logits(run.language, tensors, features, run.image_token), batch, scores)
    return scores


def total(scores: Mapping[str, Score]) -> Score:
    """Return the sum over all skills."""
    names = Score.__dataclass_fields__
    return Score(**{name: sum(getattr(one, name) for one in scores.values()) for name in names})


def log_validation(run: Run, progress: float) -> None:
    """Log the scores of held-out images."""
    right, wrong = total(validate(run)).summary(), total(validate(run, shuffled=True)).summary()
    run.log(validation=round(progress, 3), **right, shuffled_perplexity=wrong["perplexity"])


def make_optimizer(model: TrainingModel, phase: Phase) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices; on answers the encoder before the merger learns at a lower rate."""
    groups = []
    for is_encoder in (True, False):
        named = model.named_parameters()
        part = [one for name, one in named if name.startswith(("encoder.blocks", "encoder.patch")) == is_encoder]
        share = ENCODER_SHARE if is_encoder and phase.name == "answers" else 1.0
        for is_matrix in (True, False):
            chosen = [one for one in part if (one.ndim > 1) == is_matrix]
            groups.append({"params": chosen, "weight_decay": phase.weight_decay * is_matrix, "share": share})
    return torch.optim.AdamW(groups, lr=phase.peak_learning_rate, betas=(0.9, 0.98), fused=True)


def run_phase(run: Run, phase: Phase, loss_of: LossOf, draw: Callable[[int], Iterator[Batch]]) -> None:
    """Train until the budget is used, writing the encoder every half minute."""
    optimizer = make_optimizer(run.model, phase)
    clock = load_state(run.state, run.model, optimizer, phase) if run.state else TrainingClock()
    if clock is None:
        return
    run = replace(run, batches=draw(clock.step))
    parameters = dict(run.model.named_parameters())
    saved = validated = clock.seconds
    while clock.progress(phase) < 1:
        started = time.monotonic()
        progress = clock.progress(phase)
        train_step(loss_of(run, clock.step, progress), optimizer, parameters, scheduled_rate(phase, clock))
        if phase.name == "answers" and clock.seconds - validated > VALIDATE_SECONDS:
            log_validation(run, progress)
            validated = clock.seconds
        clock = replace(clock, step=clock.step + 1, seconds=clock.seconds + time.monotonic() - started)
        if clock.seconds - saved > SAVE_SECONDS:
            save(run, optimizer, phase, clock)
            saved = clock.seconds
    save(run, optimizer, phase, clock)
    run.log(phase=phase.name, steps=clock.step, phase_seconds=round(clock.seconds, 1))


def save(run: Run, optimizer: torch.optim.AdamW, phase: Phase, clock: TrainingClock) -> None:
    """Write the encoder as fp16, and the state."""
    tensors = {name: value.detach().half().contiguous() for name, value in run.model.encoder.named_parameters()}
    save_file(tensors, run.out / f"{FILE}.part", {"format": "pt"})
    (run.out / f"{FILE}.part").replace(run.out / FILE)
    if run.state:
        save_state(run.state, run.model, optimizer, phase, clock)


def finish(run: Run) -> None:
    """Round the encoder to the written values, and write its scores by skill."""
    run.model.encoder.load_state_dict({name: value.float() for name, value in load_file(run.out / FILE).items()})
    right, shuffled = validate(run), validate(run, shuffled=True)
    found = {name: score.summary() for name, score in sorted(right.items())}
    found |= {"all": total(right).summary(), "all, shuffled images": total(shuffled).summary()}
    (run.out / "scores.json").write_text(json.dumps(found, indent=1) + "\n")
    run.log(scores=found)


def open_language(options: argparse.Namespace, device: torch.device) -> LanguageModel:
    """Return the frozen language model in bf16.

    Raises:
        SystemExit: its weights are not those that the committed encoder was trained with.
    """
    if options.random:
        return LanguageModel(random_weights(options.random), device, torch.bfloat16)
    weights = smollm2.read_weights(smollm2.open_gguf(options.gguf))
    if (found := weights_sha256(weights)) != SHA256:
        raise SystemExit(f"the weights have SHA-256 {found}, expected {SHA256}")
    return LanguageModel(weights, device, torch.bfloat16)


def parse_arguments() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoder and the log")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the checkpoint")
    parser.add_argument("--gguf", type=Path, help="file of the language model; default: that of its package")
    parser.add_argument("--random", type=int, metavar="LAYERS", help="use a random language model with these layers")
    parser.add_argument("--vision", type=float, default=25, help="seconds (or steps) on labels")
    parser.add_argument("--answers", type=float, default=120, help="seconds (or steps) on answers")
    parser.add_argument("--steps", action="store_true", help="budgets in steps instead of seconds")
    parser.add_argument("--images", type=int, default=96, help="images of a batch of answers")
    parser.add_argument("--validation", type=int, default=8, help="batches of held-out images")
    parser.add_argument("--workers", type=int, default=14, help="processes that draw")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--state", type=Path, help="file of the training state, to resume")
    parser.add_argument("--initial", type=Path, help="encoder to start from")
    return parser.parse_args()


def main() -> None:
    """Train in two phases and write scores of held-out images."""
    options, start = parse_arguments(), time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    random.seed(SEED)
    # Processes are forked before the GPU is used, and need neither torch nor another import.
    with ProcessPoolExecutor(options.workers, get_context("fork")) as pool:
        train(options, pool, start)


def train(options: argparse.Namespace, pool: Executor, start: float) -> None:
    """Train with images of a pool of processes."""
    device, ahead = torch.device(options.device), 2 * options.workers

    def draw(queue: Iterable[BatchSpec]) -> Iterator[Batch]:
        return drawn_ahead(pool, options.tokenizer, queue, ahead)

    validation = draw(
        BatchSpec(f"{SEED}/validation/{n}", 2 * options.images // 3, 2, n % 4 == 3, held_out=True)
        for n in range(options.validation)
    )
    language, tokenizer = open_language(options, device), Tokenizer.from_file(str(options.tokenizer))
    words = word_embeddings(language.embedding, [tokenizer.encode(word).ids for word in WORDS])
    model = TrainingModel(words).to(device)
    if options.initial:
        model.encoder.load_state_dict({name: value.float() for name, value in load_file(options.initial).items()})
    [image_token] = tokenizer.encode(IMAGE_TOKEN).ids
    places = options.out, options.state, start
    run = Run(model, language, image_token, device, iter(()), list(validation), *places)
    run.log(device=device_name(device), parameters=sum(one.numel() for one in model.encoder.parameters()))
    for name, (loss_of, rate) in PHASES.items():
        if budget := getattr(options, name):
            phase = Phase(name, budget, options.steps, rate, WEIGHT_DECAY, WARMUP_STEPS)
            run_phase(run, phase, loss_of, partial(draw_phase, draw, options.images, name))
    finish(run)


def draw_phase(draw: Draw, images: int, phase: str, start: int) -> Iterator[Batch]:
    """Draw the batches of a phase from step `start`."""
    return draw(specs(images, phase, start))


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    main()
