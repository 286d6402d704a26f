"""The command that answers prompts about images, videos and audio, once or in a chat."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcpmq.cli.options import SERVING_PANEL, KvCacheTypes, Lora, Threads

if TYPE_CHECKING:  # --help imports no library
    from PIL import Image

    from mcpmq.families.video_frames import VideoFrames
    from mcpmq.system.audio_file import Waveform

commands = typer.Typer()
STDIN = "-"


@commands.command(rich_help_panel=SERVING_PANEL)
def run(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="Artifact, output of convert, release, or checkpoint")
    ],
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="`-` reads it from stdin; without a prompt, a chat begins")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", "-i", metavar="FILE", help="Image file; may be repeated")
    ] = None,
    audio: Annotated[
        list[Path] | None, typer.Option("--audio", metavar="FILE", help="WAV or FLAC file; may be repeated")
    ] = None,
    videos: Annotated[
        list[Path] | None,
        typer.Option("--video", metavar="FILE", help="Video file or folder of frames; may be repeated"),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="N", min=0, help="0 takes the most probable token")
    ] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", metavar="N", min=0, max=1, help="Probability of the tokens to sample from")
    ] = 1,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", min=0, help="Seed of sampling")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Limit of an answer")] = 512,
    context: Annotated[int, typer.Option("--context", metavar="TOKENS", min=1, help="Context length")] = 8192,
    exact: Annotated[
        bool, typer.Option("--exact", help="Give llama.cpp the image slices of the original; others always get them")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="CHECKPOINT", help="Text files of the original, for --exact")
    ] = None,
    kv_cache: KvCacheTypes = None,
    lora: Lora = None,
    threads: Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Print answer, tokens and timings as JSON")] = False,
) -> None:
    """Ask a model about images, videos and audio: one prompt, or a chat with history"""
    _check_prompt(prompt, json)
    from mcpmq.formats.kv_cache import KvCache
    from mcpmq.serving.artifacts import open_engine
    from mcpmq.serving.engine import Message, Sampling
    from mcpmq.ui.answers import print_answer
    from mcpmq.ui.chat import run_chat

    sampling = Sampling(temperature, top_p, seed, max_tokens)
    text = sys.stdin.read() if prompt == STDIN else prompt
    media = _open_media(images, videos, audio)
    started = time.perf_counter()
    cache = KvCache.parse(kv_cache) if kv_cache else None
    engine = open_engine(artifact, threads, context, exact=exact, source=source, adapters=lora or (), kv_cache=cache)
    load_ms = 1000 * (time.perf_counter() - started)
    try:
        if text is None:
            run_chat(engine, sampling, media)
        else:
            print_answer(engine, [Message("user", (*media, text))], sampling, load_ms=load_ms, as_json=json)
    finally:
        engine.close()


def _open_media(
    images: list[Path] | None, videos: list[Path] | None, audio: list[Path] | None
) -> "list[Image.Image | VideoFrames | Waveform]":
    """Read the files of the options; images are first, then videos."""
    from mcpmq.families.video_frames import read_video
    from mcpmq.system.audio_file import read_audio
    from mcpmq.system.image_file import read_image

    return [
        *(read_image(file, "--image") for file in images or ()),
        *(read_video(file, "--video") for file in videos or ()),
        *(read_audio(file, "--audio") for file in audio or ()),
    ]


def _check_prompt(prompt: str | None, as_json: bool) -> None:
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("is empty", param_hint="PROMPT")
    if prompt is not None:
        return
    if as_json:
        raise typer.BadParameter("needs a PROMPT", param_hint="--json")
    if not sys.stdin.isatty():
        raise typer.BadParameter("is missing; a chat needs a terminal, and `-` reads stdin", param_hint="PROMPT")
