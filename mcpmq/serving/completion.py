"""One response from the streamed events of an answer."""

import json
from collections.abc import AsyncIterator
from typing import Any

TEXTS = ("content", "reasoning_content")


async def gather(events: AsyncIterator[bytes]) -> dict[str, Any]:
    """Return the JSON of a `chat.completion` for the events of a `chat.completion.chunk` stream."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    logprobs: list[Any] = []
    answer: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": None, "logprobs": None}]}
    async for event in events:
        chunk = json.loads(event)
        for choice in chunk.pop("choices"):
            _add(choice, answer["choices"][0], logprobs)
        answer |= chunk
    if logprobs:
        answer["choices"][0]["logprobs"] = {"content": logprobs, "refusal": None}
    return {**answer, "object": "chat.completion"}


def _add(chunk: dict[str, Any], choice: dict[str, Any], logprobs: list[Any]) -> None:
    for name in TEXTS:
        if text := chunk["delta"].get(name):
            choice["message"][name] = choice["message"].get(name, "") + text
    logprobs += (chunk.get("logprobs") or {}).get("content") or []
    choice["finish_reason"] = chunk["finish_reason"] or choice["finish_reason"]
