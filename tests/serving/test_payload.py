"""The request that the engine receives: tags around images, sampling, and unsupported fields."""

import json
from base64 import b64decode
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from mcpmq.families import family_named
from mcpmq.serving.chat_request import parse_chat
from mcpmq.serving.limits import LIMITS
from mcpmq.serving.payload import make_payload
from mcpmq.serving.request_error import RequestError
from mcpmq.serving.served_model import EngineFacts
from tests.serving.requests import chat, encoded, image_part, png, user

MINICPM = EngineFacts("llama.cpp", 512, True, family=family_named("minicpm-v-2.6"))
WORKER = EngineFacts("ONNX Runtime", 512, True, unsupported=("logit_bias", "ignore_eos"))


def _payload(body: dict[str, Any], engine: EngineFacts = MINICPM) -> dict[str, Any]:
    return make_payload(parse_chat(json.dumps(body).encode(), LIMITS), LIMITS, engine)


def _shown(payload: dict[str, Any]) -> list[Any]:
    contents = [message["content"] for message in payload["messages"]]
    return [
        content if isinstance(content, str) else [part.get("text", "image") for part in content] for content in contents
    ]


def test_llama_cpp_gets_the_tags_of_the_family() -> None:
    """Images are numbered over all messages, and separated from texts, as the processor of the original does."""
    image = image_part(png())
    messages = [user(image, "A"), {"role": "assistant", "content": "B"}, user("C", image, image)]

    shown = _shown(_payload({"messages": messages}))

    assert shown == [
        ["<image_id>0</image_id>", "image", "\nA"],
        "B",
        ["C\n<image_id>1</image_id>", "image", "\n<image_id>2</image_id>", "image"],
    ]


def test_workers_get_messages_unchanged() -> None:
    """A chat engine adds the tags itself; the role `developer` is that of the system."""
    messages = [{"role": "developer", "content": "A"}, user(image_part(png()), "B")]

    payload = _payload({"messages": messages}, WORKER)

    assert _shown(payload) == ["A", ["image", "B"]]
    assert [message["role"] for message in payload["messages"]] == ["system", "user"]


def test_images_are_decoded_to_png() -> None:
    """The engine gets PNG for every format that the client sends, and a gray image as RGB."""
    payload = _payload(chat(image_part(encoded(Image.new("L", (9, 7), 40), "BMP"))))

    [part] = [part for part in payload["messages"][0]["content"] if part["type"] == "image_url"]
    image = Image.open(BytesIO(b64decode(part["image_url"]["url"].partition(",")[2])))
    assert (image.format, image.mode, image.size, image.getpixel((0, 0))) == ("PNG", "RGB", (9, 7), (40, 40, 40))


def test_answers_are_always_streamed_by_the_engine() -> None:
    """Only streamed answers are canceled at once; sampling is not restricted to 40 tokens."""
    payload = _payload(chat("Hi", temperature=0.7, seed=3, stop="x"))

    expected = {"stream": True, "temperature": 0.7, "top_k": 0, "min_p": 0, "seed": 3, "stop": ["x"], "max_tokens": 4}
    assert payload.items() >= {**expected, "stop": ["x"]}.items()
    assert "logprobs" not in payload


@pytest.mark.parametrize("fields", [{"logit_bias": {"1": 2}}, {"ignore_eos": True}])
def test_unsupported_fields_are_errors(fields: dict[str, Any]) -> None:
    """A field that the engine would ignore is an error, unless it has its default value."""
    assert _payload(chat("Hi", ignore_eos=False), WORKER)

    with pytest.raises(RequestError, match="does not support"):
        _payload(chat("Hi", **fields), WORKER)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<__media__>"])
def test_tokens_that_structure_prompts_are_errors(token: str) -> None:
    """llama.cpp would read them as the end of a turn or as an image, in every message."""
    with pytest.raises(RequestError, match="special token") as caught:
        _payload({"messages": [user("Hi"), {"role": "assistant", "content": f"A{token}"}, user("B")]})

    assert caught.value.status == 400


def test_a_text_model_accepts_no_images() -> None:
    """The reason is that the model has no vision encoder."""
    with pytest.raises(RequestError, match="no vision encoder"):
        _payload(chat(image_part(png())), EngineFacts("llama.cpp", 512, False))
