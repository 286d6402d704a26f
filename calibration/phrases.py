"""Words for drawn objects, and random words, codes and numbers for signs."""

import random
from collections.abc import Sequence

from calibration.vocabulary import split_words

PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = split_words(
    "ALPHA BRAVO DELTA ECHO GOLF HOTEL INDIA KILO LIMA MIKE OSCAR PAPA ROMEO SIERRA TANGO VICTOR ZULU OPEN STOP EXIT "
    "SALE CAFE BANK TAXI PARK BOOK FISH MILK RAIN SHOE TRAM WEST"
)
LETTERS = "ABCDEFGHJKLMNPRSTUVXYZ"


def with_article(noun: str) -> str:
    """Return the noun with `a` or `an`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def join_list(parts: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capitalize_first(sentence: str) -> str:
    """Return the sentence with a capital first letter."""
    return sentence[0].upper() + sentence[1:]


def random_code(rng: random.Random) -> str:
    """Return a short string that cannot be guessed, such as `K7R2`."""
    pattern = rng.choice(("LDL", "DLD", "LDLD", "LDDL", "LDDD", "DDLD"))
    return "".join(rng.choice(LETTERS) if slot == "L" else str(rng.randint(0, 9)) for slot in pattern)


def random_number(rng: random.Random) -> str:
    """Return a number of two to four digits."""
    digits = rng.choice((2, 3, 3, 4))
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def random_text(rng: random.Random) -> tuple[str, str]:
    """Return the kind of a text and the text."""
    kind = rng.choice(("word", "word", "code", "code", "number", "time", "price"))
    if kind == "word":
        return kind, rng.choice(WORDS)
    if kind == "code":
        return kind, random_code(rng)
    if kind == "number":
        return kind, random_number(rng)
    if kind == "time":
        return kind, f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}"
    return kind, f"{rng.randint(1, 19)}.{rng.randint(0, 19) * 5:02d}"
