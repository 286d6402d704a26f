"""Sample sets of drawn images, generated from seeds: for calibration, and for the test with held-out content."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_weights.tower.framed_scenes import draw_scene
from calibration.make_sets import from_scene, manifest_line

LARGE_EVERY = 4  # every fourth image is large


def write_image_set(folder: Path, count: int, held_out: bool, more: Sequence[dict[str, Any]] = ()) -> None:
    """Write a set of `count` images with one question each, then `more` lines of a manifest without images.

    Smaller sets are the beginnings of larger ones.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    lines = [*_write_images(partial, count, held_out), *more]
    (partial / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    partial.rename(folder)


def _write_images(folder: Path, count: int, held_out: bool) -> Iterator[dict[str, Any]]:
    kind = "test" if held_out else "calibration"
    for number in range(count):
        rng = random.Random(f"{kind}/{number}")
        scene = draw_scene(rng, number % LARGE_EVERY == LARGE_EVERY - 1, held_out)
        drawn = from_scene(scene)
        line = manifest_line(scene.skill, number, drawn)
        (folder / line["image"]).write_bytes(drawn.png or b"")
        yield line
