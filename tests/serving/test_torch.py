"""Tests of PyTorch and transformers as chat engines."""

from pathlib import Path

import pytest

from mcpmq.dataset import Sample
from mcpmq.errors import EngineError
from mcpmq.families.encoding import encode_sample
from mcpmq.quantized_model import QuantizedModel
from mcpmq.serving.artifacts import open_engine
from mcpmq.serving.decoding import DecodingEngine
from tests.hf_tools import export_hf_artifact
from tests.reference_model import greedy_tokens, reference_model
from tests.serving.chats import ask


def test_a_quantized_model_answers_as_its_dequantized_weights(reference_folder: Path, held_out: list[Sample]) -> None:
    """Greedy tokens with the cache are those of the dequantized module without a cache."""
    engine = open_engine(reference_folder / "quantized", threads=1)
    assert isinstance(engine, DecodingEngine)
    module = reference_model(QuantizedModel.open(reference_folder / "quantized"))
    sample = encode_sample(engine.processor, held_out[0])

    text, end = ask(engine, held_out[0])

    tokens = greedy_tokens(module, engine.processor.model_inputs, sample, end.completion_tokens)
    assert tokens[-1] in engine.stop_ids
    assert text == engine.processor.tokenizer.decode(tokens[:-1])
    assert engine.notes == ("weights dequantized to float32 before use",)


@pytest.mark.parametrize(("name", "scheme"), [("gptq", "int4-g32"), ("bnb", "nf4"), ("compressed-tensors", "int8-row")])
def test_hugging_face_artifacts_answer(
    tiny_checkpoint: Path, tmp_path: Path, held_out: list[Sample], name: str, scheme: str
) -> None:
    """The artifact generates tokens after an image from its own files."""
    _, artifact = export_hf_artifact(tiny_checkpoint, tmp_path, name, language__layers_all=scheme)
    engine = open_engine(artifact.path, threads=1)

    _, end = ask(engine, held_out[0], max_tokens=5)

    assert end.completion_tokens in range(1, 6)
    assert engine.has_vision


def test_a_checkpoint_answers(tiny_checkpoint: Path, held_out: list[Sample]) -> None:
    """The original runs with its native class."""
    engine = open_engine(tiny_checkpoint, threads=1)

    assert ask(engine, held_out[0], max_tokens=3)[1].completion_tokens in (1, 2, 3)
    assert engine.label.startswith("PyTorch")


def test_a_model_larger_than_the_memory_is_an_error(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the numbers, and the hint names an engine for quantized weights."""

    class _Memory:
        available = 1_000_000

    monkeypatch.setattr("psutil.virtual_memory", _Memory)
    with pytest.raises(EngineError, match="bytes of memory in float32; 1,000,000 bytes are available") as caught:
        open_engine(tiny_checkpoint, threads=1)
    assert "GGUF" in caught.value.hint
