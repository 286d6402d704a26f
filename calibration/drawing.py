"""Shapes, signs and bars on a Pillow canvas: the vocabulary that the scenes are drawn with."""

import math
import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (214, 40, 40),
    "green": (42, 157, 72),
    "blue": (38, 70, 200),
    "yellow": (245, 200, 30),
    "purple": (120, 40, 160),
    "orange": (245, 130, 30),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
BACKGROUNDS: dict[str, Color] = {
    "gray": (150, 150, 150),
    "pink": (250, 190, 200),
    "cream": (245, 235, 210),
    "sky": (170, 210, 240),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": 0.11, "large": 0.20}


@dataclass(frozen=True)
class Canvas:
    """A square picture being drawn, `side` pixels wide."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    side: int
    background: str


@dataclass(frozen=True)
class Thing:
    """One object in a picture, in the words that an answer would use."""

    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Glyph:
    """One character in a picture and the pixel that its middle lies on."""

    character: str
    x: float
    y: float


def new_canvas(rng: random.Random, side: int) -> Canvas:
    """An empty picture on one of the backgrounds, each a little lighter or darker than the last."""
    background = rng.choice(list(BACKGROUNDS))
    image = Image.new("RGB", (side, side), shaded(rng, BACKGROUNDS[background]))
    return Canvas(image, ImageDraw.Draw(image), side, background)


def shaded(rng: random.Random, color: Color) -> Color:
    """The same colour under a slightly different light."""
    light = rng.randint(-6, 4)
    red, green, blue = (min(255, max(0, channel + light)) for channel in color)
    return red, green, blue


def random_thing(rng: random.Random) -> Thing:
    """Any of the 96 things."""
    return Thing(rng.choice(list(SIZES)), rng.choice(list(COLORS)), rng.choice(SHAPES))


def star_points(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The ten corners of a five-pointed star."""
    reach = [radius if corner % 2 == 0 else radius * 0.42 for corner in range(10)]
    turns = [corner * math.pi / 5 for corner in range(10)]
    return [(x + r * math.sin(turn), y - r * math.cos(turn)) for r, turn in zip(reach, turns, strict=True)]


def draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, color: Color) -> None:
    """One filled shape around (x, y)."""
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=color)
    elif shape == "ring":
        pen.ellipse(box, outline=color, width=max(2, int(radius * 0.38)))
    elif shape == "square":
        pen.rectangle((x - radius * 0.88, y - radius * 0.88, x + radius * 0.88, y + radius * 0.88), fill=color)
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius * 0.8), (x + radius, y + radius * 0.8)], fill=color)
    elif shape == "star":
        pen.polygon(star_points(x, y, radius), fill=color)
    else:
        pen.rectangle((x - radius * 0.3, y - radius, x + radius * 0.3, y + radius), fill=color)
        pen.rectangle((x - radius, y - radius * 0.3, x + radius, y + radius * 0.3), fill=color)


def draw_thing(canvas: Canvas, thing: Thing, x: float, y: float, scale: float) -> None:
    """A thing whose large form has a radius of a fifth of `scale` pixels."""
    draw_shape(canvas.pen, thing.shape, x, y, SIZES[thing.size] * scale, COLORS[thing.color])


@cache
def font(height: int) -> ImageFont.FreeTypeFont:
    """The typeface embedded in Pillow itself, so that the same pixels come out on every machine."""
    face = ImageFont.load_default(size=height)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType, which drawing text needs")
    return face


def text_size(canvas: Canvas, text: str, height: int) -> tuple[float, float]:
    """Width and height in pixels of a line of text."""
    left, top, right, bottom = canvas.pen.textbbox((0, 0), text, font=font(height))
    return right - left, bottom - top


def fitting_height(canvas: Canvas, text: str, height: int, room: float) -> int:
    """The largest height up to `height` at which the text is at most `room` pixels wide."""
    while height > 8 and text_size(canvas, text, height)[0] > room:
        height -= 1
    return height


def draw_text(canvas: Canvas, text: str, x: float, y: float, height: int, color: str) -> tuple[Glyph, ...]:
    """A line of text centred at (x, y), with a thin stroke so that small text stays readable; where its letters are."""
    canvas.pen.text((x, y), text, fill=COLORS[color], font=font(height), anchor="mm", stroke_width=height // 18)
    left = x - canvas.pen.textlength(text, font=font(height)) / 2
    ends = [left + canvas.pen.textlength(text[: index + 1], font=font(height)) for index in range(len(text))]
    return tuple(Glyph(c, (a + b) / 2, y) for c, a, b in zip(text, [left, *ends], ends, strict=False))


def draw_bar(canvas: Canvas, left: float, right: float, value: int, color: str) -> None:
    """A bar `value` steps high, standing on the floor of a chart with nine steps."""
    floor = canvas.side * 0.92
    top = floor - value * canvas.side * 0.092
    canvas.pen.rectangle((left, top, right, floor), fill=COLORS[color])


def draw_chart_lines(canvas: Canvas) -> None:
    """Nine thin lines, the third and sixth a little stronger, to read a bar's height against."""
    for step in range(10):
        y = canvas.side * (0.92 - step * 0.092)
        shade = 90 if step % 3 == 0 else 125
        canvas.pen.line((0, y, canvas.side, y), fill=(shade, shade, shade))
