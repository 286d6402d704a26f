"""Print an answer as it is generated, and its statistics."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mcpmq.serving.engine import ChatEngine, Completion, Message, Sampling
from mcpmq.system.escaping import escape_controls
from mcpmq.ui.terminal import print_notice


@dataclass(frozen=True, slots=True)
class PrintedAnswer:
    """The text of an answer, its statistics, and the milliseconds until its first text."""

    text: str
    end: Completion
    first_text_ms: float


def stream_answer(
    engine: ChatEngine, messages: Sequence[Message], sampling: Sampling, received: list[str], *, show: bool
) -> PrintedAnswer:
    """Generate an answer and, with `show`, write it to stdout; `received` gets its parts, also if it is interrupted."""
    started, first = time.perf_counter(), 0.0
    answer = engine.generate(messages, sampling)
    try:
        while True:
            text = next(answer).text
            first = first or time.perf_counter()
            received.append(text)
            if show:
                _write(text)
    except StopIteration as stop:
        end: Completion = stop.value
        ended = time.perf_counter()
        return PrintedAnswer("".join(received), end, 1000 * ((first or ended) - started))
    finally:
        answer.close()


def _write(text: str) -> None:
    sys.stdout.write(escape_controls(text))
    sys.stdout.flush()


def print_answer(
    engine: ChatEngine, messages: Sequence[Message], sampling: Sampling, *, load_ms: float, as_json: bool
) -> None:
    """Print one answer: its text as it comes, or JSON with tokens and timings; notes go to stderr.

    Raises:
        McpmqError: as `ChatEngine.generate`.
    """
    printed = stream_answer(engine, messages, sampling, [], show=not as_json)
    if as_json:
        data = answer_data(engine, printed, load_ms)
        sys.stdout.write(escape_controls(json.dumps(data, indent=1, ensure_ascii=False)) + "\n")
        return
    sys.stdout.write("\n")
    print_notes(printed.end.notes)
    if sys.stderr.isatty():
        print_notice(statistics(printed.end))


def answer_data(engine: ChatEngine, printed: PrintedAnswer, load_ms: float) -> dict[str, object]:
    """Return the fields of `--json`."""
    end = printed.end
    return {
        "answer": printed.text,
        "finish_reason": end.finish_reason,
        "engine": engine.label,
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "load_ms": round(load_ms, 1),
        "first_text_ms": round(printed.first_text_ms, 1),
        "prompt_ms": round(end.prompt_ms, 1),
        "predicted_ms": round(end.predicted_ms, 1),
        "tokens_per_second": round(end.tokens_per_second, 1),
        "notes": list(end.notes),
    }


def print_notes(notes: Sequence[str]) -> None:
    """Print differences from the original to stderr."""
    for note in notes:
        print_notice(f"note: {note}")


def statistics(end: Completion) -> str:
    """Return tokens and speed in one line."""
    reason = "" if end.finish_reason == "stop" else ", ended by the limit of tokens"
    tokens = f"{end.prompt_tokens:,} + {end.completion_tokens:,} tokens"
    return f"{tokens}, prompt {end.prompt_ms / 1000:.1f} s, {end.tokens_per_second:.1f} tokens/s{reason}"
