"""Train the audio reference checkpoint: the audio encoder on words by time, then the whole model on answers.

    python -m calibration.audio_reference.train

The speech is synthesized at the start. The number of steps is fixed, so a run is reproducible on one machine. The
weights are written to WORK/trained.safetensors; `channel_scaling` converts them to the committed checkpoint.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from calibration.audio_reference.checkpoint_files import HIDDEN, build_model, model_config, train_tokenizer
from calibration.audio_reference.samples import SILENCE, Batch, SpeechSample, make_batch, speech_sample
from calibration.reference.samples import IGNORED_LABEL
from calibration.reference.tokenizer import UNKNOWN, token_id
from calibration.reference.training_state import Phase, TrainingClock, scheduled_rate, train_step
from calibration.speech_phrases import phrase
from mcpmq.families.modeling_minicpmo import MiniCPMOForConditionalGeneration

SEED, SPEECH_PER_STEP, WRITTEN_PER_STEP, LOG_STEPS = 5, 12, 4, 25
AUDIO_MODULES = ("model.apm.", "model.audio_projection_layer.", "probe.")
PROBE_WEIGHT = 0.3


class TrainingModel(nn.Module):
    """The model, and a linear probe of the words in its audio features, which is discarded after training."""

    def __init__(self, model: MiniCPMOForConditionalGeneration, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model, self.probe = model, nn.Linear(HIDDEN, SILENCE + 1)
        self.placeholder = token_id(tokenizer, UNKNOWN)

    def audio_features(self, mels: tuple[Tensor, ...]) -> Tensor:
        """Return the features of all audio tokens, [audio tokens, hidden]."""
        longest = max(one.shape[1] for one in mels)
        padded = torch.stack([nn.functional.pad(one, (0, longest - one.shape[1])) for one in mels])
        return self.model.get_audio_features(padded, torch.tensor([one.shape[1] for one in mels]))

    def losses(self, batch: Batch, answers: bool) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy of the words by time, and of the answers, 0 without `answers`."""
        features = self.audio_features(batch.mels)
        probe = cross_entropy(self.probe(features), batch.words)
        if not answers:
            return probe, torch.zeros(())
        return probe, cross_entropy(self.logits(batch, features), batch.labels[:, 1:][self.learned(batch)])

    @staticmethod
    def learned(batch: Batch) -> Tensor:
        """Return which tokens, but for the first, are those of answers: bool [samples, tokens - 1]."""
        return batch.labels[:, 1:] != IGNORED_LABEL

    def logits(self, batch: Batch, features: Tensor | None = None) -> Tensor:
        """Return the logits before all tokens of answers, [tokens, vocabulary]."""
        features = self.audio_features(batch.mels) if features is None else features
        embeddings = self.model.get_input_embeddings()(batch.ids)
        places = batch.ids.eq(self.placeholder)[..., None].expand_as(embeddings)
        embeddings = embeddings.masked_scatter(places, features.float())
        states = self.model.llm.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        logits: Tensor = self.model.llm.lm_head(states[:, :-1][self.learned(batch)])
        return logits


def run_phase(training: TrainingModel, phase: Phase, speech: list[SpeechSample], tokenizer: Tokenizer) -> None:
    """Train for the steps of a phase: `audio` is the encoder alone."""
    answers = phase.name == "answers"
    named = {name: value for name, value in training.named_parameters() if answers or name.startswith(AUDIO_MODULES)}
    groups = [
        {"params": [one for one in named.values() if (one.ndim > 1) == decays], "weight_decay": decay, "share": 1.0}
        for decays, decay in ((True, phase.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=phase.peak_learning_rate, betas=(0.9, 0.98), fused=True)
    started = time.monotonic()
    for step in range(int(phase.budget)):
        batch = draw_batch(tokenizer, speech, random.Random(f"{SEED}/{phase.name}/{step}"), answers)
        probe, answer = training.losses(batch, answers)
        loss = answer + PROBE_WEIGHT * probe if answers else probe
        train_step(loss, optimizer, named, scheduled_rate(phase, TrainingClock(step)))
        if step % LOG_STEPS == 0 or step + 1 == phase.budget:
            seconds = time.monotonic() - started
            print(f"{phase.name} {step} {seconds:.0f} s probe {probe:.3f} answers {answer:.3f}", flush=True)


def draw_batch(tokenizer: Tokenizer, speech: list[SpeechSample], rng: random.Random, answers: bool) -> Batch:
    """Return the batch of a step."""
    texts = [phrase(rng) for _ in range(WRITTEN_PER_STEP if answers else 0)]
    return make_batch(tokenizer, rng.choices(speech, k=SPEECH_PER_STEP), texts, rng)


@torch.no_grad()
def validation_perplexity(training: TrainingModel, tokenizer: Tokenizer) -> float:
    """Return the perplexity of answers about new phrases in new voices."""
    rng = random.Random("validation")
    batch = make_batch(tokenizer, [speech_sample(rng) for _ in range(64)], [], rng)
    return math.exp(float(training.losses(batch, answers=True)[1]))


def parse_arguments() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phrases", type=int, default=2500, help="synthesized phrases")
    parser.add_argument("--audio", type=int, default=250, help="steps of the audio encoder alone")
    parser.add_argument("--answers", type=int, default=1000, help="steps of the whole model")
    parser.add_argument("--work", type=Path, default=Path("build/audio_reference"), help="folder of the weights")
    return parser.parse_args()


def main() -> None:
    """Synthesize the speech, run both phases, and write the weights to WORK/trained.safetensors."""
    options = parse_arguments()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(options.work / "tokenizer.json"))
    training = TrainingModel(build_model(model_config(tokenizer)), tokenizer)
    speech = [speech_sample(random.Random(f"{SEED}/{number}")) for number in range(options.phrases)]
    print(f"{len(speech)} phrases, {sum(len(one.labels) for one in speech)} audio tokens", flush=True)
    run_phase(training, Phase("audio", options.audio, True, 2e-3, 0.02, 50), speech, tokenizer)
    run_phase(training, Phase("answers", options.answers, True, 2e-3, 0.05, 100), speech, tokenizer)
    weights = {name: value.contiguous() for name, value in training.model.state_dict().items()}
    save_file(weights, options.work / "trained.safetensors", metadata={"format": "pt"})
    print(f"perplexity of new answers {validation_perplexity(training, tokenizer):.4f}", flush=True)


if __name__ == "__main__":
    main()
