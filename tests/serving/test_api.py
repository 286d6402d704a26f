"""Routes of the server, with a tiny model in llama.cpp's server behind it."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from mcpmq.serving.engine_process import EngineProcess
from tests.serving.requests import CHAT, Served, chat, encoded, error_message, image_part, png, user


@pytest.fixture(scope="module")
def official(served: Served) -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=f"{served.client.base_url}/v1", api_key="none", max_retries=0)


def _ask(official: openai.OpenAI, **fields: Any) -> Any:
    request: dict[str, Any] = {"model": "any", **chat("What is it?", image_part(png())), **fields}
    return official.chat.completions.create(**request)


def test_ping_reports_a_ready_engine(client: httpx2.Client) -> None:
    """GET /ping returns the message of a healthy server."""
    response = client.get("/ping")

    assert (response.status_code, response.json()) == (200, {"message": "ok"})


@pytest.mark.parametrize("place", ["form", "query", "default"])
def test_invocations_return_a_json_string(client: httpx2.Client, place: str) -> None:
    """An image and a prompt, in the form or in the query, give the text of the answer."""
    prompt = {"prompt": "How many?"}
    data, params = (prompt if place == name else {} for name in ("form", "query"))

    response = client.post("/invocations", files={"image": ("a.png", png())}, data=data, params=params)

    assert response.status_code == 200
    assert isinstance(response.json(), str)


def test_invocations_stream_events_on_request(client: httpx2.Client) -> None:
    """With `Accept: text/event-stream` the answer comes in parts, then the usage and [DONE]."""
    headers = {"Accept": "text/event-stream"}

    response = client.post("/invocations", files={"image": ("a.png", png())}, headers=headers)

    *events, done = response.text.strip().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    whole = client.post("/invocations", files={"image": ("a.png", png())}).json()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert done == "data: [DONE]"
    assert "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"]) == whole
    assert chunks[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"data": {"prompt": "Hi"}}, "multipart/form-data"),
        ({"files": {"file": ("a.png", png())}}, "no file `image`"),
        ({"files": {"image": ("a.png", b"hello")}}, "image 1 cannot be read"),
        ({"files": [("image", ("a.png", png())), ("image", ("b.png", png()))]}, "Too many files"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, "Missing boundary"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, "no file `image`"),
    ],
)
def test_invalid_forms_are_errors(client: httpx2.Client, form: Any, message: str) -> None:
    """Forms without an image have the status 400 and a reason."""
    response = client.post("/invocations", **form)

    assert response.status_code == 400
    assert message in error_message(response)


def test_the_official_client_gets_an_answer_with_usage(official: openai.OpenAI) -> None:
    """The answer is equal in every request, and has usage and the reason of its end."""
    first, second = _ask(official), _ask(official)

    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.choices[0].finish_reason in ("stop", "length")
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    assert first.usage.completion_tokens <= 4


def test_the_official_client_streams(official: openai.OpenAI) -> None:
    """The streamed parts are the whole answer; the usage comes only on request."""
    with (
        _ask(official, stream=True) as plain,
        _ask(official, stream=True, stream_options={"include_usage": True}) as full,
    ):
        parts, with_usage = list(plain), list(full)

    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == _ask(official).choices[0].message.content
    assert [part.usage for part in parts] == [None] * len(parts)
    assert with_usage[-1].usage.completion_tokens <= 4


def test_the_official_client_sends_several_images_and_turns(official: openai.OpenAI) -> None:
    """Two images in a message and an earlier answer need more tokens of the prompt than one image."""
    one = _ask(official)
    messages = [user("A", image_part(png(seed=1)), image_part(png(seed=2))), one.choices[0].message, user("Why?")]

    several = _ask(official, messages=messages)

    assert several.usage.prompt_tokens > one.usage.prompt_tokens


def test_the_official_client_gets_log_probabilities(official: openai.OpenAI) -> None:
    """Tokens have log-probabilities, those of the most probable alternatives; llama.cpp omits parts of characters."""
    answer = _ask(official, logprobs=True, top_logprobs=2)

    tokens = answer.choices[0].logprobs.content
    assert 1 <= len(tokens) <= answer.usage.completion_tokens
    assert all(token.logprob == token.top_logprobs[0].logprob < 0 for token in tokens)


def test_the_official_client_gets_json(official: openai.OpenAI) -> None:
    """A JSON schema determines the syntax of the answer."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}

    answer = _ask(
        official, max_tokens=40, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    )

    assert json.loads(answer.choices[0].message.content)["a"] in (1, 2)


def test_the_official_client_raises_its_errors(official: openai.OpenAI) -> None:
    """A prompt that is longer than the context is an error with llama.cpp's message."""
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        _ask(official, messages=[user("word " * 2000)])


def test_the_served_model_is_listed(official: openai.OpenAI) -> None:
    """The name is that in answers; size, context and vision are facts of the artifact."""
    [model] = official.models.list().data

    assert model.id == _ask(official).model == "tiny-phone-int4-gguf"
    assert model.meta["format"] == "gguf"  # type: ignore[attr-defined]
    assert model.meta["vision"] is True  # type: ignore[attr-defined]
    assert model.meta["context_tokens"] == 512  # type: ignore[attr-defined]
    assert model.meta["quality"] is None  # type: ignore[attr-defined]


def test_metrics_count_responses_and_tokens(client: httpx2.Client) -> None:
    """Responses are counted by route and status, tokens from the timings of the engine."""
    before = client.get("/metrics").text
    client.post(CHAT, json=chat("Hi"))
    client.get("/unknown/../path")
    after = client.get("/metrics").text

    def value(text: str, name: str) -> float:
        return float(next((line for line in text.splitlines() if line.startswith(name)), "0 0").split()[-1])

    answers = 'mcpmq_responses_total{route="/v1/chat/completions",status="200"}'
    assert value(after, answers) == value(before, answers) + 1
    assert value(after, "mcpmq_generated_tokens_total ") > value(before, "mcpmq_generated_tokens_total ")
    assert 'route="other",status="404"' in after
    assert value(after, "mcpmq_engine_up ") == 1


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/invocations", 405)])
def test_other_routes_are_errors_in_openais_form(client: httpx2.Client, method: str, path: str, status: int) -> None:
    """Unknown paths and wrong methods have a JSON body, too."""
    response = client.request(method, path)

    assert response.status_code == status
    assert error_message(response)


def test_bodies_above_the_limit_are_rejected(client: httpx2.Client) -> None:
    """A declared length, and a body without one, end at the limit of bytes."""
    declared = client.post(CHAT, content=b"A" * (2 << 20))
    streamed = client.post(CHAT, content=(b"A" * 65536 for _ in range(32)))

    for response in (declared, streamed):
        assert response.status_code == 413
        assert error_message(response) == "the body has more than 1,048,576 bytes"


def test_images_above_the_limit_are_rejected(client: httpx2.Client) -> None:
    """A small file of many pixels is not decoded; all images of a request count together."""
    from PIL import Image

    large = image_part(encoded(Image.new("1", (2000, 2000))))
    half = image_part(encoded(Image.new("1", (800, 800))))

    assert client.post(CHAT, json=chat("Hi", large)).status_code == 413
    assert client.post(CHAT, json=chat("Hi", half)).status_code == 200
    assert error_message(client.post(CHAT, json=chat("Hi", half, half))).startswith("image 2 has 640,000 pixels")
    assert error_message(client.post(CHAT, json=chat("Hi", *[half] * 9))) == "9 images, more than 8"


def test_a_full_queue_is_rejected(client: httpx2.Client) -> None:
    """One request is answered and two wait; the others are rejected with the time of the next try."""
    request = chat("Hi", max_tokens=200, ignore_eos=True)
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda _: client.post(CHAT, json=request), range(8)))

    statuses = sorted(response.status_code for response in responses)
    assert statuses[:3] == [200] * 3
    assert set(statuses[3:]) <= {200, 503}
    assert statuses[-1] == 503
    for response in responses:
        if response.status_code == 503:
            assert response.headers["retry-after"] == "1"
            assert "in the queue" in error_message(response)


def test_an_engine_that_crashes_is_started_again(client: httpx2.Client, engine: EngineProcess) -> None:
    """After a crash, requests have the status 503 until the next engine is ready."""
    starts, process = engine.starts, engine._process
    assert process

    process.kill()
    process.wait()
    statuses = []
    while engine.starts == starts:
        statuses.append(client.post(CHAT, json=chat("Hi")).status_code)

    assert statuses[0] == 503
    assert set(statuses) <= {503, 200}  # 200 for a request that arrived with the new engine
    assert client.get("/ping").status_code == 200
    assert client.post(CHAT, json=chat("Hi")).status_code == 200
