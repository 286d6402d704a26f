"""Shapes, signs and bars on a Pillow canvas."""

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
    """A square image that is being drawn, `side` pixels wide."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    side: int
    background: str


@dataclass(frozen=True)
class SceneObject:
    """One object in an image, in the words of an answer."""

    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Glyph:
    """One character in an image and the pixel at its center."""

    character: str
    x: float
    y: float


def new_canvas(rng: random.Random, side: int) -> Canvas:
    """Return an empty image on a random background of random brightness."""
    background = rng.choice(list(BACKGROUNDS))
    image = Image.new("RGB", (side, side), shift_brightness(rng, BACKGROUNDS[background]))
    return Canvas(image, ImageDraw.Draw(image), side, background)


def shift_brightness(rng: random.Random, color: Color) -> Color:
    """Return the color with a small random change of brightness."""
    light = rng.randint(-6, 4)
    red, green, blue = (min(255, max(0, channel + light)) for channel in color)
    return red, green, blue


def random_object(rng: random.Random) -> SceneObject:
    """Return one of the 96 objects."""
    return SceneObject(rng.choice(list(SIZES)), rng.choice(list(COLORS)), rng.choice(SHAPES))


def star_points(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Return the ten corners of a five-pointed star."""
    reach = [radius if corner % 2 == 0 else radius * 0.42 for corner in range(10)]
    turns = [corner * math.pi / 5 for corner in range(10)]
    return [(x + r * math.sin(turn), y - r * math.cos(turn)) for r, turn in zip(reach, turns, strict=True)]


def draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, color: Color) -> None:
    """Draw one filled shape around (x, y)."""
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


def draw_object(canvas: Canvas, scene_object: SceneObject, x: float, y: float, scale: float) -> None:
    """Draw an object; a large one has a radius of a fifth of `scale` pixels."""
    draw_shape(canvas.pen, scene_object.shape, x, y, SIZES[scene_object.size] * scale, COLORS[scene_object.color])


@cache
def font(height: int) -> ImageFont.FreeTypeFont:
    """Return the typeface embedded in Pillow, so that all machines draw the same pixels.

    Raises:
        RuntimeError: Pillow has no FreeType.
    """
    face = ImageFont.load_default(size=height)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType, which drawing text needs")
    return face


def text_size(canvas: Canvas, text: str, height: int) -> tuple[float, float]:
    """Return width and height of a line of text in pixels."""
    left, top, right, bottom = canvas.pen.textbbox((0, 0), text, font=font(height))
    return right - left, bottom - top


def fit_text_height(canvas: Canvas, text: str, height: int, max_width: float) -> int:
    """Return the largest height up to `height` at which the text is at most `max_width` pixels wide."""
    while height > 8 and text_size(canvas, text, height)[0] > max_width:
        height -= 1
    return height


def draw_text(canvas: Canvas, text: str, x: float, y: float, height: int, color: str) -> tuple[Glyph, ...]:
    """Draw a line of text centered at (x, y), with a thin stroke; return the letter positions."""
    canvas.pen.text((x, y), text, fill=COLORS[color], font=font(height), anchor="mm", stroke_width=height // 18)
    left = x - canvas.pen.textlength(text, font=font(height)) / 2
    ends = [left + canvas.pen.textlength(text[: index + 1], font=font(height)) for index in range(len(text))]
    return tuple(Glyph(c, (a + b) / 2, y) for c, a, b in zip(text, [left, *ends], ends, strict=False))


def draw_bar(canvas: Canvas, left: float, right: float, value: int, color: str) -> None:
    """Draw a bar of `value` steps on the base line of a chart with nine steps."""
    floor = canvas.side * 0.92
    top = floor - value * canvas.side * 0.092
    canvas.pen.rectangle((left, top, right, floor), fill=COLORS[color])


def draw_chart_lines(canvas: Canvas) -> None:
    """Draw nine thin grid lines; every third line is darker."""
    for step in range(10):
        y = canvas.side * (0.92 - step * 0.092)
        shade = 90 if step % 3 == 0 else 125
        canvas.pen.line((0, y, canvas.side, y), fill=(shade, shade, shade))
