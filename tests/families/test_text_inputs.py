"""Model inputs of a text-only model."""

from pathlib import Path

import numpy as np
import pytest

from mcpmq.errors import DatasetError
from mcpmq.families.minicpm3 import MINICPM3
from mcpmq.families.text_inputs import NoVisionInputs, TextProcessor
from tests.tiny_families import TINY_FAMILIES


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> TextProcessor:
    """Processor of the tiny MiniCPM3."""
    [tiny] = [family for family in TINY_FAMILIES if family.name == MINICPM3.name]
    opened = MINICPM3.open_processor(tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))
    assert isinstance(opened, TextProcessor)
    return opened


def test_prompt_and_answer_are_encoded(processor: TextProcessor) -> None:
    """The answer follows the rendered prompt and ends with the end-of-turn token."""
    inputs = processor.encode("a", None, "How many?", "three")

    prompt = "<s><|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    parts = [processor.tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt, "three<|im_end|>")]
    assert [part.tolist() for part in np.split(inputs.tokens, [inputs.answer_start])] == parts
    assert inputs.modality == "text"
    assert processor.model_inputs(inputs)["input_ids"].tolist() == [inputs.tokens.tolist()]


def test_images_are_rejected(processor: TextProcessor, tmp_path: Path) -> None:
    """A sample with an image, and a request for vision graph inputs, raise DatasetError."""
    with pytest.raises(DatasetError, match="`a` has an image, but the model is text-only"):
        processor.encode("a", tmp_path / "image.png", "How many?", "three")
    with pytest.raises(DatasetError, match="text-only"):
        NoVisionInputs().graph_inputs(np.zeros((14, 14, 3), np.uint8))


def test_special_tokens_are_rejected(processor: TextProcessor) -> None:
    """A special token in the answer raises DatasetError."""
    with pytest.raises(DatasetError, match="special token `<|im_end|>`".replace("|", r"\|")):
        processor.encode("a", None, "How many?", "three<|im_end|>")
