"""The files of the page: HTML, style sheet and script, served from memory."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/audio.js": ("audio.js", "text/javascript"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}


def page_files() -> list[Route]:
    """Return a route for every file."""
    return [_route(path, name, media_type) for path, (name, media_type) in PAGE_FILES.items()]


def _route(path: str, name: str, media_type: str) -> Route:
    content = files(__name__).joinpath(name).read_bytes()

    async def show(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return Route(path, show)
