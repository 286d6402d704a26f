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
    OPPOSITES,
    RIVERS,
    SUBSTANCES,
    THINGS,
    TOWNS,
    TRAITS,
    VERBS,
    WEATHER,
)

CONTINUE = "Continue the text: "
COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def pick(rng: random.Random, options: Sequence[str]) -> str:
    """One option; those at the front come up more often, as words do in real text."""
    return options[int(len(options) * rng.random() ** 1.6)]


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def clock(rng: random.Random) -> str:
    """A time of day."""
    hour = rng.randint(6, 22)
    return pick(
        rng, (f"at {hour}:{rng.choice((0, 15, 30, 45)):02d}", "in the morning", "after lunch", "at night", "at dawn")
    )


def detail(rng: random.Random) -> str:
    """A noun with zero, one or two adjectives."""
    adjectives = [pick(rng, options) for options in (TRAITS, COLORS, MATERIALS) if rng.random() < 0.3]
    return " ".join([*adjectives, pick(rng, THINGS)])


def place(rng: random.Random) -> str:
    """Somewhere in a town."""
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
    """One person, one thing, and what becomes of it."""
    name, job, friend = pick(rng, NAMES), pick(rng, JOBS), pick(rng, NAMES)
    pronoun, owner = ("She", "her") if NAMES.index(name) % 2 == 0 else ("He", "his")
    thing = detail(rng)
    noun = thing.split()[-1]
    openings = (
        f"{name} was {a(job)} {place(rng)}.",
        f"On {pick(rng, DAYS)} {name} the {job} woke up {clock(rng)}.",
        f"{name} lived {place(rng)} and worked as {a(job)}.",
    )
    middles = (
        f"{pronoun} found {a(thing)} and {pick(rng, VERBS)} it.",
        f"Every day {pronoun.lower()} {pick(rng, VERBS)} {owner} {noun} {clock(rng)}.",
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
    """What a town looks like."""
    town, river = pick(rng, TOWNS), pick(rng, RIVERS)
    sentences = (
        f"The river {river} runs through the town and is {rng.randint(2, 90)} kilometres long.",
        f"There are {pick(rng, COUNTS)} {pick(rng, ANIMALS)}s {place(rng)}.",
        f"In {pick(rng, MONTHS)} it is often {pick(rng, WEATHER)}.",
        f"The {pick(rng, BUILDINGS)} is made of {pick(rng, SUBSTANCES)} and looks {pick(rng, TRAITS)}.",
        f"People here eat {pick(rng, FOODS)} with {pick(rng, FOODS)}.",
        f"The {pick(rng, BUILDINGS)} opens {clock(rng)} and is {pick(rng, COLORS)}.",
        f"Most visitors are {pick(rng, FEELINGS)} when they leave {town}.",
    )
    return " ".join([f"{town} is {a(pick(rng, TRAITS))} town.", *rng.sample(sentences, rng.randint(3, 5))])


def letter(rng: random.Random) -> str:
    """A short letter with an errand."""
    writer, reader = pick(rng, NAMES), pick(rng, NAMES)
    errands = (
        f"Please bring {a(detail(rng))} on {pick(rng, DAYS)}.",
        f"The {pick(rng, JOBS)} says that your {pick(rng, THINGS)} is {pick(rng, TRAITS)}.",
        f"I have bought {pick(rng, COUNTS)} {pick(rng, THINGS)}s and some {pick(rng, FOODS)}.",
        f"We meet {clock(rng)} {place(rng)}.",
        f"My {pick(rng, ANIMALS)} is {pick(rng, FEELINGS)} because it is {pick(rng, WEATHER)}.",
        f"Do not forget the {pick(rng, THINGS)}.",
    )
    return "\n".join([f"Dear {reader},", " ".join(rng.sample(errands, rng.randint(2, 4))), f"Yours, {writer}"])


def ledger(rng: random.Random) -> str:
    """A list of goods with prices that add up."""
    goods = rng.sample(FOODS, rng.randint(2, 4))
    prices = [rng.randint(1, 20) for _ in goods]
    lines = [f"- {good}: {price}" for good, price in zip(goods, prices, strict=True)]
    return "\n".join([f"{pick(rng, NAMES)} went to the market and bought:", *lines, f"Together: {sum(prices)}"])


def arithmetic(rng: random.Random) -> str:
    """A row of sums that are right."""
    return " ".join(f"{equation(rng)}." for _ in range(rng.randint(3, 6)))


def equation(rng: random.Random) -> str:
    """One sum, in figures or in words."""
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
    """Trains that leave at even intervals."""
    hour, step, count = rng.randint(5, 18), rng.choice((10, 15, 20, 30)), rng.randint(3, 5)
    start = hour * 60 + rng.choice((0, 5, 10))
    times = [f"{minute // 60}:{minute % 60:02d}" for minute in range(start, start + step * count, step)]
    return (
        f"Trains from {pick(rng, TOWNS)} to {pick(rng, TOWNS)} leave every {step} minutes: at {', '.join(times[:-1])} "
        f"and {times[-1]}. On {pick(rng, DAYS)} there is no train. The {pick(rng, JOBS)} is {pick(rng, FEELINGS)}."
    )


def animal_facts(rng: random.Random) -> str:
    """A few invented facts about an animal."""
    animal, other = pick(rng, ANIMALS), pick(rng, ANIMALS)
    facts = (
        f"A {pick(rng, TRAITS)} {animal} is rarely {pick(rng, FEELINGS)}.",
        f"It eats {pick(rng, FOODS)}, but never {pick(rng, FOODS)}.",
        f"It weighs {rng.randint(2, 400)} kilograms, more than {a(other)}.",
        f"It sleeps {pick(rng, COUNTS)} hours {clock(rng)}.",
        f"Its home is {place(rng)}.",
        f"When it is {pick(rng, WEATHER)}, the {animal} hides under {a(detail(rng))}.",
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
    """One text of two to seven sentences."""
    return rng.choices([make for make, _ in TEXTS], [weight for _, weight in TEXTS])[0](rng)


def continuation(rng: random.Random) -> tuple[str, str]:
    """A prompt that gives the beginning of a text, and the rest of it, about 20 to 60 tokens, as the answer."""
    words = text(rng).split(" ")
    rest = min(rng.randint(14, 32), len(words) * 3 // 4)
    return CONTINUE + " ".join(words[:-rest]), " ".join(words[-rest:])


def sum_question(rng: random.Random) -> tuple[str, str]:
    """A sum or a comparison."""
    left, right = rng.randint(2, 60), rng.randint(2, 60)
    if rng.random() < 0.6:
        return f"What is {left} plus {right}?", f"{left} plus {right} is {left + right}."
    return f"Which is larger, {left} or {right}?", f"{max(left, right)} is larger."


def order_question(rng: random.Random) -> tuple[str, str]:
    """What comes before or after in a fixed order."""
    order = rng.choice((DAYS, MONTHS))
    index, shift = rng.randrange(len(order)), rng.choice((-1, 1))
    side = "after" if shift == 1 else "before"
    return f"What comes {side} {order[index]}?", f"{order[(index + shift) % len(order)]} comes {side} {order[index]}."


def recall_question(rng: random.Random) -> tuple[str, str]:
    """Who has what: two facts, one of them asked for."""
    names, things = rng.sample(NAMES, 2), (detail(rng), detail(rng))
    facts = " ".join(f"{name} has {a(thing)}." for name, thing in zip(names, things, strict=True))
    index = rng.randrange(2)
    return f"{facts} What does {names[index]} have?", f"{names[index]} has {a(things[index])}."


def purchase_question(rng: random.Random) -> tuple[str, str]:
    """A small word problem."""
    name, food = pick(rng, NAMES), pick(rng, THINGS)
    first, second = rng.randint(2, 30), rng.randint(2, 30)
    question = f"{name} has {first} {food}s and buys {second} more. How many {food}s does {name} have?"
    return question, f"{name} has {first + second} {food}s."


def opposite_question(rng: random.Random) -> tuple[str, str]:
    """A word and its opposite, used with a thing so that no two questions need be the same."""
    pair = rng.choice(OPPOSITES)
    word, other = pair if rng.random() < 0.5 else pair[::-1]
    thing = pick(rng, THINGS)
    return f"The {thing} is not {word}. What is it?", f"The {thing} is {other}."


def sorting_question(rng: random.Random) -> tuple[str, str]:
    """Three or four numbers to put in order."""
    numbers = rng.sample(range(1, 100), rng.choice((3, 4)))
    asked = ", ".join(map(str, numbers))
    return f"Sort these numbers: {asked}.", ", ".join(map(str, sorted(numbers)))


QUESTIONS = (sum_question, order_question, recall_question, purchase_question, opposite_question, sorting_question)


def question(rng: random.Random) -> tuple[str, str]:
    """One question that needs no picture, and its answer."""
    return rng.choice(QUESTIONS)(rng)
