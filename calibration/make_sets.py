"""Write the starter and heldout sets: generated images and texts with questions, answers, tags and hashes.

    python -m calibration.make_sets

The output is reproducible. The sets use different seeds and have no image and no text sample in common.
"""

import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
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
class SetSpec:
    """Number of samples of each kind in a set."""

    name: str
    single: int
    sliced: int
    questions: int
    continuations: int
    nonsquare: tuple[tuple[int, int], ...] = ()


SETS = (
    SetSpec("starter", single=96, sliced=24, questions=20, continuations=20),
    SetSpec("heldout", single=176, sliced=44, questions=36, continuations=36, nonsquare=NONSQUARE),
)


@dataclass(frozen=True)
class DraftSample:
    """One sample without a number: PNG bytes or None, and its texts."""

    png: bytes | None
    prompt: str
    answer: str
    tags: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Hash of the image, or of the texts without an image; unique in both sets."""
        return hashlib.sha256(self.png or f"{self.prompt}\0{self.answer}".encode()).hexdigest()


def png_bytes(image: Image.Image) -> bytes:
    """Encode the image as an optimized PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def from_scene(scene: scenes.Scene, *tags: str) -> DraftSample:
    """Return a scene as a sample."""
    return DraftSample(png_bytes(scene.image), scene.question, scene.answer, ("image", scene.skill, *tags))


def pad_to_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image in the middle of a larger one with the same background."""
    canvas = Image.new("RGB", size, image.getpixel((0, 0)))
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def nonsquare_sample(rng: random.Random, size: tuple[int, int]) -> DraftSample:
    """Return a sample whose image is not square, because preprocessors differ on such images."""
    make = rng.choice((scenes.reading_scene, scenes.counting_scene))
    scene = make(rng, min(size))
    return from_scene(replace(scene, image=pad_to_size(scene.image, size)), "nonsquare")


def text_sample(pair: tuple[str, str], tag: str) -> DraftSample:
    """Return a sample without an image."""
    return DraftSample(None, *pair, ("text", tag))


def unique_samples(make: Callable[[], DraftSample], count: int, seen: set[str]) -> Iterator[DraftSample]:
    """Yield `count` samples whose identities are not in `seen`, and add them to `seen`."""
    while count:
        drawn = make()
        if drawn.identity not in seen:
            seen.add(drawn.identity)
            count -= 1
            yield drawn


def generate_set(plan: SetSpec, seen: set[str]) -> list[DraftSample]:
    """Return all samples of a set, images and texts mixed."""
    rng = random.Random(f"calibration/{plan.name}")
    makers: tuple[tuple[Callable[[], DraftSample], int], ...] = (
        (lambda: from_scene(scenes.single_scene(rng, SIDE)), plan.single),
        (lambda: from_scene(scenes.sliced_scene(rng, SIDE)), plan.sliced),
        (lambda: text_sample(prose.question(rng), "question"), plan.questions),
        (lambda: text_sample(prose.continuation(rng), "continuation"), plan.continuations),
    )
    drawn = [sample for make, count in makers for sample in unique_samples(make, count, seen)]
    rng.shuffle(drawn)
    for size in plan.nonsquare:
        drawn += unique_samples(partial(nonsquare_sample, rng, size), 1, seen)
    return drawn


def manifest_line(name: str, number: int, drawn: DraftSample) -> dict[str, Any]:
    """Return one line of manifest.jsonl."""
    identifier = f"{name}-{number:04d}"
    line: dict[str, Any] = {"id": identifier}
    if drawn.png is not None:
        line["image"] = f"images/{identifier}.png"
        line["image_sha256"] = hashlib.sha256(drawn.png).hexdigest()
    return {**line, "prompt": drawn.prompt, "answer": drawn.answer, "tags": list(drawn.tags)}


def write_set(plan: SetSpec, samples: list[DraftSample]) -> None:
    """Replace manifest.jsonl and images/."""
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


def check_disjoint(sets: dict[str, list[DraftSample]]) -> None:
    """Check that no image and no text sample occurs twice.

    Raises:
        ValueError: a sample occurs twice.
    """
    identities = [drawn.identity for samples in sets.values() for drawn in samples]
    if len(set(identities)) != len(identities):
        raise ValueError("a sample occurs twice in the sets")


def main() -> None:
    """Write both sets."""
    seen: set[str] = set()
    sets = {plan.name: generate_set(plan, seen) for plan in SETS}
    check_disjoint(sets)
    for plan in SETS:
        write_set(plan, sets[plan.name])
        print(f"{plan.name}: {len(sets[plan.name])} samples")


if __name__ == "__main__":
    main()
