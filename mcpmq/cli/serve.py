"""The command that serves an artifact over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from mcpmq.cli.options import SERVING_PANEL, KvCacheTypes, Lora, Threads

commands = typer.Typer()
MAX_PORT = (1 << 16) - 1


@commands.command(rich_help_panel=SERVING_PANEL)
def serve(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="Folder of an artifact, a release or a checkpoint")
    ],
    host: Annotated[str, typer.Option("--host", metavar="NAME", help="Address to listen on")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=MAX_PORT, help="Port; 0 takes a free one")
    ] = 8000,
    slots: Annotated[int, typer.Option("--slots", metavar="N", min=1, help="Answers at a time")] = 1,
    context: Annotated[int, typer.Option("--context", metavar="TOKENS", min=1, help="Context length of a slot")] = 8192,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Limit of an answer")] = 512,
    api_key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", envvar="MCPMQ_API_KEY", help="Key that clients send")
    ] = None,
    kv_cache: KvCacheTypes = None,
    lora: Lora = None,
    threads: Threads = None,
) -> None:
    """Serve an artifact: OpenAI's chat completions, /invocations, and a page for the browser"""
    from mcpmq import ui
    from mcpmq.serving import require_extra

    require_extra()
    from mcpmq.formats.kv_cache import KvCache
    from mcpmq.serving.backend import ServerOptions
    from mcpmq.serving.server import serve

    cache = KvCache.parse(kv_cache) if kv_cache else None
    options = ServerOptions(host, port, slots, context, threads, api_key or None, max_tokens, tuple(lora or ()), cache)
    if not options.is_local and not options.key:
        ui.print_notice(f"`{host}` is reachable from other computers, and no --api-key is set")
    serve(artifact, options, lambda url: ui.print_notice(f"serving on {url}"))
