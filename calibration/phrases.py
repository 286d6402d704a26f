"""Words for what is drawn, and the random words, codes and numbers that signs carry."""

import random
from collections.abc import Sequence

from calibration.vocabulary import words

PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = words(
    "ALPHA BRAVO DELTA ECHO GOLF HOTEL INDIA KILO LIMA MIKE OSCAR PAPA ROMEO SIERRA TANGO VICTOR ZULU OPEN STOP EXIT "
    "SALE CAFE BANK TAXI PARK BOOK FISH MILK RAIN SHOE TRAM WEST"
)
LETTERS = "ABCDEFGHJKLMNPRSTUVXYZ"


def article(noun: str) -> str:
    """The noun with `a` or `an` before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capital(sentence: str) -> str:
    """The sentence with a capital first letter, the rest untouched."""
    return sentence[0].upper() + sentence[1:]


def random_code(rng: random.Random) -> str:
    """A short string that nothing but reading can tell, such as `K7R2`."""
    pattern = rng.choice(("LDL", "DLD", "LDLD", "LDDL", "LDDD", "DDLD"))
    return "".join(rng.choice(LETTERS) if slot == "L" else str(rng.randint(0, 9)) for slot in pattern)


def random_number(rng: random.Random) -> str:
    """A number of two to four digits."""
    digits = rng.choice((2, 3, 3, 4))
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def random_reading(rng: random.Random) -> tuple[str, str]:
    """What kind of text and the text itself."""
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
