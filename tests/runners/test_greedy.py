"""Greedy answers: equal to token-by-token decoding, with few passes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

from mcpmq.errors import McpmqError
from mcpmq.families.inputs import Inputs
from mcpmq.runners import onnx
from mcpmq.runners.greedy import MAX_PASSES, MAX_TOKENS, Budget, GreedyAnswer, greedy_answers
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.launcher import generate_answers
from mcpmq.runners.runner import Metric, Result

END, VOCABULARY = 9, 80


def sample_of(prompt: list[int], answer: list[int]) -> Inputs:
    """Return a text sample whose answer ends with the end of the turn."""
    return Inputs("a", np.array([*prompt, *answer, END]), len(prompt), (), np.zeros((0, 2), np.int64))


@dataclass
class FakeRunner:
    """A model that answers a prompt with fixed tokens, if the tokens before a position are those of its answer."""

    answer: list[int]
    prompt_length: int
    runs: list[int] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def run(self, samples: Sequence[Inputs], metric: Metric[Result]) -> Iterator[Result]:
        """Predict the next token of the answer after a correct prefix, and token 7 after another one."""
        self.runs.append(len(samples))
        for sample in samples:
            tokens, rows = sample.tokens.tolist(), []
            for position in range(sample.answer_start, len(tokens)):
                before = tokens[self.prompt_length : position]
                rest = [*self.answer, END][len(before) :] if before == self.answer[: len(before)] else [7]
                rows.append(np.eye(VOCABULARY, dtype=np.float32)[rest[0] if rest else END])
            yield metric(sample, rows)


def predictions(runner: FakeRunner, samples: Sequence[Inputs]) -> list[list[int]]:
    """Return the most probable tokens of the reference answers, as an evaluation records them."""
    found = list(runner.run(samples, lambda _, rows: [int(row.argmax()) for row in rows]))
    runner.runs.clear()
    return found


def answers_of(runner: FakeRunner, samples: Sequence[Inputs], budget: float = inf) -> list[GreedyAnswer]:
    """Return the answers after an evaluation of the samples."""
    return greedy_answers(runner, samples, predictions(runner, samples), Budget(budget))


@pytest.mark.parametrize(
    ("reference", "answer", "passes"),
    [
        ([11, 12, 13], [11, 12, 13], 0),
        ([11, 12, 13], [11, 22, 13], 2),
        ([11, 12, 13], [], 0),
        ([11], [11, 12], 2),
        ([11, 12, 13], [11], 0),
    ],
)
def test_the_answer_is_that_of_greedy_decoding(reference: list[int], answer: list[int], passes: int) -> None:
    """A shorter, longer, equal or different answer than the reference."""
    runner = FakeRunner(answer, prompt_length=2)

    assert answers_of(runner, [sample_of([1, 2], reference)]) == [GreedyAnswer(tuple(answer), True)]
    assert len(runner.runs) <= passes


@dataclass
class RecordingRunner(FakeRunner):
    """Records the tokens after the prompt of every pass."""

    drafts: list[list[int]] = field(default_factory=list)

    def run(self, samples: Sequence[Inputs], metric: Metric[Result]) -> Iterator[Result]:
        """Record and predict."""
        self.drafts += [one.tokens[self.prompt_length :].tolist() for one in samples]
        return super().run(samples, metric)


def test_an_answer_ends_before_a_placeholder() -> None:
    """It would need the embeddings of another image; no pass has the token in its answer."""
    sample = Inputs("a", np.array([1, 2, 2, 5, 11, END]), 4, (), np.array([[1, 3]]))
    runner = RecordingRunner([12, 13, 2, 14], prompt_length=4)

    assert answers_of(runner, [sample]) == [GreedyAnswer((12, 13), False)]
    assert not any(2 in draft for draft in runner.drafts)


def test_a_draft_has_no_placeholder() -> None:
    """Predictions after a wrong token may be placeholders, here token 7; the next draft ends before them."""
    sample = Inputs("a", np.array([7, 5, 11, 12, END]), 2, (), np.array([[0, 1]]))
    runner = RecordingRunner([21, 22, 23], prompt_length=2)

    assert answers_of(runner, [sample]) == [GreedyAnswer((21, 22, 23), True)]
    assert len(runner.drafts) > 3
    assert not any(7 in draft for draft in runner.drafts)


def test_passes_and_tokens_are_limited() -> None:
    """An answer that differs at every token is incomplete, and so is a long one."""
    different = FakeRunner([20 + number for number in range(45)], prompt_length=1)
    [answer] = answers_of(different, [sample_of([1], [11] * 45)])
    assert (len(answer.tokens), answer.complete, len(different.runs)) == (MAX_PASSES + 1, False, MAX_PASSES)
    assert answer.tokens == tuple(range(20, 21 + MAX_PASSES))

    long = FakeRunner([11] * 100, prompt_length=1)
    [answer] = answers_of(long, [sample_of([1], [11] * 100)])
    assert (len(answer.tokens), answer.complete) == (MAX_TOKENS, False)

    for budget, tokens in ((47, 1), (48, 2), (96, 2), (97, 3)):  # the first passes have 48 and 49 tokens
        [answer] = answers_of(different, [sample_of([1], [11] * 45)], budget)
        assert (len(answer.tokens), answer.complete) == (tokens, False)


def test_pixels_cost_tokens_and_the_first_samples_are_preferred() -> None:
    """Two slices of 200 and 2 x 50 pixels cost 30 tokens at 0.1 a pixel; a short sample runs beside a long one."""
    slices = (np.zeros((10, 20, 3), np.uint8), np.zeros((2, 5, 10, 3), np.uint8))
    text = sample_of([1], [11, 12])
    image = replace(text, slices=slices, image_bounds=np.array([[0, 1], [0, 1]]))
    assert Budget(0, 0.1).cost(image) == pytest.approx(34)
    assert Budget(0, 0.0).cost(image) == 4

    runner = FakeRunner([21, 22], prompt_length=1)
    predicted = predictions(runner, [text, image, text])
    first, second, third = greedy_answers(runner, [text, image, text], predicted, Budget(10, 0.1))
    assert (runner.runs, first.tokens, second.tokens, third.tokens) == ([2], (21, 22), (21,), (21, 22))


def test_known_answers_need_no_worker(tmp_path: Path) -> None:
    """Predictions that reproduce the answer, or a budget below one pass; a model that does not exist is not opened."""
    store = InputsStore(tmp_path)
    store.append(sample_of([1], [11, 12]))
    missing = tmp_path / "missing"

    assert generate_answers("gguf", missing, store, [[11, 12, END]], 1, Budget(100)) == (GreedyAnswer((11, 12), True),)
    assert generate_answers("gguf", missing, store, [[21, 22, END]], 1, Budget(3)) == (GreedyAnswer((21,), False),)
    with pytest.raises(McpmqError, match="missing"):
        generate_answers("gguf", missing, store, [[21, 22, END]], 1, Budget(100))


def test_predictions_of_earlier_turns_are_ignored() -> None:
    """An evaluation records those of all answers; the last ones are of the last answer."""
    sample = sample_of([1, 2], [11, 12])

    assert greedy_answers(FakeRunner([], 2), [sample], [[5, 6, 7, 11, 12, END]], Budget(0)) == [
        GreedyAnswer((11, 12), True)
    ]


def test_finished_samples_do_not_run_again() -> None:
    """Only samples with unfinished answers are in the next pass."""
    runner = FakeRunner([11, 22, 13], prompt_length=1)
    answers_of(runner, [sample_of([1], [11, 22, 14]), sample_of([1], [12, 12, 13])])

    assert runner.runs[0] == 2
    assert set(runner.runs[1:]) == {1}


def test_an_engine_generates_the_tokens_of_decoding_with_a_cache(
    tiny_full_onnx: Path, tiny_samples: list[Inputs], tmp_path: Path
) -> None:
    """Drafts in a worker process give the tokens that ONNX Runtime generates one by one, images included."""
    store = InputsStore(tmp_path)
    for sample in tiny_samples[:3]:
        store.append(sample)

    runner = onnx.open_runner(tiny_full_onnx, 1)
    predicted = list(runner.run(list(store), lambda _, rows: [int(row.argmax()) for row in rows]))

    answers = generate_answers("onnx", tiny_full_onnx, store, predicted, 1, Budget(1 << 14))

    for sample, answer in zip(store, answers, strict=True):
        assert list(answer.tokens) == list(runner.generate(sample, len(answer.tokens)))
