"""Artifacts of other formats than GGUF, through the same interface, with a chat engine in a worker."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from mcpmq.artifact import Artifact
from mcpmq.errors import EngineError
from mcpmq.serving.backend import ServerOptions, running_model
from tests.serving.conftest import CONTEXT, serving
from tests.serving.requests import CHAT, chat, error_message, image_part, png, user


@pytest.fixture(scope="module")
def onnx(tiny_exports: list[Artifact]) -> Iterator[httpx2.Client]:
    """A client of a server of the ONNX artifact."""
    with serving(tiny_exports[1]) as served:
        yield served.client


def _chunks(response: httpx2.Response) -> list[dict[str, Any]]:
    *events, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_streamed_and_whole_answers_are_equal(onnx: httpx2.Client) -> None:
    """The parts of a streamed answer are the whole answer, with usage and timings at the end."""
    request = chat("How many?", image_part(png()), max_tokens=6)

    whole = onnx.post(CHAT, json=request).json()
    chunks = _chunks(onnx.post(CHAT, json={**request, "stream": True, "stream_options": {"include_usage": True}}))

    text = "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] <= 6
    assert whole["timings"]["predicted_n"] == whole["usage"]["completion_tokens"]
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_usage_is_sent_on_request_only(onnx: httpx2.Client) -> None:
    """Without the option, every chunk has a choice."""
    assert all(chunk["choices"] for chunk in _chunks(onnx.post(CHAT, json=chat("Hi", stream=True))))


def test_invocations_are_answered(onnx: httpx2.Client) -> None:
    """The route for one image works with every engine."""
    assert isinstance(onnx.post("/invocations", files={"image": ("a.png", png())}).json(), str)


def test_several_images_and_turns_are_accepted(onnx: httpx2.Client) -> None:
    """The prompt of two images and an earlier answer has more tokens."""
    turns = [user("A", image_part(png(seed=1)), image_part(png(seed=2))), {"role": "assistant", "content": "B"}]

    one = onnx.post(CHAT, json=chat("Why?")).json()
    several = onnx.post(CHAT, json={"messages": [*turns, user("Why?")], "max_tokens": 2}).json()

    assert several["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]


def test_log_probabilities_have_alternatives(onnx: httpx2.Client) -> None:
    """Every token has its log-probability and the requested number of alternatives."""
    answer = onnx.post(CHAT, json=chat("Hi", logprobs=True, top_logprobs=3)).json()

    tokens = answer["choices"][0]["logprobs"]["content"]
    assert len(tokens) >= 1
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)
    assert all(token["logprob"] <= 0 for token in tokens)


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 1}},
        {"frequency_penalty": 1},
        {"presence_penalty": 1},
        {"ignore_eos": True},
    ],
)
def test_unsupported_fields_are_errors(onnx: httpx2.Client, field: dict[str, Any]) -> None:
    """A field that only llama.cpp supports is not ignored."""
    response = onnx.post(CHAT, json=chat("Hi", **field))

    assert response.status_code == 400
    assert f"does not support `{next(iter(field))}`" in error_message(response)


def test_a_chat_beyond_the_context_is_an_error(onnx: httpx2.Client) -> None:
    """The reason of the engine reaches the client with the status 400."""
    response = onnx.post(CHAT, json=chat("word " * 150))

    assert response.status_code == 400
    assert str(CONTEXT) in error_message(response)


def test_a_client_that_leaves_ends_the_answer(onnx: httpx2.Client) -> None:
    """The worker answers the next request soon."""
    with pytest.raises(httpx2.TimeoutException):
        onnx.post(CHAT, json=chat("Hi", max_tokens=400), timeout=0.02)
    start = time.monotonic()

    assert onnx.post(CHAT, json=chat("Hi", max_tokens=1)).status_code == 200
    assert time.monotonic() - start < 5


def test_a_worker_has_one_slot(tiny_exports: list[Artifact]) -> None:
    """Several slots are an error before the model is loaded."""
    with (
        pytest.raises(EngineError, match="2 slots: only llama.cpp"),
        running_model(tiny_exports[1].path, ServerOptions(slots=2)),
    ):
        pass
