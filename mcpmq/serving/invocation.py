"""The form of POST /invocations: one image and a prompt."""

from base64 import b64encode

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from mcpmq.serving.chat_request import ChatMessage, ChatRequest, ImagePart, ImageUrl, Part, TextPart
from mcpmq.serving.request_error import RequestError

DEFAULT_PROMPT = "Describe the image in one accurate sentence."
MAX_PROMPT_NBYTES = 1 << 16
MAX_FIELDS = 8


async def parse_invocation(request: Request) -> ChatRequest:
    """Return the chat of a form with `image` and, there or in the query, `prompt`.

    Raises:
        RequestError: the body is not a form, or has no image.
        HTTPException: the form is invalid or has more than one file.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError(400, "the body is not `multipart/form-data` with an `image`", "image")
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_PROMPT_NBYTES) as form:
        return await _chat(form, request.query_params.get("prompt"))


async def _chat(form: FormData, query_prompt: str | None) -> ChatRequest:
    image, prompt = form.get("image"), form.get("prompt")
    if not isinstance(image, UploadFile):
        raise RequestError(400, "the form has no file `image`", "image")
    text = prompt if isinstance(prompt, str) else query_prompt
    url = "data:image/file;base64," + b64encode(await image.read()).decode()
    parts: list[Part] = [
        ImagePart(type="image_url", image_url=ImageUrl(url=url)),
        TextPart(type="text", text=text or DEFAULT_PROMPT),
    ]
    return ChatRequest(messages=[ChatMessage(role="user", content=parts)])
