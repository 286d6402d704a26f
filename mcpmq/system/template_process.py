"""Render untrusted Jinja templates in a process with limits of processor time and memory.

    python -m mcpmq.system.template_process

writes a line when it is ready, then reads a request per line from stdin, JSON with `source` and `variables` (null: only
compile), and writes a reply per line, JSON with `text` or `error`. jinja2 has no limits of its own: nested loops,
repeated concatenation and padding of strings take any amount of time and memory.
"""

import json
import resource
import signal
import sys
from collections.abc import Mapping
from functools import lru_cache
from itertools import takewhile
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mcpmq.system.untrusted_template import MAX_CPU_SECONDS

MAX_MEMORY_NBYTES = 512 << 20  # of address space, in addition to that of the interpreter
MAX_OUTPUT_CHARACTERS = 1 << 22
MAX_PRODUCT = 1 << 20


class _Sandbox(ImmutableSandboxedEnvironment):
    """Sandbox that also rejects large repetitions and powers."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(value) if isinstance(value, str | list | tuple) else abs(value) for value in (left, right)]
        if operator == "**" or sizes[0] * sizes[1] > MAX_PRODUCT:
            raise TemplateError(f"the operands of `{operator}` are too large")
        return super().call_binop(context, operator, left, right)


def serve() -> None:
    """Reply to requests until stdin ends; a request that takes too long ends the process by SIGPROF."""
    _limit_memory()
    _write_line({"text": "ready"})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
        reply = _reply(**json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write_line(reply)


def _write_line(reply: Mapping[str, str]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def _limit_memory() -> None:
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - pathlib is not imported
            limit = int(file.read().split()[0]) * resource.getpagesize() + MAX_MEMORY_NBYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _reply(source: str, variables: Mapping[str, Any] | None) -> dict[str, str]:
    try:
        template = _compile(source)
        return {"text": "" if variables is None else _render(template, variables)}
    except MemoryError:
        return {"error": f"it needs more than {MAX_MEMORY_NBYTES >> 20} MiB of memory"}
    except Exception as error:  # a template can raise any error
        return {"error": str(error) or type(error).__name__}


@lru_cache(maxsize=8)
def _compile(source: str) -> Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _raise
    return environment.from_string(source)


def _render(template: Template, variables: Mapping[str, Any]) -> str:
    pieces = list(takewhile(_output_limit(), template.generate(**variables)))
    return "".join(pieces)


def _output_limit() -> Any:
    total = 0

    def within(piece: str) -> bool:
        nonlocal total
        total += len(piece)
        if total > MAX_OUTPUT_CHARACTERS:
            raise TemplateError(f"its output exceeds {MAX_OUTPUT_CHARACTERS:,} characters")
        return True

    return within


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


if __name__ == "__main__":
    serve()
