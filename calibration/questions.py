"""Questions about drawn pictures, and the answers that whoever drew them knows."""

import random

from calibration.drawing import COLORS, SHAPES, Thing
from calibration.phrases import NUMBERS, PLACES, article, capital, listed


def ask_about_objects(rng: random.Random, background: str, things: dict[str, Thing]) -> tuple[str, str]:
    """One of six questions about things in places."""
    place = rng.choice(list(things))
    thing = things[place]
    choice = rng.random()
    if choice < 0.4:
        return describe_objects(rng, background, things)
    if choice < 0.55:
        return f"What is at the {place}?", f"{capital(article(str(thing)))}."
    if choice < 0.65:
        return f"What color is the {thing.shape} at the {place}?", f"The {thing.shape} is {thing.color}."
    if choice < 0.75:
        return ask_where(rng, things)
    if choice < 0.9:
        return ask_whether(rng, things)
    return count_color(rng, things)


def describe_objects(rng: random.Random, background: str, things: dict[str, Thing]) -> tuple[str, str]:
    """Everything in the picture, in any order, as people would say it."""
    parts = [f"{article(str(thing))} at the {place}" for place, thing in things.items()]
    rng.shuffle(parts)
    question = rng.choice(("Describe the picture.", "What do you see?", "What is in the picture?"))
    openings = ("There is ", f"On a {background} background there is ", "I see ", "The picture shows ")
    return question, f"{rng.choice(openings)}{listed(parts)}."


def ask_where(rng: random.Random, things: dict[str, Thing]) -> tuple[str, str]:
    """Where the only thing of its colour and shape is, or which there are if it is not the only one."""
    thing = rng.choice(list(things.values()))
    name = f"{thing.color} {thing.shape}"
    places = [place for place, other in things.items() if (other.color, other.shape) == (thing.color, thing.shape)]
    places.sort(key=PLACES.index)
    return f"Where is the {name}?", f"The {name} is at the {listed(places)}."


def ask_whether(rng: random.Random, things: dict[str, Thing]) -> tuple[str, str]:
    """Whether something like a thing in the picture is there."""
    thing = rng.choice(list(things.values()))
    if rng.random() < 0.5:
        thing = Thing(thing.size, rng.choice(list(COLORS)), rng.choice((thing.shape, rng.choice(SHAPES))))
    found = [other for other in things.values() if (other.color, other.shape) == (thing.color, thing.shape)]
    name = article(f"{thing.color} {thing.shape}")
    question = f"Is there {name}?"
    if found:
        return question, f"Yes, there is {name}, and it is {found[0].size}."
    same_color = [other.shape for other in things.values() if other.color == thing.color]
    return question, f"No, the {same_color[0]} is {thing.color}." if same_color else f"No, nothing is {thing.color}."


def count_color(rng: random.Random, things: dict[str, Thing]) -> tuple[str, str]:
    """How many things there are and of which colours."""
    colors = sorted(thing.color for thing in things.values())
    number = NUMBERS[len(colors)]
    verb, noun = ("is", "object") if len(colors) == 1 else ("are", "objects")
    return "How many objects are there?", f"There {verb} {number} {noun}: {listed(colors)}."


def ask_to_count(rng: random.Random, background: str, number: int, shape: str, color: str) -> tuple[str, str]:
    """One question about equal things."""
    plural = f"{shape}{'es' if shape == 'cross' else 's'}"
    noun = shape if number == 1 else plural
    return rng.choice(
        (
            (f"How many {plural} are there?", f"{capital(NUMBERS[number])}."),
            ("Count the objects.", f"There {'is' if number == 1 else 'are'} {NUMBERS[number]} {color} {noun}."),
            ("What do you see?", f"{capital(NUMBERS[number])} {color} {noun} on a {background} background."),
        )
    )


def ask_about_text(
    rng: random.Random, background: str, readings: list[tuple[str, str]], colors: list[str]
) -> tuple[str, str]:
    """One question about the lines of text in a picture."""
    line = rng.randrange(len(readings))
    kind, text = readings[line]
    names = {"word": "sign", "code": "code", "number": "number", "time": "clock", "price": "price"}
    where = "" if len(readings) == 1 else (" at the top" if line == 0 else " at the bottom")
    choice = rng.random()
    if choice < 0.2:
        return f"What color is the text{where}?", f"The text{where} is {colors[line]}."
    if choice < 0.5:
        parts = [f"the {names[kind]} {text} in {color}" for (kind, text), color in zip(readings, colors, strict=True)]
        return "Describe the picture.", f"{capital(listed(parts))} on a {background} background."
    if choice < 0.7:
        return "Read the text.", " ".join(text for _, text in readings)
    return f"What does the {names[kind]}{where} say?", f"The {names[kind]} says {text}."


def ask_about_chart(rng: random.Random, bars: dict[str, int]) -> tuple[str, str]:
    """One question about heights."""
    color = rng.choice(list(bars))
    choice = rng.random()
    if choice < 0.35:
        return f"How high is the {color} bar?", f"The {color} bar is {bars[color]} high."
    if choice < 0.75:
        return "Describe the chart.", f"{capital(listed([f'{color} is {value}' for color, value in bars.items()]))}."
    other = rng.choice([name for name in bars if name != color])
    words = {1: "higher than", 0: "as high as", -1: "lower than"}
    sign = (bars[color] > bars[other]) - (bars[color] < bars[other])
    answer = f"The {color} bar is {words[sign]} the {other} bar, {bars[color]} against {bars[other]}."
    return f"Compare the {color} bar and the {other} bar.", answer


def ask_about_labels(rng: random.Random, places: list[str], colors: list[str], values: list[str]) -> tuple[str, str]:
    """One question about numbers in places."""
    index = rng.randrange(len(places))
    parts = [f"{value} in {color}" for value, color in zip(values, colors, strict=True)]
    return rng.choice(
        (
            (f"Which number is at the {places[index]}?", f"{values[index]}, in {colors[index]}."),
            (f"Which number is {colors[index]}?", f"{values[index]}, at the {places[index]}."),
            (f"Where is {values[index]}?", f"At the {places[index]}, in {colors[index]}."),
            ("Read all numbers.", f"{capital(listed(parts))}."),
        )
    )


def ask_about_quarters(rng: random.Random, contents: dict[str, str]) -> tuple[str, str]:
    """One question about small things in the quarters of a large picture."""
    place = rng.choice(PLACES)
    choice = rng.random()
    if choice < 0.6:
        return f"What is at the {place}?", f"{capital(contents[place])}." if place in contents else "Nothing."
    if choice < 0.75:
        place = rng.choice(list(contents))
        return f"Where is {contents[place]}?", f"At the {place}."
    parts = [f"{content} at the {place}" for place, content in contents.items()]
    return "Describe the picture.", f"There is {listed(parts)}."
