"""Trains the reference checkpoint: first the eyes on labels, then the whole model on answers and plain text.

    python -m calibration.reference.train --eyes 8 --answers 60

Budgets are minutes, or steps with `--steps`, which makes a run repeatable to the bit. An interrupted run continues
where it stopped. The weights end in WORK/trained.safetensors; `fold` makes the published checkpoint of them.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from calibration.reference.checkpoint_files import build_model, model_config
from calibration.reference.samples import (
    IGNORED,
    Batch,
    draw_single,
    draw_sliced,
    scene_batch,
    text_batch,
)
from calibration.reference.tokenizer import UNKNOWN, train_tokenizer
from calibration.reference.vision_probe import Examiner, patch_states, resample, start_locally
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration

SEED = 11
SAVE_SECONDS = 180.0
QUESTIONS = 4
VISION_SHARE = 0.4


@dataclass(frozen=True)
class Phase:
    """One stretch of training and how long it lasts: `budget` seconds, or steps if `by_steps`."""

    name: str
    budget: float
    by_steps: bool
    peak_rate: float
    decay: float
    warmup: int


@dataclass(frozen=True)
class Clock:
    """How far a phase has come, over all its runs."""

    step: int = 0
    seconds: float = 0.0

    def progress(self, phase: Phase) -> float:
        """0 at the beginning of the phase, 1 at its end."""
        return (self.step if phase.by_steps else self.seconds) / phase.budget


class Student(nn.Module):
    """The model being trained, with the examiner that is thrown away afterwards."""

    def __init__(self, model: MiniCPMVForConditionalGeneration, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = model
        self.examiner = Examiner(model.config.text_config.hidden_size)
        self.tokenizer = tokenizer
        self.unknown = tokenizer.token_to_id(UNKNOWN)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch states [slices, 64, channels] and features [slices, 16, hidden], float32 after bf16 arithmetic."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = patch_states(self.model, pixels)
            return states.float(), resample(self.model.resampler, states).float()

    def answer_loss(self, batch: Batch, features: Tensor | None) -> Tensor:
        """Mean cross-entropy of the labelled tokens; features go, in order, where the placeholder tokens stand."""
        embeddings = self.model.get_input_embeddings()(batch.ids)
        if features is not None:
            place = (batch.ids == self.unknown)[..., None].expand_as(embeddings)
            embeddings = embeddings.masked_scatter(place, features.to(embeddings.dtype))
        learned = batch.labels[:, 1:] != IGNORED
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = self.model.llm.model(
                inputs_embeds=embeddings,
                attention_mask=batch.visible,
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
            logits = self.model.llm.lm_head(states[:, :-1][learned])
        return functional.cross_entropy(logits.float(), batch.labels[:, 1:][learned])


def draws(phase: str, step: int) -> random.Random:
    """The random numbers of one step, the same in every run."""
    return random.Random(f"{SEED}/{phase}/{step}")


def eyes_loss(student: Student, step: int, progress: float) -> Tensor:
    """What the examiner finds missing in the features of 48 pictures."""
    drawn = draw_single(draws("eyes", step), 48)
    batch = scene_batch(student.tokenizer, drawn)
    assert batch.pixels is not None
    parts = student.examiner(*student.see(batch.pixels), drawn)
    if step % 50 == 0:
        say(f"eyes {step} {progress:.3f} " + " ".join(f"{name} {part.item():.3f}" for name, part in parts.items()))
    return weighed(parts)


def weighed(parts: dict[str, Tensor]) -> Tensor:
    """All of the examiner's questions in one number."""
    return parts["things"] + parts["patches"] + parts["regions"] + 2 * parts["numbers"]


def answers_loss(student: Student, step: int, progress: float) -> Tensor:
    """Answers about small and about sliced pictures, plain text, and a fading share of the examiner's questions."""
    rng = draws("answers", step)
    drawn = draw_single(rng, 18)
    single = scene_batch(student.tokenizer, drawn, rng, QUESTIONS)
    sliced = scene_batch(student.tokenizer, draw_sliced(rng, 3), rng, QUESTIONS)
    text = text_batch(student.tokenizer, rng, 5)
    assert single.pixels is not None
    assert sliced.pixels is not None
    states, features = student.see(torch.cat([single.pixels, sliced.pixels]))
    seen, cut = features[: len(drawn)], features[len(drawn) :]
    examined = weighed(student.examiner(states[: len(drawn)], seen, drawn)) if progress < 0.8 else torch.zeros(())
    losses = (student.answer_loss(single, seen), student.answer_loss(sliced, cut), student.answer_loss(text, None))
    if step % 50 == 0:
        say(f"answers {step} {progress:.3f} " + " ".join(f"{loss.item():.3f}" for loss in (*losses, examined)))
    return losses[0] + 0.4 * losses[1] + 0.5 * losses[2] + 0.3 * max(0.0, 0.8 - progress) * examined


@torch.no_grad()
def report(student: Student, progress: float) -> None:
    """Perplexities on fresh draws: pictures true and exchanged, sliced pictures true and exchanged, text."""
    rng = random.Random("report")
    single = scene_batch(student.tokenizer, draw_single(rng, 96))
    sliced = scene_batch(student.tokenizer, draw_sliced(rng, 24))
    found = []
    for batch, slices in ((single, 1), (sliced, 5)):
        assert batch.pixels is not None
        _, features = student.see(batch.pixels)
        found += [student.answer_loss(batch, features), student.answer_loss(batch, features.roll(7 * slices, 0))]
    found.append(student.answer_loss(text_batch(student.tokenizer, rng, 32), None))
    words = ("image", "exchanged", "sliced", "exchanged", "text")
    values = " ".join(f"{word} {math.exp(loss.item()):.3f}" for word, loss in zip(words, found, strict=True))
    say(f"report {progress:.3f} {values}")


def rate(phase: Phase, clock: Clock) -> float:
    """Learning rate: a short rise, then half a cosine down to two hundredths."""
    rise = min(1.0, (clock.step + 1) / phase.warmup)
    return phase.peak_rate * rise * (0.49 * (1 + math.cos(math.pi * min(1.0, clock.progress(phase)))) + 0.02)


def say(line: str) -> None:
    """A line of the log, at once."""
    print(line, flush=True)


def learned_parameters(student: Student, phase: Phase) -> dict[str, nn.Parameter]:
    """The eyes first, then everything."""
    named = dict(student.named_parameters())
    if phase.name == "eyes":
        return {name: value for name, value in named.items() if not name.startswith("model.llm.")}
    return named


def make_optimizer(parameters: dict[str, nn.Parameter], phase: Phase) -> torch.optim.AdamW:
    """AdamW that pulls on matrices only; once there are answers to learn, what already sees changes more slowly."""
    groups = []
    for sees in (True, False):
        part = [value for name, value in parameters.items() if name.startswith("model.llm.") != sees]
        share = VISION_SHARE if sees and phase.name == "answers" else 1.0
        matrices = [value for value in part if value.ndim > 1]
        vectors = [value for value in part if value.ndim <= 1]
        groups.append({"params": matrices, "weight_decay": phase.decay, "share": share})
        groups.append({"params": vectors, "weight_decay": 0.0, "share": share})
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=phase.peak_rate, betas=(0.9, 0.98), fused=True)


def save_state(path: Path, student: Student, optimizer: torch.optim.AdamW, phase: Phase, clock: Clock) -> None:
    """Everything that a later run needs to continue, in one file that appears whole."""
    tensors = {f"value.{name}": value.detach().contiguous() for name, value in student.named_parameters()}
    for name, value in student.named_parameters():
        for key, kept in optimizer.state.get(value, {}).items():
            tensors[f"{key}.{name}"] = kept.contiguous()
    facts = {"phase": phase.name, "step": str(clock.step), "seconds": str(clock.seconds)}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata=facts)
    part.replace(path)


@torch.no_grad()
def load_state(path: Path, student: Student, optimizer: torch.optim.AdamW, phase: Phase) -> Clock | None:
    """Continue from a saved state of this phase; None if the phase is already over."""
    if not path.exists():
        return Clock()
    with safe_open(path, framework="pt") as file:
        facts, names = file.metadata(), set(file.keys())
        for name, value in student.named_parameters():
            value.copy_(file.get_tensor(f"value.{name}"))
            if facts["phase"] == phase.name and f"exp_avg.{name}" in names:
                optimizer.state[value] = {
                    key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
                }
    if facts["phase"] == phase.name:
        return Clock(int(facts["step"]), float(facts["seconds"]))
    return None if phase.name == "eyes" else Clock()


def run_phase(student: Student, phase: Phase, path: Path) -> None:
    """Train until the budget is spent, saving every few minutes."""
    parameters = learned_parameters(student, phase)
    optimizer = make_optimizer(parameters, phase)
    clock = load_state(path, student, optimizer, phase)
    if clock is None:
        return
    loss_of = eyes_loss if phase.name == "eyes" else answers_loss
    saved = clock.seconds
    while clock.progress(phase) < 1:
        started = time.monotonic()
        learn(loss_of(student, clock.step, clock.progress(phase)), optimizer, parameters, rate(phase, clock))
        if phase.name == "answers" and clock.step % 200 == 0:
            report(student, clock.progress(phase))
        clock = replace(clock, step=clock.step + 1, seconds=clock.seconds + time.monotonic() - started)
        if clock.seconds - saved > SAVE_SECONDS:
            save_state(path, student, optimizer, phase, clock)
            saved = clock.seconds
    save_state(path, student, optimizer, phase, clock)
    say(f"{phase.name} done after {clock.step} steps, {clock.seconds / 60:.1f} minutes")


def learn(
    loss: Tensor, optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter], learning_rate: float
) -> None:
    """One step downhill."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["share"]
    loss.backward()
    nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eyes", type=float, default=8, help="minutes (or steps) on labels")
    parser.add_argument("--answers", type=float, default=60, help="minutes (or steps) on answers and text")
    parser.add_argument("--steps", action="store_true", help="budgets are steps, not minutes")
    parser.add_argument("--work", type=Path, default=Path("build/reference"), help="where the state is kept")
    return parser.parse_args()


def main() -> None:
    """Both phases, one after the other."""
    options = parse()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(options.work / "tokenizer.json"))
    student = Student(build_model(model_config(tokenizer)), tokenizer)
    start_locally(student.model)
    unit = 1 if options.steps else 60
    state = options.work / "state.safetensors"
    run_phase(student, Phase("eyes", options.eyes * unit, options.steps, 1e-3, 0.02, 100), state)
    run_phase(student, Phase("answers", options.answers * unit, options.steps, 1.2e-3, 0.1, 200), state)
    weights = {name: value.contiguous() for name, value in student.model.state_dict().items()}
    save_file(weights, options.work / "trained.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
