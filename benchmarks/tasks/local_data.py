"""A sample set as a task of lmms-eval: `python -m benchmarks.tasks.local_data` writes the data file.

lmms-eval runs in an environment of its own and imports this module from its folder, without mcpmq.
"""

import json
import sys
from pathlib import Path
from typing import Any

HELDOUT = Path(__file__).parent.parent.parent / "calibration" / "heldout"


def images(sample: dict[str, Any]) -> list[Any]:
    """Return the image of a sample."""
    from PIL import Image

    return [Image.open(sample["image"]).convert("RGB")]


def prompt(sample: dict[str, Any], _: Any = None) -> str:
    """Return the prompt of a sample."""
    return str(sample["prompt"])


def scores(sample: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Return 1 if the answer is the expected one, else 0."""
    return {"exact": float(answers[0].strip() == sample["answer"].strip())}


def main(folder: Path = HELDOUT, out: Path = Path("heldout.jsonl")) -> None:
    """Write the samples with an image as JSON lines, with absolute paths of the images."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    kept = [{**line, "image": str(folder / line["image"])} for line in lines if line.get("image")]
    fields = ("id", "image", "prompt", "answer")
    out.write_text("".join(json.dumps({name: line[name] for name in fields}) + "\n" for line in kept))
    sys.stdout.write(f"{len(kept)} samples in {out}\n")


if __name__ == "__main__":
    main()
