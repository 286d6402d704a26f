"""Writes the starter and heldout sets: drawn pictures and generated texts with questions, answers, tags and hashes.

    python -m calibration.make_sets

The same bytes come out every time. The two sets are drawn from different seeds, and no picture and no text sample of
one is found in the other.
"""

import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from calibration import prose, scenes

ROOT = Path(__file__).parent
SIDE = 112
NONSQUARE = (
    (150, 100),
    (112, 84),
    (260, 130),
    (84, 112),
    (100, 150),
    (130, 260),
    (168, 112),
    (126, 98),
    (200, 150),
    (90, 120),
    (240, 160),
    (140, 70),
)


@dataclass(frozen=True)
class SetPlan:
    """How many samples of each sort a set has."""

    name: str
    single: int
    sliced: int
    questions: int
    continuations: int
    nonsquare: tuple[tuple[int, int], ...] = ()


SETS = (
    SetPlan("starter", single=96, sliced=24, questions=20, continuations=20),
    SetPlan("heldout", single=176, sliced=44, questions=36, continuations=36, nonsquare=NONSQUARE),
)


@dataclass(frozen=True)
class Drawn:
    """One sample before it has a number: PNG bytes or None, and its words."""

    png: bytes | None
    prompt: str
    answer: str
    tags: tuple[str, ...]

    @property
    def identity(self) -> str:
        """What must not come twice: the picture, or else the words."""
        return hashlib.sha256(self.png or f"{self.prompt}\0{self.answer}".encode()).hexdigest()


def png_bytes(image: Image.Image) -> bytes:
    """The picture as an optimised PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def from_scene(scene: scenes.Scene, *tags: str) -> Drawn:
    """A scene as a sample."""
    return Drawn(png_bytes(scene.image), scene.question, scene.answer, ("image", scene.kind, *tags))


def widened(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in the middle of a larger one of the same background."""
    canvas = Image.new("RGB", size, image.getpixel((0, 0)))
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def nonsquare(rng: random.Random, size: tuple[int, int]) -> Drawn:
    """A picture whose sides differ, which preprocessors do not all treat alike."""
    make = rng.choice((scenes.reading_scene, scenes.counting_scene))
    scene = make(rng, min(size))
    return from_scene(replace(scene, image=widened(scene.image, size)), "nonsquare")


def text_sample(pair: tuple[str, str], tag: str) -> Drawn:
    """A sample without a picture."""
    return Drawn(None, *pair, ("text", tag))


def fresh(make: Callable[[], Drawn], count: int, seen: set[str]) -> Iterator[Drawn]:
    """`count` samples that are not in `seen`, which grows with them."""
    while count:
        drawn = make()
        if drawn.identity not in seen:
            seen.add(drawn.identity)
            count -= 1
            yield drawn


def draw_set(plan: SetPlan, seen: set[str]) -> list[Drawn]:
    """All samples of a set, pictures and texts mixed."""
    rng = random.Random(f"calibration/{plan.name}")
    makers: tuple[tuple[Callable[[], Drawn], int], ...] = (
        (lambda: from_scene(scenes.single_scene(rng, SIDE)), plan.single),
        (lambda: from_scene(scenes.sliced_scene(rng, SIDE)), plan.sliced),
        (lambda: text_sample(prose.question(rng), "question"), plan.questions),
        (lambda: text_sample(prose.continuation(rng), "continuation"), plan.continuations),
    )
    drawn = [sample for make, count in makers for sample in fresh(make, count, seen)]
    rng.shuffle(drawn)
    for size in plan.nonsquare:
        drawn += fresh(lambda size=size: nonsquare(rng, size), 1, seen)  # type: ignore[misc]
    return drawn


def manifest_line(name: str, number: int, drawn: Drawn) -> dict[str, Any]:
    """One line of manifest.jsonl."""
    identifier = f"{name}-{number:04d}"
    line: dict[str, Any] = {"id": identifier}
    if drawn.png is not None:
        line["image"] = f"images/{identifier}.png"
        line["image_sha256"] = hashlib.sha256(drawn.png).hexdigest()
    return {**line, "prompt": drawn.prompt, "answer": drawn.answer, "tags": list(drawn.tags)}


def write_set(plan: SetPlan, samples: list[Drawn]) -> None:
    """manifest.jsonl and images/, replacing what was there."""
    directory = ROOT / plan.name
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "images").mkdir(parents=True)
    lines = []
    for number, drawn in enumerate(samples, start=1):
        line = manifest_line(plan.name, number, drawn)
        if drawn.png is not None:
            (directory / line["image"]).write_bytes(drawn.png)
        lines.append(json.dumps(line, ensure_ascii=False))
    (directory / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def check_disjoint(sets: dict[str, list[Drawn]]) -> None:
    """Raise ValueError if a picture or a text sample stands in two sets, or twice in one."""
    identities = [drawn.identity for samples in sets.values() for drawn in samples]
    if len(set(identities)) != len(identities):
        raise ValueError("a sample stands twice in the sets")


def main() -> None:
    """Both sets."""
    seen: set[str] = set()
    sets = {plan.name: draw_set(plan, seen) for plan in SETS}
    check_disjoint(sets)
    for plan in SETS:
        write_set(plan, sets[plan.name])
        print(f"{plan.name}: {len(sets[plan.name])} samples")


if __name__ == "__main__":
    main()
