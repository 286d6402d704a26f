"""Questions about generated images, with answers from the scene description."""

import random

from calibration.drawing import COLORS, SHAPES, SceneObject
from calibration.phrases import NUMBERS, PLACES, capitalize_first, join_list, with_article


def ask_about_objects(rng: random.Random, background: str, objects: dict[str, SceneObject]) -> tuple[str, str]:
    """Return one of six questions about objects and their places."""
    place = rng.choice(list(objects))
    item = objects[place]
    choice = rng.random()
    if choice < 0.4:
        return describe_objects(rng, background, objects)
    if choice < 0.55:
        return f"What is at the {place}?", f"{capitalize_first(with_article(str(item)))}."
    if choice < 0.65:
        return f"What color is the {item.shape} at the {place}?", f"The {item.shape} is {item.color}."
    if choice < 0.75:
        return ask_location(rng, objects)
    if choice < 0.9:
        return ask_presence(rng, objects)
    return count_color(rng, objects)


def describe_objects(rng: random.Random, background: str, objects: dict[str, SceneObject]) -> tuple[str, str]:
    """Return a description of all objects in random order."""
    parts = [f"{with_article(str(item))} at the {place}" for place, item in objects.items()]
    rng.shuffle(parts)
    question = rng.choice(("Describe the picture.", "What do you see?", "What is in the picture?"))
    openings = ("There is ", f"On a {background} background there is ", "I see ", "The picture shows ")
    return question, f"{rng.choice(openings)}{join_list(parts)}."


def ask_location(rng: random.Random, objects: dict[str, SceneObject]) -> tuple[str, str]:
    """Return a question about the places of all objects of one color and shape."""
    item = rng.choice(list(objects.values()))
    name = f"{item.color} {item.shape}"
    places = [place for place, other in objects.items() if (other.color, other.shape) == (item.color, item.shape)]
    places.sort(key=PLACES.index)
    return f"Where is the {name}?", f"The {name} is at the {join_list(places)}."


def ask_presence(rng: random.Random, objects: dict[str, SceneObject]) -> tuple[str, str]:
    """Return a question whether an object similar to one in the image is present."""
    item = rng.choice(list(objects.values()))
    if rng.random() < 0.5:
        item = SceneObject(item.size, rng.choice(list(COLORS)), rng.choice((item.shape, rng.choice(SHAPES))))
    found = [other for other in objects.values() if (other.color, other.shape) == (item.color, item.shape)]
    name = with_article(f"{item.color} {item.shape}")
    question = f"Is there {name}?"
    if found:
        return question, f"Yes, there is {name}, and it is {found[0].size}."
    same_color = [other.shape for other in objects.values() if other.color == item.color]
    return question, f"No, the {same_color[0]} is {item.color}." if same_color else f"No, nothing is {item.color}."


def count_color(rng: random.Random, objects: dict[str, SceneObject]) -> tuple[str, str]:
    """Return a question about the number of objects and their colors."""
    colors = sorted(item.color for item in objects.values())
    number = NUMBERS[len(colors)]
    verb, noun = ("is", "object") if len(colors) == 1 else ("are", "objects")
    return "How many objects are there?", f"There {verb} {number} {noun}: {join_list(colors)}."


def ask_to_count(rng: random.Random, background: str, number: int, shape: str, color: str) -> tuple[str, str]:
    """Return one question about equal shapes."""
    plural = f"{shape}{'es' if shape == 'cross' else 's'}"
    noun = shape if number == 1 else plural
    return rng.choice(
        (
            (f"How many {plural} are there?", f"{capitalize_first(NUMBERS[number])}."),
            ("Count the objects.", f"There {'is' if number == 1 else 'are'} {NUMBERS[number]} {color} {noun}."),
            ("What do you see?", f"{capitalize_first(NUMBERS[number])} {color} {noun} on a {background} background."),
        )
    )


def ask_about_text(
    rng: random.Random, background: str, readings: list[tuple[str, str]], colors: list[str]
) -> tuple[str, str]:
    """Return one question about the lines of text in an image."""
    line = rng.randrange(len(readings))
    kind, text = readings[line]
    names = {"word": "sign", "code": "code", "number": "number", "time": "clock", "price": "price"}
    where = "" if len(readings) == 1 else (" at the top" if line == 0 else " at the bottom")
    choice = rng.random()
    if choice < 0.2:
        return f"What color is the text{where}?", f"The text{where} is {colors[line]}."
    if choice < 0.5:
        parts = [f"the {names[kind]} {text} in {color}" for (kind, text), color in zip(readings, colors, strict=True)]
        return "Describe the picture.", f"{capitalize_first(join_list(parts))} on a {background} background."
    if choice < 0.7:
        return "Read the text.", " ".join(text for _, text in readings)
    return f"What does the {names[kind]}{where} say?", f"The {names[kind]} says {text}."


def ask_about_chart(rng: random.Random, bars: dict[str, int]) -> tuple[str, str]:
    """Return one question about the heights of bars."""
    color = rng.choice(list(bars))
    choice = rng.random()
    if choice < 0.35:
        return f"How high is the {color} bar?", f"The {color} bar is {bars[color]} high."
    if choice < 0.75:
        return (
            "Describe the chart.",
            f"{capitalize_first(join_list([f'{color} is {value}' for color, value in bars.items()]))}.",
        )
    other = rng.choice([name for name in bars if name != color])
    words = {1: "higher than", 0: "as high as", -1: "lower than"}
    sign = (bars[color] > bars[other]) - (bars[color] < bars[other])
    answer = f"The {color} bar is {words[sign]} the {other} bar, {bars[color]} against {bars[other]}."
    return f"Compare the {color} bar and the {other} bar.", answer


def ask_about_labels(rng: random.Random, places: list[str], colors: list[str], values: list[str]) -> tuple[str, str]:
    """Return one question about numbers and their places."""
    index = rng.randrange(len(places))
    parts = [f"{value} in {color}" for value, color in zip(values, colors, strict=True)]
    return rng.choice(
        (
            (f"Which number is at the {places[index]}?", f"{values[index]}, in {colors[index]}."),
            (f"Which number is {colors[index]}?", f"{values[index]}, at the {places[index]}."),
            (f"Where is {values[index]}?", f"At the {places[index]}, in {colors[index]}."),
            ("Read all numbers.", f"{capitalize_first(join_list(parts))}."),
        )
    )


def ask_about_quarters(rng: random.Random, contents: dict[str, str]) -> tuple[str, str]:
    """Return one question about small objects in the quarters of a large image."""
    place = rng.choice(PLACES)
    choice = rng.random()
    if choice < 0.6:
        return f"What is at the {place}?", f"{capitalize_first(contents[place])}." if place in contents else "Nothing."
    if choice < 0.75:
        place = rng.choice(list(contents))
        return f"Where is {contents[place]}?", f"At the {place}."
    parts = [f"{content} at the {place}" for place, content in contents.items()]
    return "Describe the picture.", f"There is {join_list(parts)}."
