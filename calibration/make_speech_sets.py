"""Generate sets of phrases: `speech_sets/starter` to calibrate with, `speech_sets/heldout` to measure.

    python -m calibration.make_speech_sets

Every phrase is in one set only, in one of five voices, as 8-bit PCM at 16 kHz. Answers are those of the phrase.
"""

import hashlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calibration.speech import RATE, VOICES, Samples, speak
from calibration.speech_phrases import phrase, questions, written

ROOT = Path(__file__).parent / "speech_sets"
SETS = {"starter": (56, 24), "heldout": (64, 24)}  # samples with speech, and without


def wav(samples: Samples) -> bytes:
    """Return a WAV file of unsigned bytes."""
    data = (np.clip(np.round(samples * 128), -128, 127) + 128).astype(np.uint8).tobytes()
    data += bytes(len(data) % 2)
    header = struct.pack("<HHIIHH", 1, 1, RATE, RATE, 1, 8)
    chunks = b"fmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", len(samples)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def samples(name: str, folder: Path, used: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a manifest, and write the audio of those with speech; no phrase of `used` is repeated."""
    rng, (speech, texts) = random.Random(f"spoken/{name}"), SETS[name]
    for number in range(speech + texts):
        while (words := phrase(rng)) in used:
            pass
        used.add(words)
        question = rng.choice(questions(words))
        if number >= speech:
            prompt = f"{written(words)}\n{question.text}"
            yield {"id": f"text-{number:03}", "prompt": prompt, "answer": question.answer, "tags": ["text"]}
            continue
        voice = list(VOICES)[number % len(VOICES)]
        file = f"audio/{number:03}.wav"
        content = wav(speak(words, VOICES[voice], rng).samples)
        (folder / file).write_bytes(content)
        line = {"id": f"speech-{number:03}", "audio": file, "audio_sha256": hashlib.sha256(content).hexdigest()}
        yield {**line, "prompt": question.text, "answer": question.answer, "tags": [question.kind, voice]}


def main() -> None:
    """Write both sets."""
    used: set[tuple[str, ...]] = set()
    for name in SETS:
        folder = ROOT / name
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(line) for line in samples(name, folder, used)]
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{folder}: {len(lines)} samples")


if __name__ == "__main__":
    main()
