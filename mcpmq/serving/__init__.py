"""Generate answers of an artifact in its engine, token by token, and serve them."""

from importlib.util import find_spec

from mcpmq.errors import MissingExtra

SERVER_PACKAGES = ("starlette", "uvicorn", "python_multipart")  # modules of the extra `serve`


def require_extra() -> None:
    """Check that the packages of the server are installed.

    Raises:
        MissingExtra: one is not.
    """
    for name in SERVER_PACKAGES:
        if find_spec(name) is None:
            raise MissingExtra("serve", name)
