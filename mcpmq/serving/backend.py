"""Choice of the engine of a model: llama.cpp's server for GGUF, and a worker with a chat engine for others."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import EngineError
from mcpmq.evaluate.measure import engine_name
from mcpmq.families import family_named
from mcpmq.families.family import Family
from mcpmq.formats.kv_cache import F16_CACHE, KvCache, check_cache
from mcpmq.formats.support import no_audio_reason
from mcpmq.serving.artifacts import (
    CONTEXT,
    NO_HEADS,
    check_artifact_cache,
    check_no_adapters,
    find_artifact,
    is_checkpoint,
)
from mcpmq.serving.engine import MAX_TOKENS
from mcpmq.serving.engine_client import EngineClient
from mcpmq.serving.engine_process import EngineProcess, running_engine
from mcpmq.serving.gguf import AUDIO_NOTE
from mcpmq.serving.limits import LIMITS, Limits
from mcpmq.serving.served_model import (
    NO_AUDIO_ENCODER,
    NO_VISION_ENCODER,
    EngineFacts,
    ServedModel,
    describe,
    describe_original,
    model_name,
)

LLAMA_SERVER, WORKER = "mcpmq.serving.llama_server", "mcpmq.serving.worker"
VISION_COMPONENT = "vision+projector"
SPARE_HTTP_THREADS = 4  # of llama.cpp, beside one for every slot
UNSUPPORTED = ("response_format", "logit_bias", "frequency_penalty", "presence_penalty", "ignore_eos")  # by workers
NO_GGUF_VIDEO = "the server of llama.cpp does not accept them; serve the checkpoint or another format"
NO_FAMILY_VIDEO = "mcpmq does not support videos for this model; send frames as images"
PREPROCESSING_NOTE = (
    "llama.cpp slices and resizes images itself: answers about images that are not square can differ from the measured"
    " ones"
)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Address, key and resources of the server."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one
    slots: int = 1  # answers at a time
    context: int = CONTEXT  # tokens of every slot
    threads: int | None = None  # None: one for every core
    key: str | None = None
    max_tokens: int = MAX_TOKENS  # of an answer
    adapters: tuple[Path, ...] = ()  # folders of LoRA adapters, merged into a checkpoint
    kv_cache: KvCache | None = None  # types of the KV cache of llama.cpp; None for F16

    @property
    def is_local(self) -> bool:
        """Return whether only programs on this computer can connect."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


@contextmanager
def running_model(
    path: Path, options: ServerOptions, limits: Limits = LIMITS
) -> Iterator[tuple[EngineProcess, ServedModel]]:
    """Run the engine of the model in a folder; yield it, and the description of the model.

    Raises:
        McpmqError: the folder has no model, or the engine cannot load it, or not with several slots.
    """
    if is_checkpoint(path):
        check_cache(options.kv_cache, "torch", NO_HEADS)
        checkpoint = Checkpoint.open(path, adapters=options.adapters)
        with _running_worker(checkpoint.path, checkpoint.merged_name, checkpoint.family, options) as (engine, facts):
            yield engine, describe_original(checkpoint, facts, limits)
        return
    artifact = find_artifact(path)
    check_no_adapters(artifact, options.adapters)
    check_artifact_cache(artifact, options.kv_cache)
    name, family = model_name(artifact), family_named(artifact.manifest.family)
    if artifact.manifest.kind == "gguf":
        running = _running_llama(artifact, name, options)
    else:
        running = _running_worker(artifact.path, name, family, options)
    with running as (engine, facts):
        yield engine, describe(artifact, facts, limits)


@contextmanager
def _running_llama(
    artifact: Artifact, name: str, options: ServerOptions
) -> Iterator[tuple[EngineProcess, EngineFacts]]:
    language, *_ = artifact.component_files("language")  # llama.cpp finds the other parts of a split file
    mmproj = artifact.component_files(VISION_COMPONENT)
    settings: dict[str, Any] = {
        "name": name,
        "language": str(language.absolute()),
        "mmproj": str(mmproj[0].absolute()) if mmproj else None,
        "slots": options.slots,
        "context": options.context,
        "threads": _threads(options),
        "http_threads": options.slots + SPARE_HTTP_THREADS,
        "kv_cache": str(options.kv_cache or F16_CACHE),
    }
    with running_engine(LLAMA_SERVER, settings) as engine:
        context = min(options.context, asyncio.run(EngineClient(engine, LIMITS).trained_context()))
        family = family_named(artifact.manifest.family)
        no_audio = no_audio_in(artifact, family)
        notes = ((PREPROCESSING_NOTE,) if mmproj else ()) + (() if no_audio else (AUDIO_NOTE,))
        names = {"family": family, "kv_cache": settings["kv_cache"], "no_audio": no_audio, "no_video": NO_GGUF_VIDEO}
        yield engine, EngineFacts(engine_name("gguf"), context, bool(mmproj), notes, **names)


def no_audio_in(artifact: Artifact, family: Family) -> str:
    """Return why a GGUF artifact accepts no audio; an empty text if it does."""
    if not family.has_audio:
        return NO_AUDIO_ENCODER
    return no_audio_reason(family, "gguf", artifact.manifest.recipe) or ""


def no_video_in(family: Family) -> str:
    """Return why a worker accepts no video; an empty text if it does."""
    if not family.has_vision:
        return NO_VISION_ENCODER
    return "" if family.prompt_format.supports_video else NO_FAMILY_VIDEO


@contextmanager
def _running_worker(
    path: Path, name: str, family: Family, options: ServerOptions
) -> Iterator[tuple[EngineProcess, EngineFacts]]:
    if options.slots > 1:
        raise EngineError(f"{options.slots} slots: only llama.cpp answers several requests at a time", "use --slots 1")
    settings: dict[str, Any] = {
        "name": name,
        "path": str(path.absolute()),
        "context": options.context,
        "threads": _threads(options),
        "adapters": [str(folder.absolute()) for folder in options.adapters],
    }
    with running_engine(WORKER, settings) as engine:
        facts = engine.facts
        no_audio = "" if facts["audio"] else NO_AUDIO_ENCODER
        settled = facts["engine"], facts["context"], facts["vision"]
        yield engine, EngineFacts(*settled, unsupported=UNSUPPORTED, no_audio=no_audio, no_video=no_video_in(family))


def _threads(options: ServerOptions) -> int:
    return options.threads or os.cpu_count() or 1
