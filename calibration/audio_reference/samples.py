"""Training samples of the audio reference: phrases as spectrograms, and batches of prompts with answers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from calibration.audio_reference.checkpoint_files import AUDIO_MARKS
from calibration.phonemes import WORDS
from calibration.reference.samples import IGNORED_LABEL
from calibration.reference.tokenizer import SYSTEM_PROMPT, TURN_END, TURN_START, UNKNOWN
from calibration.speech import random_voice, speak
from calibration.speech_phrases import Question, phrase, questions, written
from mcpmq.families.log_mel import LogMel

SAMPLES_PER_TOKEN, TOKENS_PER_SPAN = 640, 25
SILENCE = len(WORDS)  # the label of a token without a word
LEVELS = 128  # of the positive half of 8-bit samples, as in the committed sets


@dataclass(frozen=True)
class SpeechSample:
    """A phrase, its log-mel spectrogram, float16 [mel bins, frames], and the word of every audio token."""

    words: tuple[str, ...]
    mel: NDArray[np.float16]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Prompts with answers, padded at the end; audio is that of all prompts in their order."""

    ids: Tensor  # int64 [samples, tokens]
    labels: Tensor  # int64 [samples, tokens]: IGNORED_LABEL but for answers
    mels: tuple[Tensor, ...]
    words: Tensor  # int64 [audio tokens]


def speech_sample(rng: random.Random) -> SpeechSample:
    """Synthesize a phrase in a random voice."""
    speech = speak(phrase(rng), random_voice(rng), rng)
    samples = (np.round(speech.samples * LEVELS) / LEVELS).astype(np.float32)
    mel = LogMel().features(samples)
    labels = np.full((mel.shape[1] + 1) // 2 // 2, SILENCE)
    for word, (begin, end) in zip(speech.words, speech.spans, strict=True):
        labels[round(begin / SAMPLES_PER_TOKEN) : round(end / SAMPLES_PER_TOKEN)] = WORDS.index(word)
    return SpeechSample(speech.words, mel.astype(np.float16), labels)


def audio_text(num_tokens: int) -> str:
    """Return the tags and placeholders of an audio, a span for every second."""
    counts = [min(TOKENS_PER_SPAN, num_tokens - begin) for begin in range(0, num_tokens, TOKENS_PER_SPAN)]
    return "".join(AUDIO_MARKS[0] + UNKNOWN * count + AUDIO_MARKS[1] for count in counts)


def make_batch(
    tokenizer: Tokenizer, speech: Sequence[SpeechSample], texts: Sequence[tuple[str, ...]], rng: random.Random
) -> Batch:
    """Return a question about every phrase, as speech and as text."""
    prompts = [(audio_text(len(one.labels)), one.words) for one in speech]
    prompts += [(written(words), words) for words in texts]
    rows = [_tokens(tokenizer, content, rng.choice(questions(words))) for content, words in prompts]
    length = max(len(ids) for ids, _ in rows)
    ids, labels = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length), IGNORED_LABEL)
    for row, (tokens, answer_start) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, answer_start : len(tokens)] = torch.tensor(tokens[answer_start:])
    words = np.concatenate([one.labels for one in speech]) if speech else np.empty(0, np.int64)
    mels = tuple(torch.from_numpy(one.mel.astype(np.float32)) for one in speech)
    return Batch(ids, labels, mels, torch.from_numpy(words))


def _tokens(tokenizer: Tokenizer, content: str, question: Question) -> tuple[list[int], int]:
    """Return the tokens of a prompt and its answer, and the index of the first one of the answer."""
    prompt = (
        f"{TURN_START}system\n{SYSTEM_PROMPT}{TURN_END}\n{TURN_START}user\n{content}\n{question.text}{TURN_END}\n"
        f"{TURN_START}assistant\n"
    )
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    return ids + tokenizer.encode(question.answer + TURN_END, add_special_tokens=False).ids, len(ids)
