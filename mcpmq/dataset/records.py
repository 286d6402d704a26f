"""Records of training sets: the formats of OpenAI, ShareGPT, LLaVA, ms-swift and LLaMA-Factory; the keys select one."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from mcpmq.dataset.draft import DraftPart, DraftSample, DraftTurn
from mcpmq.dataset.manifest import check_id
from mcpmq.dataset.record_files import audio_reference, image_reference
from mcpmq.dataset.record_media import PLACEHOLDER, Media
from mcpmq.dataset.record_videos import COUNT_KEYS, FPS_KEYS, video_reference
from mcpmq.dataset.sample import Role
from mcpmq.errors import DatasetError

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
PROMPTS, ANSWERS = ("query", "prompt", "question", "instruction"), ("response", "answer", "output", "completion")
# In every format.
CONTENT_KEYS = ("id", "tags", "system", "image", "images", "video", "videos", "fps", "audio", "audios")
VALUE_KEYS = {kind: {kind, "path", "url"} for kind in ("image", "video", "audio")}  # of parts
SETTING_KEYS: Mapping[str, set[str]] = {"image": set(), "video": {*FPS_KEYS, *COUNT_KEYS}, "audio": set()}
WRAPPED_KINDS = {
    "image_url": "image",
    "video_url": "video",
    "audio_url": "audio",
    "input_audio": "audio",
}  # of parts with the key of their type
METADATA = (
    "source",
    "dataset",
    "category",
    "task",
    "type",
    "split",
    "language",
    "license",
    "score",
    "difficulty",
    "metadata",
    "meta",
)  # ignored
FORMAT_HINT = "docs/datasets.md has an example of every accepted format"
KEY_HINT = "remove the key, or ignore it with `mcpmq dataset convert --ignore-key {}`"


def parse_record(record: Any, number: int, where: str, ignored_keys: Collection[str] = ()) -> DraftSample:
    """Return the sample of a record; `number` becomes its id if it has none.

    Raises:
        DatasetError: the record has no conversation, or a key that may have content and is not known.
    """
    if not isinstance(record, Mapping):
        raise DatasetError(f"{where} is not an object", FORMAT_HINT)
    given = {key: value for key, value in record.items() if value is not None and key not in ignored_keys}
    known, read = _format(given, where)
    unknown = [key for key in given if key not in (*known, *CONTENT_KEYS, *METADATA)]
    if unknown:
        raise DatasetError(f"{where}: unknown key `{unknown[0]}`", KEY_HINT.format(unknown[0]))
    media = Media(given, where)
    turns = [_turn(role, content, media, where) for role, content in read(given, where)]
    return DraftSample(_id(given, number, where), media.place_rest(turns), _tags(given, where))


Messages = Iterator[tuple[Role, Any]]
Reader = Callable[[Mapping[str, Any], str], Messages]


def _format(record: Mapping[str, Any], where: str) -> tuple[Collection[str], Reader]:
    """Return the keys of a record's format, and the function that reads its messages."""
    if "messages" in record or "conversations" in record:
        return ("messages" if "messages" in record else "conversations",), _messages
    if "texts" in record:
        return ("texts",), _pairs
    prompts, answers = ([key for key in keys if key in record] for keys in (PROMPTS, ANSWERS))
    if len(prompts) == len(answers) == 1:
        return (prompts[0], answers[0], "input", "history"), _prompt_and_answer
    raise DatasetError(f"{where}: the format is unknown; the keys are {_quote(record)}", FORMAT_HINT)


def _messages(record: Mapping[str, Any], where: str) -> Messages:
    yield from _system(record, where)
    messages = record["messages"] if "messages" in record else record["conversations"]
    if not isinstance(messages, list):
        raise DatasetError(f"{where}: the messages are not a list", FORMAT_HINT)
    for number, message in enumerate(messages):
        yield _message(message, f"{where}, message {number}")


def _message(message: Any, where: str) -> tuple[Role, Any]:
    given = {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else {}
    for role, content in (("role", "content"), ("from", "value")):
        if given.keys() == {role, content}:
            known = ROLES.get(str(given[role]))
            if known is None:
                raise DatasetError(f"{where}: unknown role `{given[role]}`", f"known roles are {_quote(ROLES)}")
            return known, given[content]
    raise DatasetError(f"{where} has the keys {_quote(given)}", "give `role` and `content`, or `from` and `value`")


def _pairs(record: Mapping[str, Any], where: str) -> Messages:
    """Yield the turns of a list of objects with the keys `user` and `assistant`."""
    yield from _system(record, where)
    for number, pair in enumerate(record["texts"] if isinstance(record["texts"], list) else []):
        if not isinstance(pair, dict) or not {"user", "assistant"} <= pair.keys() <= {"user", "assistant", "source"}:
            raise DatasetError(f"{where}, text {number} is not a pair of `user` and `assistant`", FORMAT_HINT)
        yield "user", pair["user"]
        yield "assistant", pair["assistant"]


def _prompt_and_answer(record: Mapping[str, Any], where: str) -> Messages:
    yield from _system(record, where)
    history = record.get("history", [])
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise DatasetError(f"{where}: `history` is not a list of pairs", FORMAT_HINT)
    for prompt, answer in history:
        yield "user", prompt
        yield "assistant", answer
    [prompt], [answer] = ([record[key] for key in keys if key in record] for keys in (PROMPTS, ANSWERS))
    extra = record.get("input")
    yield "user", f"{prompt}\n{extra}" if extra and isinstance(prompt, str) else prompt
    yield "assistant", answer


def _system(record: Mapping[str, Any], where: str) -> Messages:
    if system := record.get("system"):
        if not isinstance(system, str):
            raise DatasetError(f"{where}: `system` is not a text", FORMAT_HINT)
        yield "system", system


def _turn(role: Role, content: Any, media: Media, where: str) -> DraftTurn:
    parts = content if isinstance(content, list) else [content]
    read = [part for one in parts for part in _parts(one, role, media, where)]
    return DraftTurn(role, tuple(part for part in read if part != ""))


def _parts(part: Any, role: Role, media: Media, where: str) -> Iterator[DraftPart]:
    if isinstance(part, str):
        yield from _split(part, media) if role == "user" else [part]
        return
    given = {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}
    kind, keys = given.get("type"), given.keys() - {"type", "index"}  # an index counts the images in their order
    if kind == "text" and keys == {"text"} and isinstance(given["text"], str):
        yield from _split(given["text"], media) if role == "user" else [given["text"]]
    elif kind in VALUE_KEYS and not keys:
        yield media.take(f"<{kind}>")
    elif kind in WRAPPED_KINDS and keys == {kind}:
        wrapped = given[kind]
        value = wrapped["url"] if isinstance(wrapped, dict) and "url" in wrapped else wrapped
        yield _placed(WRAPPED_KINDS[kind], value, {}, media, where)
    elif kind in VALUE_KEYS and len(keys & VALUE_KEYS[kind]) == 1 and keys <= VALUE_KEYS[kind] | SETTING_KEYS[kind]:
        settings = {key: given[key] for key in keys & SETTING_KEYS[kind]}
        yield _placed(kind, given[min(keys & VALUE_KEYS[kind])], settings, media, where)
    else:
        raise DatasetError(f"{where}: unknown part of type `{kind}` with the keys {_quote(given)}", FORMAT_HINT)


def _placed(kind: str, value: Any, settings: Mapping[str, Any], media: Media, where: str) -> DraftPart:
    """Return the image, video or audio of a part that has it."""
    if kind == "image":
        media.images.placed += 1
        return image_reference(value, where)
    if kind == "audio":
        media.audios.placed += 1
        return audio_reference(value, where)
    media.videos.placed += 1
    return video_reference(value, where, settings)


def _split(text: str, media: Media) -> Iterator[DraftPart]:
    """Yield the texts, images, videos and audios of a text with placeholders."""
    end = 0
    for found in PLACEHOLDER.finditer(text):
        yield text[end : found.start()]
        yield media.take(found[0])
        end = found.end()
    yield text[end:]


def _id(record: Mapping[str, Any], number: int, where: str) -> str:
    value = record.get("id", number)
    if not isinstance(value, str | int) or value == "":
        raise DatasetError(f"{where}: `id` is not a text", "give every record a text, or none, as its id")
    try:
        return check_id(str(value))
    except ValueError as error:
        raise DatasetError(f"{where}: id: {error}", "remove the character") from error


def _tags(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    tags = record.get("tags", [])
    if not isinstance(tags, list) or any(not isinstance(tag, str) for tag in tags):
        raise DatasetError(f"{where}: `tags` is not a list of texts", FORMAT_HINT)
    return tuple(tags)


def _quote(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in list(names)[:12]) or "none"
