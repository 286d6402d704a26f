"""Training phases, their learning rate, and their state on disk, so that an interrupted run resumes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Phase:
    """One phase of training; `budget` is in seconds, or in steps if `by_steps`."""

    name: str
    budget: float
    by_steps: bool
    peak_learning_rate: float
    weight_decay: float
    warmup_steps: int


@dataclass(frozen=True)
class TrainingClock:
    """Progress of a phase over all its runs."""

    step: int = 0
    seconds: float = 0.0

    def progress(self, phase: Phase) -> float:
        """Return 0 at the beginning of the phase and 1 at its end."""
        return (self.step if phase.by_steps else self.seconds) / phase.budget


def scheduled_rate(phase: Phase, clock: TrainingClock) -> float:
    """Return the learning rate: a linear warmup, then a half cosine down to two percent."""
    rise = min(1.0, (clock.step + 1) / phase.warmup_steps)
    return phase.peak_learning_rate * rise * (0.49 * (1 + math.cos(math.pi * min(1.0, clock.progress(phase)))) + 0.02)


def train_step(
    loss: Tensor, optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter], learning_rate: float
) -> None:
    """Apply one optimizer step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["share"]
    loss.backward()
    nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def save_state(
    path: Path, training_model: nn.Module, optimizer: torch.optim.AdamW, phase: Phase, clock: TrainingClock
) -> None:
    """Write the training state to one file, replacing the previous one atomically."""
    tensors = {f"value.{name}": value.detach().contiguous() for name, value in training_model.named_parameters()}
    for name, value in training_model.named_parameters():
        for key, moments in optimizer.state.get(value, {}).items():
            tensors[f"{key}.{name}"] = moments.contiguous()
    facts = {"phase": phase.name, "step": str(clock.step), "seconds": str(clock.seconds)}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata=facts)
    part.replace(path)


@torch.no_grad()
def load_state(
    path: Path, training_model: nn.Module, optimizer: torch.optim.AdamW, phase: Phase
) -> TrainingClock | None:
    """Load a saved state of this phase; return None if the phase is finished."""
    if not path.exists():
        return TrainingClock()
    with safe_open(path, framework="pt") as file:
        facts, names = file.metadata(), set(file.keys())
        for name, value in training_model.named_parameters():
            value.copy_(file.get_tensor(f"value.{name}"))
            if facts["phase"] == phase.name and f"exp_avg.{name}" in names:
                optimizer.state[value] = {
                    key: file.get_tensor(f"{key}.{name}").to(value.device) for key in ("step", "exp_avg", "exp_avg_sq")
                }
    if facts["phase"] == phase.name:
        return TrainingClock(int(facts["step"]), float(facts["seconds"]))
    return None if phase.name == "vision" else TrainingClock()
