"""Drawn pictures with a question and an answer that can only be known by looking; everything follows from the seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from PIL import Image

from calibration.drawing import (
    COLORS,
    SHAPES,
    Canvas,
    Glyph,
    Thing,
    draw_bar,
    draw_chart_lines,
    draw_shape,
    draw_text,
    draw_thing,
    fitting_height,
    new_canvas,
    random_thing,
)
from calibration.phrases import PLACES, article, random_reading
from calibration.questions import (
    ask_about_chart,
    ask_about_labels,
    ask_about_objects,
    ask_about_quarters,
    ask_about_text,
    ask_to_count,
)

Ask = Callable[[random.Random], tuple[str, str]]
PALE = frozenset({"yellow", "white", "orange"})


@dataclass(frozen=True)
class Labels:
    """What is in a picture, for teaching the vision tower before it has words."""

    things: tuple[Thing | None, Thing | None, Thing | None, Thing | None] = (None, None, None, None)
    glyphs: tuple[Glyph, ...] = ()
    count: int = 0
    bars: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A picture, one question about it and the answer; `kind` names the skill it takes, `ask` finds more to ask."""

    image: Image.Image
    question: str
    answer: str
    kind: str
    labels: Labels
    ask: Ask


def place_center(place: str, side: int) -> tuple[float, float]:
    """The middle of one quarter of the picture."""
    quarter = PLACES.index(place)
    return (quarter % 2 + 0.5) * side / 2, (quarter // 2 + 0.5) * side / 2


def jittered(rng: random.Random, point: tuple[float, float], amount: float) -> tuple[float, float]:
    """A point up to `amount` pixels away in each direction."""
    return point[0] + rng.uniform(-amount, amount), point[1] + rng.uniform(-amount, amount)


def objects_scene(rng: random.Random, side: int) -> Scene:
    """One to four things in the quarters of the picture."""
    canvas = new_canvas(rng, side)
    places = rng.sample(PLACES, rng.choice((1, 2, 2, 3, 3, 4)))
    things = {place: random_thing(rng) for place in places}
    for place, thing in things.items():
        draw_thing(canvas, thing, *jittered(rng, place_center(place, side), side * 0.035), side)
    ask = partial(ask_about_objects, background=canvas.background, things=things)
    first, second, third, fourth = (things.get(place) for place in PLACES)
    return Scene(canvas.image, *ask(rng), "objects", Labels(things=(first, second, third, fourth)), ask)


def counting_scene(rng: random.Random, side: int) -> Scene:
    """One to nine equal shapes strewn over the picture."""
    canvas = new_canvas(rng, side)
    number, shape, color = rng.randint(1, 9), rng.choice(SHAPES), rng.choice(list(COLORS))
    for cell in rng.sample(range(9), number):
        center = (cell % 3 + 0.5) * side / 3, (cell // 3 + 0.5) * side / 3
        draw_shape(canvas.pen, shape, *jittered(rng, center, side * 0.04), side * 0.09, COLORS[color])
    ask = partial(ask_to_count, background=canvas.background, number=number, shape=shape, color=color)
    return Scene(canvas.image, *ask(rng), "counting", Labels(count=number), ask)


def text_color(rng: random.Random, canvas: Canvas) -> str:
    """A colour that can be told from the background."""
    pale = canvas.background in {"cream", "pink"}
    return rng.choice([color for color in COLORS if not (pale and color in PALE)])


def reading_scene(rng: random.Random, side: int) -> Scene:
    """A word, a code, a number, a time or a price; sometimes two lines of them."""
    canvas = new_canvas(rng, side)
    readings = [random_reading(rng) for _ in range(rng.choice((1, 1, 2)))]
    colors = [text_color(rng, canvas) for _ in readings]
    glyphs: tuple[Glyph, ...] = ()
    for line, ((_, text), color) in enumerate(zip(readings, colors, strict=True)):
        height = fitting_height(canvas, text, rng.randint(int(side * 0.17), int(side * 0.27)), side * 0.92)
        slack = side * 0.46 - canvas.pen.textlength(text, font_size=height) / 2
        x = side / 2 + rng.uniform(-1, 1) * max(0.0, slack)
        y = side * (line + 0.5) / len(readings) + rng.uniform(-1, 1) * side * (0.3 if len(readings) == 1 else 0.08)
        glyphs += draw_text(canvas, text, x, y, height, color)
    ask = partial(ask_about_text, background=canvas.background, readings=readings, colors=colors)
    return Scene(canvas.image, *ask(rng), "reading", Labels(glyphs=glyphs), ask)


def chart_scene(rng: random.Random, side: int) -> Scene:
    """Three or four coloured bars with heights from one to nine."""
    canvas = new_canvas(rng, side)
    draw_chart_lines(canvas)
    colors = rng.sample([color for color in COLORS if color != "white"], rng.choice((3, 4)))
    values = [rng.randint(1, 9) for _ in colors]
    pitch = side / len(colors)
    for index, (color, value) in enumerate(zip(colors, values, strict=True)):
        draw_bar(canvas, (index + 0.2) * pitch, (index + 0.8) * pitch, value, color)
    ask = partial(ask_about_chart, bars=dict(zip(colors, values, strict=True)))
    return Scene(canvas.image, *ask(rng), "chart", Labels(bars=tuple(values)), ask)


def labels_scene(rng: random.Random, side: int) -> Scene:
    """Two to four coloured numbers in the quarters, to be read and told apart by place and colour."""
    canvas = new_canvas(rng, side)
    places = sorted(rng.sample(PLACES, rng.choice((2, 3, 4))), key=PLACES.index)
    colors = rng.sample([color for color in COLORS if color not in PALE], len(places))
    values = [str(rng.randint(1, 99)) for _ in places]
    glyphs: tuple[Glyph, ...] = ()
    for place, color, value in zip(places, colors, values, strict=True):
        center = jittered(rng, place_center(place, side), side * 0.05)
        glyphs += draw_text(canvas, value, *center, int(side * 0.2), color)
    ask = partial(ask_about_labels, places=places, colors=colors, values=values)
    return Scene(canvas.image, *ask(rng), "labels", Labels(glyphs=glyphs), ask)


def quarter_content(rng: random.Random, canvas: Canvas, center: tuple[float, float]) -> str:
    """Something small in one quarter of a sliced picture, drawn; in words."""
    if rng.random() < 0.6:
        kind, text = random_reading(rng)
        color = text_color(rng, canvas)
        draw_text(canvas, text, *jittered(rng, center, canvas.side * 0.06), rng.randint(17, 23), color)
        return f"the {kind} {text} in {color}"
    thing = random_thing(rng)
    draw_thing(canvas, thing, *jittered(rng, center, canvas.side * 0.05), canvas.side / 2)
    return article(str(thing))


def sliced_scene(rng: random.Random, side: int) -> Scene:
    """A picture twice as large as a slice, with small things in its quarters that the overview alone does not show."""
    canvas = new_canvas(rng, side * 2)
    places = sorted(rng.sample(PLACES, rng.choice((2, 3, 3, 4))), key=PLACES.index)
    contents = {place: quarter_content(rng, canvas, place_center(place, side * 2)) for place in places}
    ask = partial(ask_about_quarters, contents=contents)
    return Scene(canvas.image, *ask(rng), "sliced", Labels(), ask)


SINGLE: tuple[tuple[Callable[[random.Random, int], Scene], float], ...] = (
    (objects_scene, 0.32),
    (reading_scene, 0.30),
    (chart_scene, 0.13),
    (counting_scene, 0.10),
    (labels_scene, 0.15),
)


def single_scene(rng: random.Random, side: int = 112) -> Scene:
    """A picture that is one slice, `side` pixels wide."""
    draw = rng.choices([make for make, _ in SINGLE], [weight for _, weight in SINGLE])[0]
    return draw(rng, side)
