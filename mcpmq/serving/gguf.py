"""Chat engine of GGUF artifacts: llama.cpp in this process, which tokenizes, preprocesses images and samples."""

import base64
import io
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.errors import DatasetError, EngineError
from mcpmq.evaluate.measure import engine_name
from mcpmq.families import family_named
from mcpmq.families.family import Family
from mcpmq.formats.kv_cache import F16_CACHE, KvCache
from mcpmq.formats.support import no_audio_reason
from mcpmq.runners.llamacpp import llamacpp
from mcpmq.runners.llamacpp.artifact_files import ArtifactFiles, artifact_files
from mcpmq.runners.llamacpp.language import CONTEXT_MULTIPLE, LanguageModel
from mcpmq.serving.audio import wav_part
from mcpmq.serving.decoding import context_overflow
from mcpmq.serving.engine import Answer, Completion, FinishReason, Message, Piece, Sampling, TokenLogprob
from mcpmq.serving.image_tags import with_image_tags
from mcpmq.serving.preprocessing import EnginePreprocessing
from mcpmq.system.audio_file import Waveform
from mcpmq.system.temporary_folder import temporary_folder

Event = Mapping[str, Any]  # of a stream in the OpenAI format
PREPROCESSING_NOTE = (
    "llama.cpp resizes and slices this image with another filter than the original, and for some sizes with another"
    " grid: answers can differ; `--exact` uses the slices of the original"
)
AUDIO_NOTE = (
    "llama.cpp pads audio with silence to segments of 30 seconds, whose tokens are part of the prompt; `--exact` leaves"
    " them out"
)
VIDEO_HINT = "ask with `--exact`, which gives llama.cpp the frames of the original"
PNG_COMPRESSION = 1  # fast: the image stays in this process


@dataclass(frozen=True, slots=True)
class LlamaCppEngine:
    """A model in llama.cpp's server, called in this process; its socket is private and not used."""

    label: str
    family: Family
    context_length: int
    server: list[Any]  # one, until it is closed
    preprocessing: EnginePreprocessing | None  # None for a text-only model
    resources: ExitStack = field(default_factory=ExitStack)
    no_audio: str = ""  # why the artifact of a model with an audio encoder has none

    @property
    def has_vision(self) -> bool:
        """True if the model accepts images."""
        return self.preprocessing is not None

    @property
    def has_audio(self) -> bool:
        """True if the model accepts audio."""
        return self.family.has_audio and not self.no_audio

    def generate(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """Yield the answer to the last message, and return its statistics; see `ChatEngine`."""
        images = [image for message in messages for image in message.images]
        if images and self.preprocessing is None:
            raise DatasetError("the chat has an image, but the model is text-only", "ask without an image")
        if any(message.videos for message in messages):
            raise DatasetError("the chat has a video, which the server of llama.cpp does not accept", VIDEO_HINT)
        has_audio = any(message.audio for message in messages)
        if has_audio and not self.family.has_audio:
            raise DatasetError("the chat has audio, but the model has no audio encoder", "ask without audio")
        if has_audio and self.no_audio:
            raise DatasetError("the chat has audio, but the artifact has no audio encoder", self.no_audio)
        check_texts(self.family, messages)
        last: Event = {}
        reason: FinishReason = "stop"
        with _Stream(self.server[0], chat_request(self.family, messages, sampling)) as events:
            for event in events:
                if "error" in event:
                    raise _error(event["error"])
                last = event
                for choice in event["choices"]:
                    reason = choice["finish_reason"] or reason
                    if choice["delta"].get("content"):
                        yield Piece(choice["delta"]["content"], _logprobs(choice))
        resized = self.preprocessing is not None and any(map(self.preprocessing.resizes, images))
        notes = {PREPROCESSING_NOTE: resized, AUDIO_NOTE: has_audio}
        return _completion(last, reason, tuple(note for note, applies in notes.items() if applies))

    def close(self) -> None:
        """Free the memory of the model."""
        self.server.clear()
        self.resources.close()


def open_engine(artifact: Artifact, threads: int, context: int, kv_cache: KvCache | None = None) -> LlamaCppEngine:
    """Load a GGUF artifact, with a KV cache of these types.

    Raises:
        ArtifactError: the folder is not a GGUF artifact with all files.
        EngineError: llama.cpp cannot load a file.
        MissingExtra: llama.cpp is not installed.
    """
    files, family = artifact_files(artifact.path), family_named(artifact.manifest.family)
    vocabulary = LanguageModel(llamacpp(), files.language, vocab_only=True)
    context = min(-(-context // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE, vocabulary.context_length)
    vocabulary.close()
    resources = ExitStack()
    folder = resources.enter_context(temporary_folder())
    server = _server(files, threads, context, folder, kv_cache or F16_CACHE)
    preprocessing = EnginePreprocessing.read(files.mmproj) if files.mmproj else None
    no_audio = no_audio_reason(family, "gguf", artifact.manifest.recipe) or ""
    return LlamaCppEngine(engine_name("gguf"), family, context, [server], preprocessing, resources, no_audio)


def _server(files: ArtifactFiles, threads: int, context: int, folder: Path, cache: KvCache) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(files.language)
    if files.mmproj:
        parameters.mmproj.path = str(files.mmproj)
    parameters.n_ctx, parameters.n_parallel, parameters.use_jinja, parameters.ui = context, 1, True, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.hostnames, parameters.api_keys = [str(folder / "server.sock")], [secrets.token_hex()]
    set_cache_types(parameters, cache)
    parameters.fit_params = False  # the context is the requested one
    parameters.cache_ram_mib, parameters.n_threads_http = 0, 1  # by default, 8 GiB of prompts are kept
    parameters.offline, parameters.verbosity = True, 0
    try:
        server = xllamacpp.Server(parameters)
        # A server that is freed before its queue runs waits for it without end; an answer shows that it runs.
        server.handle_completions({"prompt": "a", "max_tokens": 0})
        return server
    except Exception as error:  # the wheel raises several types
        raise EngineError(f"llama.cpp cannot load `{files.language}`: {error}", "export the artifact again") from error


def set_cache_types(parameters: Any, cache: KvCache) -> None:
    """Set the types of the KV cache in the parameters of llama.cpp's server, and flash attention where they need it."""
    import xllamacpp

    parameters.cache_type_k, parameters.cache_type_v = map(xllamacpp.ggml_type, cache.ids)
    if cache.needs_flash_attention:
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED


class _Stream:
    """Events of a request, which runs in a thread of its own; leaving the block cancels it."""

    def __init__(self, server: Any, request: Mapping[str, Any]) -> None:
        self._server, self._request = server, dict(request)
        self._events: SimpleQueue[Event | BaseException | None] = SimpleQueue()
        self._cancelled = False
        self._thread = Thread(target=self._run, daemon=True, name="llama.cpp")

    def __enter__(self) -> "_Stream":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._cancelled = True
        self._thread.join()

    def __iter__(self) -> "_Stream":
        return self

    def __next__(self) -> Event:
        event = self._events.get()
        if event is None:
            raise StopIteration
        if isinstance(event, BaseException):
            raise EngineError(f"llama.cpp failed: {event}", "") from event
        return event

    def _receive(self, event: Event) -> bool:
        """Take an event; return True to end the request."""
        self._events.put(event)
        return self._cancelled

    def _run(self) -> None:
        try:
            self._server.handle_chat_completions(self._request, self._receive)
            self._events.put(None)
        except BaseException as error:
            self._events.put(error)


def chat_request(family: Family, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
    """Return a streamed request in the format of OpenAI, with the tags around images that llama.cpp does not add."""
    request: dict[str, Any] = {
        "messages": engine_messages(family, messages),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,  # llama.cpp would sample from 40 tokens, and from those with 5 % of the highest probability
        "min_p": 0.0,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    if sampling.seed is not None:
        request["seed"] = sampling.seed
    if sampling.top_logprobs is not None:
        request |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return request


def engine_messages(family: Family, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in the format of OpenAI, with images as PNG and audio as WAV, and the tags of the processor."""
    contents = with_image_tags([one.content for one in messages], family.prompt_format)
    return [
        {
            "role": one.role,
            "content": [_part(part) for part in content] if one.images or one.audio else "".join(map(str, content)),
        }
        for one, content in zip(messages, contents, strict=True)
    ]


def _part(part: object) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Waveform):
        return wav_part(part)
    assert isinstance(part, Image.Image)  # requests have no video
    return {"type": "image_url", "image_url": {"url": _data_url(part)}}


def _data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=PNG_COMPRESSION)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def check_texts(family: Family, messages: Sequence[Message]) -> None:
    """Check that no text has a token that structures prompts, which llama.cpp would not read as text.

    Raises:
        DatasetError: a text has one.
    """
    prompt_format = family.prompt_format
    tokens = ("<|im_start|>", "<__media__>", prompt_format.end_of_turn, prompt_format.image_token)
    for text in (text for message in messages for text in message.texts):
        if found := [token for token in tokens if token in text]:
            raise DatasetError(
                f"the chat contains the special token `{found[0]}`, which structures prompts",
                "remove the token; images are given beside the text",
            )


def _logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return tuple(
        TokenLogprob(
            one["id"],
            one["token"],
            one["logprob"],
            tuple((other["token"], other["logprob"]) for other in one["top_logprobs"]),
        )
        for one in tokens
    )


def _completion(last: Event, reason: FinishReason, notes: tuple[str, ...]) -> Completion:
    usage, timings = last["usage"], last["timings"]
    return Completion(
        finish_reason=reason,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        prompt_ms=timings["prompt_ms"],
        predicted_ms=timings["predicted_ms"],
        notes=notes,
    )


def _error(error: Mapping[str, Any]) -> DatasetError | EngineError:
    if error.get("type") == "exceed_context_size_error":
        return context_overflow(error["n_prompt_tokens"], error["n_ctx"])
    return EngineError(f"llama.cpp failed: {error.get('message')}", "ask again with another prompt")
