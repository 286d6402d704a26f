"""Bodies of chat requests: accepted fields, limits, and errors with the name of the field."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mcpmq.serving.chat_request import parse_chat
from mcpmq.serving.limits import LIMITS
from mcpmq.serving.request_error import RequestError
from tests.serving.requests import chat, image_part, user


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return chat("Hi", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})


def _nested(depth: int) -> dict[str, Any]:
    return {"items": _nested(depth - 1)} if depth else {}


def _error(body: bytes) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        parse_chat(body, replace(LIMITS, text_characters=100, messages=3))
    return caught.value.status, str(caught.value)


def test_defaults_are_greedy_decoding() -> None:
    """Without settings the temperature is 0, and the answer has at most 512 tokens."""
    request = parse_chat(json.dumps({"messages": [user("Hi")]}).encode(), LIMITS)

    assert (request.temperature, request.num_tokens(LIMITS), request.stream) == (0.0, 512, False)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_number_of_tokens_is_limited(name: str) -> None:
    """Both names of the limit are accepted; a number above that of the server is an error and not reduced."""
    counts = [
        parse_chat(json.dumps({"messages": [user("Hi")], name: count}).encode(), LIMITS).num_tokens(LIMITS)
        for count in (7, 512)
    ]

    assert counts == [7, 512]
    with pytest.raises(
        RequestError, match=f"^{name}: 513 is more than 512, the limit that `--max-tokens` sets$"
    ) as caught:
        parse_chat(json.dumps({"messages": [user("Hi")], name: 513}).encode(), LIMITS)
    assert (caught.value.status, caught.value.param) == (400, name)


def test_an_answer_can_be_sent_back() -> None:
    """A message of OpenAI's client with its empty fields is accepted."""
    answer = {"role": "assistant", "content": "Yes.", "refusal": None, "tool_calls": None, "annotations": None}

    request = parse_chat(json.dumps({"messages": [user("Hi"), answer, user("Why?")]}).encode(), LIMITS)

    assert [message.texts for message in request.messages] == [["Hi"], ["Yes."], ["Why?"]]


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({}, "messages: Field required"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        (chat("Hi", tools=[]), "tools: Extra inputs are not permitted"),
        (chat("Hi", max_tokens=-1), "max_tokens: Input should be greater than or equal to 1"),
        (chat("Hi", temperature=9), "temperature: Input should be less than or equal to 2"),
        (chat("Hi", n=2), "n: Input should be 1"),
        (chat("Hi", top_logprobs=2_000_000), "top_logprobs: Input should be less than or equal to 20"),
        (chat("Hi", stop=["a"] * 9), "stop"),
        (chat("Hi", logit_bias={"x": 1}), "logit_bias.x"),
        (chat({"type": "input_audio", "input_audio": {}}), "messages.0.content.0.input_audio.input_audio.data"),
        (chat({"type": "file", "file": {}}), "messages.0.content.0: Input tag 'file'"),
        (chat("\ud800"), "surrogate"),
        ({"messages": [user("Hi")] * 4}, "4 messages, more than 3"),
        (_schema(_nested(40)), "nested more than 32 times"),
        (_schema({"minItems": 10**9}), "`minItems` is not an integer from 0 to 1000"),
        (_schema({"$ref": "https://example.com/a.json"}), "reference to another document"),
        (_schema({"pattern": "a" * 300}), "more than 200 characters"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_invalid_fields_are_errors(request_fields: dict[str, Any], message: str) -> None:
    """The error has status 400 and names the field or the limit."""
    status, text = _error(json.dumps(request_fields).encode())

    assert status == 400
    assert message in text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"[" * 50_000, 400),
        (b'{"messages": NaN}', 400),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", 400),
        (b"[" * 200_000, 413),
        (json.dumps({"messages": [user("x" * 101)]}).encode(), 413),
    ],
    ids=range(9),
)
def test_bodies_that_are_not_chats_are_errors(body: bytes, status: int) -> None:
    """Text that is not JSON, is nested or is too long is an error of the client."""
    assert _error(body)[0] == status


def test_urls_of_images_are_kept() -> None:
    """Images and texts of a message stay in their order."""
    request = parse_chat(json.dumps(chat("A", image_part(b"x"), "B")).encode(), LIMITS)

    assert [part.type for part in request.messages[0].content] == ["text", "image_url", "text"]
    assert request.messages[0].image_urls == ["data:image/png;base64,eA=="]
