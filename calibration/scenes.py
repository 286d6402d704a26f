"""Generated images with questions that require the image; all content follows from the seed."""

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
    SceneObject,
    draw_bar,
    draw_chart_lines,
    draw_object,
    draw_shape,
    draw_text,
    fit_text_height,
    new_canvas,
    random_object,
)
from calibration.phrases import PLACES, random_text, with_article
from calibration.questions import (
    ask_about_chart,
    ask_about_labels,
    ask_about_objects,
    ask_about_quarters,
    ask_about_text,
    ask_to_count,
)

QuestionGenerator = Callable[[random.Random], tuple[str, str]]
PALE_COLORS = frozenset({"yellow", "white", "orange"})


@dataclass(frozen=True)
class SceneLabels:
    """Content of an image, the training labels of the vision tower before it learns from answers."""

    objects: tuple[SceneObject | None, SceneObject | None, SceneObject | None, SceneObject | None] = (
        None,
        None,
        None,
        None,
    )
    glyphs: tuple[Glyph, ...] = ()
    count: int = 0
    bars: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scene:
    """An image, one question about it and the answer; `generate_question` returns further pairs."""

    image: Image.Image
    question: str
    answer: str
    skill: str
    labels: SceneLabels
    generate_question: QuestionGenerator


def place_center(place: str, side: int) -> tuple[float, float]:
    """Return the center of one quarter of the image."""
    quarter = PLACES.index(place)
    return (quarter % 2 + 0.5) * side / 2, (quarter // 2 + 0.5) * side / 2


def jitter(rng: random.Random, point: tuple[float, float], amount: float) -> tuple[float, float]:
    """Return a point moved by up to `amount` pixels in each direction."""
    return point[0] + rng.uniform(-amount, amount), point[1] + rng.uniform(-amount, amount)


def objects_scene(rng: random.Random, side: int) -> Scene:
    """Draw one to four objects in the quarters of the image."""
    canvas = new_canvas(rng, side)
    places = rng.sample(PLACES, rng.choice((1, 2, 2, 3, 3, 4)))
    objects = {place: random_object(rng) for place in places}
    for place, item in objects.items():
        draw_object(canvas, item, *jitter(rng, place_center(place, side), side * 0.035), side)
    ask = partial(ask_about_objects, background=canvas.background, objects=objects)
    first, second, third, fourth = (objects.get(place) for place in PLACES)
    return Scene(canvas.image, *ask(rng), "objects", SceneLabels(objects=(first, second, third, fourth)), ask)


def counting_scene(rng: random.Random, side: int) -> Scene:
    """Draw one to nine equal shapes."""
    canvas = new_canvas(rng, side)
    number, shape, color = rng.randint(1, 9), rng.choice(SHAPES), rng.choice(list(COLORS))
    for cell in rng.sample(range(9), number):
        center = (cell % 3 + 0.5) * side / 3, (cell // 3 + 0.5) * side / 3
        draw_shape(canvas.pen, shape, *jitter(rng, center, side * 0.04), side * 0.09, COLORS[color])
    ask = partial(ask_to_count, background=canvas.background, number=number, shape=shape, color=color)
    return Scene(canvas.image, *ask(rng), "counting", SceneLabels(count=number), ask)


def text_color(rng: random.Random, canvas: Canvas) -> str:
    """Return a color with contrast to the background."""
    pale = canvas.background in {"cream", "pink"}
    return rng.choice([color for color in COLORS if not (pale and color in PALE_COLORS)])


def reading_scene(rng: random.Random, side: int) -> Scene:
    """Draw a word, code, number, time or price, or two lines of them."""
    canvas = new_canvas(rng, side)
    readings = [random_text(rng) for _ in range(rng.choice((1, 1, 2)))]
    colors = [text_color(rng, canvas) for _ in readings]
    glyphs: tuple[Glyph, ...] = ()
    for line, ((_, text), color) in enumerate(zip(readings, colors, strict=True)):
        height = fit_text_height(canvas, text, rng.randint(int(side * 0.17), int(side * 0.27)), side * 0.92)
        slack = side * 0.46 - canvas.pen.textlength(text, font_size=height) / 2
        x = side / 2 + rng.uniform(-1, 1) * max(0.0, slack)
        y = side * (line + 0.5) / len(readings) + rng.uniform(-1, 1) * side * (0.3 if len(readings) == 1 else 0.08)
        glyphs += draw_text(canvas, text, x, y, height, color)
    ask = partial(ask_about_text, background=canvas.background, readings=readings, colors=colors)
    return Scene(canvas.image, *ask(rng), "reading", SceneLabels(glyphs=glyphs), ask)


def chart_scene(rng: random.Random, side: int) -> Scene:
    """Draw three or four colored bars with heights from one to nine."""
    canvas = new_canvas(rng, side)
    draw_chart_lines(canvas)
    colors = rng.sample([color for color in COLORS if color != "white"], rng.choice((3, 4)))
    values = [rng.randint(1, 9) for _ in colors]
    pitch = side / len(colors)
    for index, (color, value) in enumerate(zip(colors, values, strict=True)):
        draw_bar(canvas, (index + 0.2) * pitch, (index + 0.8) * pitch, value, color)
    ask = partial(ask_about_chart, bars=dict(zip(colors, values, strict=True)))
    return Scene(canvas.image, *ask(rng), "chart", SceneLabels(bars=tuple(values)), ask)


def labels_scene(rng: random.Random, side: int) -> Scene:
    """Draw two to four colored numbers in the quarters."""
    canvas = new_canvas(rng, side)
    places = sorted(rng.sample(PLACES, rng.choice((2, 3, 4))), key=PLACES.index)
    colors = rng.sample([color for color in COLORS if color not in PALE_COLORS], len(places))
    values = [str(rng.randint(1, 99)) for _ in places]
    glyphs: tuple[Glyph, ...] = ()
    for place, color, value in zip(places, colors, values, strict=True):
        center = jitter(rng, place_center(place, side), side * 0.05)
        glyphs += draw_text(canvas, value, *center, int(side * 0.2), color)
    ask = partial(ask_about_labels, places=places, colors=colors, values=values)
    return Scene(canvas.image, *ask(rng), "labels", SceneLabels(glyphs=glyphs), ask)


def draw_quarter(rng: random.Random, canvas: Canvas, center: tuple[float, float]) -> str:
    """Draw a small text or object in one quarter of a sliced image and return its description."""
    if rng.random() < 0.6:
        kind, text = random_text(rng)
        color = text_color(rng, canvas)
        draw_text(canvas, text, *jitter(rng, center, canvas.side * 0.06), rng.randint(17, 23), color)
        return f"the {kind} {text} in {color}"
    item = random_object(rng)
    draw_object(canvas, item, *jitter(rng, center, canvas.side * 0.05), canvas.side / 2)
    return with_article(str(item))


def sliced_scene(rng: random.Random, side: int) -> Scene:
    """Draw an image of two slices by two, with small content that the overview alone does not resolve."""
    canvas = new_canvas(rng, side * 2)
    places = sorted(rng.sample(PLACES, rng.choice((2, 3, 3, 4))), key=PLACES.index)
    contents = {place: draw_quarter(rng, canvas, place_center(place, side * 2)) for place in places}
    ask = partial(ask_about_quarters, contents=contents)
    return Scene(canvas.image, *ask(rng), "sliced", SceneLabels(), ask)


SINGLE_SLICE_SCENES: tuple[tuple[Callable[[random.Random, int], Scene], float], ...] = (
    (objects_scene, 0.32),
    (reading_scene, 0.30),
    (chart_scene, 0.13),
    (counting_scene, 0.10),
    (labels_scene, 0.15),
)


def single_scene(rng: random.Random, side: int = 112) -> Scene:
    """Draw an image of one slice, `side` pixels wide."""
    draw = rng.choices([make for make, _ in SINGLE_SLICE_SCENES], [weight for _, weight in SINGLE_SLICE_SCENES])[0]
    return draw(rng, side)
