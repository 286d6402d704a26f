"""The tokens of a corpus: text files, the samples of a calibration set, and the prompts of the chat template."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError, RecipeError
from mcpmq.families.encoding import encode_sample
from mcpmq.families.family import Processor
from mcpmq.families.messages import Message
from mcpmq.families.tokenizer import token_ids
from mcpmq.system.progress import Progress
from mcpmq.system.text_file import decode_text

CALIBRATION = "calibration"  # name of the calibration set among the files of a corpus
MAX_TEXT_NBYTES = 64 << 20
IMAGE_SIDES = (64, 1500)  # pixels: an image with one slice, and one with several where the family slices
CONVERSATION = (("user", "?"), ("assistant", "."), ("user", "?"))


@dataclass(frozen=True, slots=True)
class Corpus:
    """The number of occurrences of each token in some texts, and the SHA-256 of these texts by name."""

    counts: Mapping[int, int]
    sha256: Mapping[str, str]


def read_corpus(
    names: Sequence[str], processor: Processor, calibration: SampleSet | None, progress: Progress
) -> Corpus:
    """Tokenize text files, given by path or pattern, and the calibration set, whose name is `calibration`.

    Raises:
        RecipeError: no file has a name, or a file is too large or not text.
        DatasetError: the calibration set is named and not given, or a sample cannot be encoded.
    """
    counts, hashes = Counter[int](), dict[str, str]()
    for name in names:
        if name == CALIBRATION:
            counts += _calibration_tokens(processor, calibration, progress)
            hashes[name] = calibration.sha256 if calibration else ""
            continue
        for file in _files(name):
            content = file.read_bytes()
            hashes[file.name] = hashlib.sha256(content).hexdigest()
            counts.update(token_ids(processor.tokenizer, _decode(file, content)))
    return Corpus(counts, hashes)


def _files(pattern: str) -> list[Path]:
    given = Path(pattern)
    found = [given] if given.is_file() else Path(given.anchor).glob(str(given.relative_to(given.anchor)))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise RecipeError(
            f"`{pattern}` of the corpus in [vocabulary] matches no file", "give text files by path or pattern"
        )
    if large := [file for file in files if file.stat().st_size > MAX_TEXT_NBYTES]:
        nbytes = large[0].stat().st_size
        raise RecipeError(
            f"`{large[0]}` has {nbytes:,} bytes, more than {MAX_TEXT_NBYTES:,}", "split it into several files"
        )
    return files


def _decode(file: Path, content: bytes) -> str:
    try:
        return decode_text(content)
    except UnicodeDecodeError as error:
        raise RecipeError(f"`{file}` is not Unicode text: {error}", "give text files in UTF-8") from error


def _calibration_tokens(processor: Processor, calibration: SampleSet | None, progress: Progress) -> Counter[int]:
    if calibration is None:
        raise DatasetError(
            f"the corpus in [vocabulary] names `{CALIBRATION}`, and no calibration set is given",
            "give one with `--calibration`",
        )
    samples = progress(calibration.samples, "counting tokens")
    return Counter(token for sample in samples for token in encode_sample(processor, sample).tokens.tolist())


def template_tokens(processor: Processor, *, has_vision: bool) -> set[int]:
    """Return the tokens that the chat template and image tags add to prompts.

    Raises:
        CheckpointError: the chat template fails.
    """
    return {
        token for messages in _conversations(has_vision) for token in processor.encode_chat(messages).tokens.tolist()
    }


def _conversations(has_vision: bool) -> Iterator[list[Message]]:
    """Yield conversations with and without a system prompt, and with images of several sizes."""
    turns = [Message(role, (text,)) for role, text in CONVERSATION]  # type: ignore[arg-type]
    yield turns
    yield turns[:1]
    for side in IMAGE_SIDES if has_vision else ():
        yield [Message("user", (Image.new("RGB", (side, side)), "?"))]
