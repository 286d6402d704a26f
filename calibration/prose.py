"""Plain English from a seeded grammar: stories, letters, facts, sums and lists, and questions with short answers."""

import random
from collections.abc import Callable, Sequence

from calibration.vocabulary import (
    ANIMALS,
    BUILDINGS,
    COLORS,
    DAYS,
    FEELINGS,
    FOODS,
    JOBS,
    MATERIALS,
    MONTHS,
    NAMES,
    NOUNS,
    OPPOSITES,
    RIVERS,
    SUBSTANCES,
    TOWNS,
    TRAITS,
    VERBS,
    WEATHER,
)

CONTINUE = "Continue the text: "
COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def pick(rng: random.Random, options: Sequence[str]) -> str:
    """Return one option; the first options are more frequent, like words in real texts."""
    return options[int(len(options) * rng.random() ** 1.6)]


def a(noun: str) -> str:
    """Return the noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def time_phrase(rng: random.Random) -> str:
    """Return a time of day."""
    hour = rng.randint(6, 22)
    return pick(
        rng, (f"at {hour}:{rng.choice((0, 15, 30, 45)):02d}", "in the morning", "after lunch", "at night", "at dawn")
    )


def noun_phrase(rng: random.Random) -> str:
    """Return a noun with zero, one or two adjectives."""
    adjectives = [pick(rng, options) for options in (TRAITS, COLORS, MATERIALS) if rng.random() < 0.3]
    return " ".join([*adjectives, pick(rng, NOUNS)])


def place_phrase(rng: random.Random) -> str:
    """Return a place in a town."""
    return pick(
        rng,
        (
            f"in {pick(rng, TOWNS)}",
            f"near the {pick(rng, BUILDINGS)}",
            f"behind the {pick(rng, BUILDINGS)}",
            f"by the river {pick(rng, RIVERS)}",
            f"between the {pick(rng, BUILDINGS)} and the {pick(rng, BUILDINGS)}",
        ),
    )


def story(rng: random.Random) -> str:
    """Return a story about one person and one object."""
    name, job, friend = pick(rng, NAMES), pick(rng, JOBS), pick(rng, NAMES)
    pronoun, owner = ("She", "her") if NAMES.index(name) % 2 == 0 else ("He", "his")
    object_phrase = noun_phrase(rng)
    noun = object_phrase.split()[-1]
    openings = (
        f"{name} was {a(job)} {place_phrase(rng)}.",
        f"On {pick(rng, DAYS)} {name} the {job} woke up {time_phrase(rng)}.",
        f"{name} lived {place_phrase(rng)} and worked as {a(job)}.",
    )
    middles = (
        f"{pronoun} found {a(object_phrase)} and {pick(rng, VERBS)} it.",
        f"Every day {pronoun.lower()} {pick(rng, VERBS)} {owner} {noun} {time_phrase(rng)}.",
        f"{pronoun} wanted to give the {noun} to {friend}, who was {pick(rng, FEELINGS)}.",
        f"The {noun} was {pick(rng, TRAITS)}, so {name} {pick(rng, VERBS)} it again.",
        f"It was {pick(rng, WEATHER)} and {name} felt {pick(rng, FEELINGS)}.",
        f'"{friend}, have you seen my {noun}?" asked {name}.',
    )
    endings = (
        f"In the end {name} and {friend} shared the {noun}.",
        f"{pronoun} never saw the {noun} again.",
        f"Since then {name} has been {pick(rng, FEELINGS)}.",
        f"{friend} only said that it was {pick(rng, TRAITS)}.",
    )
    return " ".join([rng.choice(openings), *rng.sample(middles, rng.randint(2, 4)), rng.choice(endings)])


def landscape(rng: random.Random) -> str:
    """Return a description of a town."""
    town, river = pick(rng, TOWNS), pick(rng, RIVERS)
    sentences = (
        f"The river {river} runs through the town and is {rng.randint(2, 90)} kilometres long.",
        f"There are {pick(rng, COUNTS)} {pick(rng, ANIMALS)}s {place_phrase(rng)}.",
        f"In {pick(rng, MONTHS)} it is often {pick(rng, WEATHER)}.",
        f"The {pick(rng, BUILDINGS)} is made of {pick(rng, SUBSTANCES)} and looks {pick(rng, TRAITS)}.",
        f"People here eat {pick(rng, FOODS)} with {pick(rng, FOODS)}.",
        f"The {pick(rng, BUILDINGS)} opens {time_phrase(rng)} and is {pick(rng, COLORS)}.",
        f"Most visitors are {pick(rng, FEELINGS)} when they leave {town}.",
    )
    return " ".join([f"{town} is {a(pick(rng, TRAITS))} town.", *rng.sample(sentences, rng.randint(3, 5))])


def letter(rng: random.Random) -> str:
    """Return a short letter with requests."""
    writer, reader = pick(rng, NAMES), pick(rng, NAMES)
    errands = (
        f"Please bring {a(noun_phrase(rng))} on {pick(rng, DAYS)}.",
        f"The {pick(rng, JOBS)} says that your {pick(rng, NOUNS)} is {pick(rng, TRAITS)}.",
        f"I have bought {pick(rng, COUNTS)} {pick(rng, NOUNS)}s and some {pick(rng, FOODS)}.",
        f"We meet {time_phrase(rng)} {place_phrase(rng)}.",
        f"My {pick(rng, ANIMALS)} is {pick(rng, FEELINGS)} because it is {pick(rng, WEATHER)}.",
        f"Do not forget the {pick(rng, NOUNS)}.",
    )
    return "\n".join([f"Dear {reader},", " ".join(rng.sample(errands, rng.randint(2, 4))), f"Yours, {writer}"])


def ledger(rng: random.Random) -> str:
    """Return a list of goods with prices and their sum."""
    goods = rng.sample(FOODS, rng.randint(2, 4))
    prices = [rng.randint(1, 20) for _ in goods]
    lines = [f"- {good}: {price}" for good, price in zip(goods, prices, strict=True)]
    return "\n".join([f"{pick(rng, NAMES)} went to the market and bought:", *lines, f"Together: {sum(prices)}"])


def arithmetic(rng: random.Random) -> str:
    """Return a sequence of correct sums."""
    return " ".join(f"{equation(rng)}." for _ in range(rng.randint(3, 6)))


def equation(rng: random.Random) -> str:
    """Return one equation, in figures or in words."""
    left, right = rng.randint(2, 49), rng.randint(2, 49)
    low, high = sorted((left, right))
    return rng.choice(
        (
            f"{left} plus {right} is {left + right}",
            f"{high} minus {low} is {high - low}",
            f"{left} + {right} = {left + right}",
            f"{high} is {'more than' if high > low else 'equal to'} {low}",
        )
    )


def timetable(rng: random.Random) -> str:
    """Return departures at equal intervals."""
    hour, step, count = rng.randint(5, 18), rng.choice((10, 15, 20, 30)), rng.randint(3, 5)
    start = hour * 60 + rng.choice((0, 5, 10))
    times = [f"{minute // 60}:{minute % 60:02d}" for minute in range(start, start + step * count, step)]
    return (
        f"Trains from {pick(rng, TOWNS)} to {pick(rng, TOWNS)} leave every {step} minutes: at {', '.join(times[:-1])} "
        f"and {times[-1]}. On {pick(rng, DAYS)} there is no train. The {pick(rng, JOBS)} is {pick(rng, FEELINGS)}."
    )


def animal_facts(rng: random.Random) -> str:
    """Return a few invented facts about an animal."""
    animal, other = pick(rng, ANIMALS), pick(rng, ANIMALS)
    facts = (
        f"A {pick(rng, TRAITS)} {animal} is rarely {pick(rng, FEELINGS)}.",
        f"It eats {pick(rng, FOODS)}, but never {pick(rng, FOODS)}.",
        f"It weighs {rng.randint(2, 400)} kilograms, more than {a(other)}.",
        f"It sleeps {pick(rng, COUNTS)} hours {time_phrase(rng)}.",
        f"Its home is {place_phrase(rng)}.",
        f"When it is {pick(rng, WEATHER)}, the {animal} hides under {a(noun_phrase(rng))}.",
    )
    return " ".join([f"The {animal} is {a(pick(rng, COLORS))} animal.", *rng.sample(facts, rng.randint(3, 4))])


TEXTS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (story, 0.3),
    (landscape, 0.18),
    (letter, 0.16),
    (animal_facts, 0.14),
    (ledger, 0.08),
    (timetable, 0.07),
    (arithmetic, 0.07),
)


def text(rng: random.Random) -> str:
    """Return one text of two to seven sentences."""
    return rng.choices([make for make, _ in TEXTS], [weight for _, weight in TEXTS])[0](rng)


def continuation(rng: random.Random) -> tuple[str, str]:
    """Return a prompt with the beginning of a text, and the rest, about 20 to 60 tokens, as the answer."""
    words = text(rng).split(" ")
    rest = min(rng.randint(14, 32), len(words) * 3 // 4)
    return CONTINUE + " ".join(words[:-rest]), " ".join(words[-rest:])


def sum_question(rng: random.Random) -> tuple[str, str]:
    """Return a question about a sum or a comparison."""
    left, right = rng.randint(2, 60), rng.randint(2, 60)
    if rng.random() < 0.6:
        return f"What is {left} plus {right}?", f"{left} plus {right} is {left + right}."
    return f"Which is larger, {left} or {right}?", f"{max(left, right)} is larger."


def order_question(rng: random.Random) -> tuple[str, str]:
    """Return a question about the previous or next item of a fixed order."""
    order = rng.choice((DAYS, MONTHS))
    index, shift = rng.randrange(len(order)), rng.choice((-1, 1))
    side = "after" if shift == 1 else "before"
    return f"What comes {side} {order[index]}?", f"{order[(index + shift) % len(order)]} comes {side} {order[index]}."


def recall_question(rng: random.Random) -> tuple[str, str]:
    """Return two facts and a question about one of them."""
    names, objects = rng.sample(NAMES, 2), (noun_phrase(rng), noun_phrase(rng))
    facts = " ".join(f"{name} has {a(item)}." for name, item in zip(names, objects, strict=True))
    index = rng.randrange(2)
    return f"{facts} What does {names[index]} have?", f"{names[index]} has {a(objects[index])}."


def purchase_question(rng: random.Random) -> tuple[str, str]:
    """Return a small word problem."""
    name, food = pick(rng, NAMES), pick(rng, NOUNS)
    first, second = rng.randint(2, 30), rng.randint(2, 30)
    question = f"{name} has {first} {food}s and buys {second} more. How many {food}s does {name} have?"
    return question, f"{name} has {first + second} {food}s."


def opposite_question(rng: random.Random) -> tuple[str, str]:
    """Return a question about the opposite of a word; a random noun keeps questions different."""
    pair = rng.choice(OPPOSITES)
    word, other = pair if rng.random() < 0.5 else pair[::-1]
    noun = pick(rng, NOUNS)
    return f"The {noun} is not {word}. What is it?", f"The {noun} is {other}."


def sorting_question(rng: random.Random) -> tuple[str, str]:
    """Return three or four numbers to sort."""
    numbers = rng.sample(range(1, 100), rng.choice((3, 4)))
    listed = ", ".join(map(str, numbers))
    return f"Sort these numbers: {listed}.", ", ".join(map(str, sorted(numbers)))


QUESTIONS = (sum_question, order_question, recall_question, purchase_question, opposite_question, sorting_question)


def question(rng: random.Random) -> tuple[str, str]:
    """Return one question without an image, and its answer."""
    return rng.choice(QUESTIONS)(rng)
