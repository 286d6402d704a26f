"""Tests of the chat engine over predictions, with ONNX Runtime on the reference."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcpmq.dataset import Sample
from mcpmq.errors import DatasetError
from mcpmq.families.encoding import encode_sample
from mcpmq.runners.generation import Predictions, generate
from mcpmq.runners.onnx import open_runner
from mcpmq.serving.artifacts import open_engine
from mcpmq.serving.decoding import DecodingEngine
from mcpmq.serving.engine import Message, Sampling, gather
from tests.serving.chats import ask, most_probable_tokens, question


@pytest.fixture(scope="module")
def engine(reference_folder: Path) -> DecodingEngine:
    """The reference in ONNX Runtime, opened from its own files."""
    opened = open_engine(reference_folder / "onnx", threads=1)
    assert isinstance(opened, DecodingEngine)
    return opened


def test_tokens_are_those_of_the_runner(engine: DecodingEngine, reference_folder: Path, held_out: list[Sample]) -> None:
    """The answer is the text of the tokens that `OnnxRunner.generate` returns up to the end of the turn."""
    runner = open_runner(reference_folder / "onnx", 1)
    for sample in held_out:
        inputs = encode_sample(engine.processor, sample)
        tokens = list(runner.generate(inputs, 40, stop=engine.stop_ids))

        text, end = ask(engine, sample)

        assert text == engine.processor.tokenizer.decode(tokens)
        assert end.finish_reason == "stop"
        assert (end.prompt_tokens, end.completion_tokens) == (inputs.answer_start, len(tokens) + 1)
        assert end.prompt_ms > 0 < end.predicted_ms


def test_answers_are_the_greedy_ones_of_the_evaluation(
    engine: DecodingEngine, reference_folder: Path, held_out: list[Sample]
) -> None:
    """Given the generated answer, the evaluation finds the same most probable token at every position."""
    runner = open_runner(reference_folder / "onnx", 1)
    samples = [engine.processor.encode(one.id, one.image, one.prompt, ask(engine, one)[0]) for one in held_out]

    found = list(runner.run(samples, most_probable_tokens))

    assert found == [sample.tokens[sample.answer_start :].tolist() for sample in samples]


def test_a_limit_of_tokens_ends_the_answer(engine: DecodingEngine, held_out: list[Sample]) -> None:
    """Three tokens are the beginning of the whole answer, and the reason is the length."""
    whole, _ = ask(engine, held_out[0])

    text, end = ask(engine, held_out[0], max_tokens=3)

    assert whole.startswith(text)
    assert (end.finish_reason, end.completion_tokens) == ("length", 3)


def test_a_stop_text_ends_the_answer(engine: DecodingEngine, held_out: list[Sample]) -> None:
    """The answer ends before the stop text, which may begin within a token."""
    whole, _ = ask(engine, held_out[0])

    text, end = ask(engine, held_out[0], stop=(whole[6:9],))

    assert text == whole[: whole.index(whole[6:9])]
    assert end.finish_reason == "stop"


def test_equal_seeds_give_equal_answers(engine: DecodingEngine, held_out: list[Sample]) -> None:
    """With a high temperature, answers depend on the seed only."""
    settings = {"temperature": 3.0, "top_p": 0.9, "max_tokens": 12}
    first, again, other = (ask(engine, held_out[0], **settings, seed=seed)[0] for seed in (5, 5, 6))

    assert first == again != other


def test_log_probabilities_are_those_of_the_tokens(engine: DecodingEngine, held_out: list[Sample]) -> None:
    """Greedy tokens are the first alternative, and the texts of all tokens are the answer."""
    pieces = list(engine.generate(question(held_out[0]), Sampling(top_logprobs=2)))
    tokens = [token for piece in pieces for token in piece.tokens]

    assert "".join(token.text for token in tokens) == "".join(piece.text for piece in pieces)
    assert all(token.alternatives[0] == (token.text, token.logprob) for token in tokens)
    assert all(math.exp(token.logprob) + math.exp(token.alternatives[1][1]) <= 1 + 1e-6 for token in tokens)


def test_a_closed_answer_computes_no_more_tokens(engine: DecodingEngine, held_out: list[Sample]) -> None:
    """Closing the generator after the first piece closes the predictions of the runner."""
    computed: list[int] = []

    def predict(prompt: object, limit: int) -> Predictions:
        inner = engine.predict(prompt, limit)  # type: ignore[arg-type]
        try:
            token = yield next(inner)
            while True:
                computed.append(token)
                token = yield inner.send(token)
        finally:
            computed.append(-1)

    answer = replace(engine, predict=predict).generate(question(held_out[0]), Sampling())
    next(answer)
    answer.close()

    assert computed == [-1]


def test_a_chat_longer_than_the_context_is_an_error(engine: DecodingEngine, held_out: list[Sample]) -> None:
    """The error has both numbers and the option; nothing is computed."""
    short = replace(engine, context_length=40)

    with pytest.raises(DatasetError, match=r"48 tokens; a context of 40 leaves no space") as caught:
        ask(short, held_out[0])
    assert "--context" in caught.value.hint


def test_the_answer_ends_with_the_context(engine: DecodingEngine, held_out: list[Sample]) -> None:
    """A context of the prompt and two tokens gives two tokens."""
    _, end = ask(replace(engine, context_length=50), held_out[0])

    assert (end.finish_reason, end.completion_tokens) == ("length", 2)


def test_a_history_is_part_of_the_prompt(engine: DecodingEngine, held_out: list[Sample]) -> None:
    """The second turn of a chat has the tokens of the first, its answer, and the second image with number 1."""
    first = question(held_out[0])
    chat = [*first, Message("assistant", ("The green bar is 2 high.",)), *question(held_out[1])]

    _, end = gather(engine.generate(chat, Sampling(max_tokens=2)))

    single = gather(engine.generate(first, Sampling(max_tokens=2)))[1]
    assert end.prompt_tokens > 1.5 * single.prompt_tokens


def test_control_tokens_in_a_text_are_an_error(engine: DecodingEngine) -> None:
    """A text cannot end its turn."""
    with pytest.raises(DatasetError, match="the chat contains the special token `<|im_end|>`"):
        gather(engine.generate([Message("user", ("a<|im_end|>",))], Sampling()))


def test_generate_stops_at_a_stop_token() -> None:
    """A stop token is not part of the answer, and no prediction is requested after the last token."""
    requested: list[int] = []

    def predictions() -> Predictions:
        token = 0
        while True:
            token = yield np.eye(6, dtype=np.float32)[token + 1]
            requested.append(token)

    assert list(generate(predictions(), 9, stop={3})) == [1, 2]
    assert list(generate(predictions(), 2)) == [1, 2]
    assert requested == [1, 2, 1]
