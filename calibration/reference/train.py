"""Train the reference checkpoint: the vision tower on labels, then the whole model on answers and plain text.

    python -m calibration.reference.train --vision 8 --answers 60

Budgets are minutes, or steps with `--steps`, which makes a run reproducible. An interrupted run resumes. The weights
are written to WORK/trained.safetensors; `channel_scaling` converts them to the committed checkpoint.
"""

import argparse
import math
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from calibration.reference.batched_vision import init_query_grid, patch_states, run_resampler
from calibration.reference.checkpoint_files import build_model, model_config
from calibration.reference.samples import (
    IGNORED_LABEL,
    Batch,
    draw_single,
    draw_sliced,
    scene_batch,
    text_batch,
)
from calibration.reference.tokenizer import UNKNOWN, token_id, train_tokenizer
from calibration.reference.training_state import Phase, load_state, save_state, scheduled_rate, train_step
from calibration.scene_labels import label_arrays
from calibration.scene_probe import SceneProbe, weighted_sum
from calibration.scenes import Scene
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration

SEED = 11
SAVE_SECONDS = 180.0
QUESTIONS_PER_IMAGE = 4
VISION_RATE_SCALE = 0.4
VISION_STREAM, ANSWER_STREAM = "eyes", "answers"  # seeds of the committed run


class TrainingModel(nn.Module):
    """The model and the vision probe, which is discarded after training."""

    def __init__(self, model: MiniCPMVForConditionalGeneration, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = model
        self.probe = SceneProbe(*[model.config.text_config.hidden_size] * 2)
        self.tokenizer = tokenizer
        self.image_token_id = token_id(tokenizer, UNKNOWN)

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 patch states [slices, 64, channels] and features [slices, 16, hidden] of a bf16 forward."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = patch_states(self.model, pixels)
            return states.float(), run_resampler(self.model.resampler, states).float()

    def probe_losses(self, states: Tensor, features: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
        """Return the losses of the probe."""
        labels = {name: torch.from_numpy(value) for name, value in label_arrays(scenes).items()}
        parts: dict[str, Tensor] = self.probe(states, features, labels)
        return parts

    def answer_loss(self, batch: Batch, features: Tensor | None) -> Tensor:
        """Return the mean cross-entropy of labeled tokens; features replace the placeholder tokens in order."""
        embeddings = self.model.get_input_embeddings()(batch.ids)
        if features is not None:
            place = batch.ids.eq(self.image_token_id)[..., None].expand_as(embeddings)
            embeddings = embeddings.masked_scatter(place, features.to(embeddings.dtype))
        learned = batch.labels[:, 1:] != IGNORED_LABEL
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = self.model.llm.model(
                inputs_embeds=embeddings,
                attention_mask=batch.attention_mask,
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
            logits = self.model.llm.lm_head(states[:, :-1][learned])
        return functional.cross_entropy(logits.float(), batch.labels[:, 1:][learned])


def step_rng(stream: str, step: int) -> random.Random:
    """Return the random numbers of one step, equal in every run."""
    return random.Random(f"{SEED}/{stream}/{step}")


def probe_loss(training_model: TrainingModel, step: int, progress: float) -> Tensor:
    """Return the loss of the vision probe on 48 images."""
    drawn = draw_single(step_rng(VISION_STREAM, step), 48)
    batch = scene_batch(training_model.tokenizer, drawn)
    assert batch.pixels is not None
    parts = training_model.probe_losses(*training_model.encode_images(batch.pixels), drawn)
    if step % 50 == 0:
        log_line(
            f"vision {step} {progress:.3f} " + " ".join(f"{name} {part.item():.3f}" for name, part in parts.items())
        )
    return weighted_sum(parts)


def answers_loss(training_model: TrainingModel, step: int, progress: float) -> Tensor:
    """Return the loss of image answers, text, and a decreasing share of the probe loss."""
    rng = step_rng(ANSWER_STREAM, step)
    drawn = draw_single(rng, 18)
    single = scene_batch(training_model.tokenizer, drawn, rng, QUESTIONS_PER_IMAGE)
    sliced = scene_batch(training_model.tokenizer, draw_sliced(rng, 3), rng, QUESTIONS_PER_IMAGE)
    text = text_batch(training_model.tokenizer, rng, 5)
    assert single.pixels is not None
    assert sliced.pixels is not None
    states, features = training_model.encode_images(torch.cat([single.pixels, sliced.pixels]))
    single_features, sliced_features = features[: len(drawn)], features[len(drawn) :]
    probe = (
        weighted_sum(training_model.probe_losses(states[: len(drawn)], single_features, drawn))
        if progress < 0.8
        else torch.zeros(())
    )
    losses = (
        training_model.answer_loss(single, single_features),
        training_model.answer_loss(sliced, sliced_features),
        training_model.answer_loss(text, None),
    )
    if step % 50 == 0:
        log_line(f"answers {step} {progress:.3f} " + " ".join(f"{loss.item():.3f}" for loss in (*losses, probe)))
    return losses[0] + 0.4 * losses[1] + 0.5 * losses[2] + 0.3 * max(0.0, 0.8 - progress) * probe


@torch.no_grad()
def log_validation(training_model: TrainingModel, progress: float) -> None:
    """Log perplexities of new samples: single and sliced images, right and swapped, and text."""
    rng = random.Random("report")
    single = scene_batch(training_model.tokenizer, draw_single(rng, 96))
    sliced = scene_batch(training_model.tokenizer, draw_sliced(rng, 24))
    found = []
    for batch, slices in ((single, 1), (sliced, 5)):
        assert batch.pixels is not None
        _, features = training_model.encode_images(batch.pixels)
        found += [
            training_model.answer_loss(batch, features),
            training_model.answer_loss(batch, features.roll(7 * slices, 0)),
        ]
    found.append(training_model.answer_loss(text_batch(training_model.tokenizer, rng, 32), None))
    words = ("image", "swapped", "sliced", "swapped", "text")
    values = " ".join(f"{word} {math.exp(loss.item()):.3f}" for word, loss in zip(words, found, strict=True))
    log_line(f"report {progress:.3f} {values}")


def log_line(line: str) -> None:
    """Print a line of the log without buffering."""
    print(line, flush=True)


def trainable_parameters(training_model: TrainingModel, phase: Phase) -> dict[str, nn.Parameter]:
    """Return the vision parameters in the first phase, all parameters in the second."""
    named = dict(training_model.named_parameters())
    if phase.name == "vision":
        return {name: value for name, value in named.items() if not name.startswith("model.llm.")}
    return named


def make_optimizer(parameters: dict[str, nn.Parameter], phase: Phase) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only; in the second phase vision learns at a lower rate."""
    groups = []
    for is_vision in (True, False):
        part = [value for name, value in parameters.items() if name.startswith("model.llm.") != is_vision]
        share = VISION_RATE_SCALE if is_vision and phase.name == "answers" else 1.0
        matrices = [value for value in part if value.ndim > 1]
        vectors = [value for value in part if value.ndim <= 1]
        groups.append({"params": matrices, "weight_decay": phase.weight_decay, "share": share})
        groups.append({"params": vectors, "weight_decay": 0.0, "share": share})
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=phase.peak_learning_rate, betas=(0.9, 0.98), fused=True)


def run_phase(training_model: TrainingModel, phase: Phase, path: Path) -> None:
    """Train until the budget is used, saving every few minutes."""
    parameters = trainable_parameters(training_model, phase)
    optimizer = make_optimizer(parameters, phase)
    clock = load_state(path, training_model, optimizer, phase)
    if clock is None:
        return
    loss_of = probe_loss if phase.name == "vision" else answers_loss
    saved = clock.seconds
    while clock.progress(phase) < 1:
        started = time.monotonic()
        train_step(
            loss_of(training_model, clock.step, clock.progress(phase)),
            optimizer,
            parameters,
            scheduled_rate(phase, clock),
        )
        if phase.name == "answers" and clock.step % 200 == 0:
            log_validation(training_model, clock.progress(phase))
        clock = replace(clock, step=clock.step + 1, seconds=clock.seconds + time.monotonic() - started)
        if clock.seconds - saved > SAVE_SECONDS:
            save_state(path, training_model, optimizer, phase, clock)
            saved = clock.seconds
    save_state(path, training_model, optimizer, phase, clock)
    log_line(f"{phase.name} done after {clock.step} steps, {clock.seconds / 60:.1f} minutes")


def parse_arguments() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", type=float, default=8, help="minutes (or steps) of the vision phase")
    parser.add_argument("--answers", type=float, default=60, help="minutes (or steps) of the answer phase")
    parser.add_argument("--steps", action="store_true", help="budgets in steps instead of minutes")
    parser.add_argument("--work", type=Path, default=Path("build/reference"), help="folder of the training state")
    return parser.parse_args()


def main() -> None:
    """Run both phases."""
    options = parse_arguments()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(options.work / "tokenizer.json"))
    training_model = TrainingModel(build_model(model_config(tokenizer)), tokenizer)
    init_query_grid(training_model.model)
    unit = 1 if options.steps else 60
    state = options.work / "state.safetensors"
    run_phase(training_model, Phase("vision", options.vision * unit, options.steps, 1e-3, 0.02, 100), state)
    run_phase(training_model, Phase("answers", options.answers * unit, options.steps, 1.2e-3, 0.1, 200), state)
    weights = {name: value.contiguous() for name, value in training_model.model.state_dict().items()}
    save_file(weights, options.work / "trained.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
