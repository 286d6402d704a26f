"""Phrases as speech and the questions about them: words in order, counted objects, and sums."""

import random
from dataclasses import dataclass

from calibration.phonemes import COLORS, DIGITS, SHAPES, WORDS

MAX_WORDS = 5
TRANSCRIBE = ("What is said?", "Write down the words.")
REVERSED = "Write the words from the last to the first."
LAST, FIRST = "What is the last word?", "What is the first word?"


@dataclass(frozen=True)
class Question:
    """A question about a phrase, and its answer."""

    text: str
    answer: str
    kind: str


def phrase(rng: random.Random) -> tuple[str, ...]:
    """Return an object, as in `three red circle`, two digits, or words in any order."""
    kind = rng.choice(("object", "objects", "words", "words"))
    if kind == "object":
        return _object(rng)
    if kind == "objects":
        return (*_object(rng)[:2], *_object(rng)[1:])
    return tuple(rng.choices(WORDS, k=rng.randint(2, MAX_WORDS)))


def _object(rng: random.Random) -> tuple[str, ...]:
    return rng.choice(DIGITS), rng.choice(COLORS), rng.choice(SHAPES)


def questions(words: tuple[str, ...]) -> list[Question]:
    """Return all questions that a phrase answers."""
    found = [Question(text, _sentence(words), "words") for text in TRANSCRIBE]
    found.append(Question(REVERSED, _sentence(words[::-1]), "reversed"))
    found += [Question(FIRST, _sentence(words[:1]), "word"), Question(LAST, _sentence(words[-1:]), "word")]
    for text, group in (("Which color?", COLORS), ("Which shape?", SHAPES), ("Which digit?", DIGITS)):
        named = [word for word in words if word in group]
        if len(named) == 1:
            found.append(Question(text, _sentence(named), "attribute"))
    return found


def _sentence(words: tuple[str, ...] | list[str]) -> str:
    return " ".join(words).capitalize() + "."


def written(words: tuple[str, ...]) -> str:
    """Return a phrase as a part of a prompt without audio."""
    return f"The words are: {' '.join(words)}."
