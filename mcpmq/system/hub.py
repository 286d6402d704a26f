"""Requests to the hub: names of repositories, the token, and a hint for every error of huggingface_hub."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from typing import Literal

from mcpmq.errors import McpmqError

TOKEN_VARIABLE = "HF_TOKEN"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
HUB_ID = re.compile(rf"(?P<repository>{REPOSITORY.pattern})(@(?P<revision>[\w][\w./-]*))?", re.ASCII)
NETWORK_HINT = "check the network and the variable `HF_ENDPOINT`, then run the command again; complete files are kept"
HINT_BY_STATUS = {
    401: ("the token is missing or not valid", f"set `{TOKEN_VARIABLE}` to a token with access"),
    403: ("the access is not permitted", f"set `{TOKEN_VARIABLE}` to a token with the permission that this needs"),
    429: ("too many requests", "wait some minutes, then run the command again; complete files are kept"),
}


def hub_token() -> str | Literal[False]:
    """Return the token in the environment, or False for requests without one. Stored logins are not used."""
    return os.environ.get(TOKEN_VARIABLE) or False


@contextmanager
def hub_requests(name: str, error_type: type[McpmqError]) -> Iterator[None]:
    """Run calls of huggingface_hub without its progress bars and warnings; raise its errors as `error_type`.

    `name` is the repository in messages: `owner/name`, or `owner/name@revision`.

    Raises:
        McpmqError: of `error_type`: the hub cannot be reached, rejected the request, or sent incomplete data.
        OSError: an error of the file system.
    """
    from httpx2 import HTTPError
    from huggingface_hub.errors import XetDownloadError

    with _no_output():
        try:
            yield
        except (HTTPError, OSError, ValueError, RuntimeError, XetDownloadError) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                raise
            reason, hint = _describe(error)
            raise error_type(f"`{name}` on the hub: {reason}", hint) from error


@contextmanager
def _no_output() -> Iterator[None]:
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    verbosity, drawn = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(ERROR)
    if drawn:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if drawn:
            enable_progress_bars()


def _describe(error: BaseException) -> tuple[str, str]:
    """Return the reason of a failed request, and a hint."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        IncompleteSnapshotError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match _cause(error):
        case GatedRepoError():
            return "access is granted by its owner only", (
                f"accept its terms on its page, and set `{TOKEN_VARIABLE}` to a token of the same account"
            )
        case RevisionNotFoundError():
            return "the revision does not exist", "give a branch, a tag, or the whole hash of a commit"
        case RepositoryNotFoundError():
            return "it does not exist, or it is private", (
                f"correct the name, or set `{TOKEN_VARIABLE}` to a token with access; a local folder has to exist"
            )
        case OfflineModeIsEnabled():
            return "not all of its files are in the cache, and `HF_HUB_OFFLINE` is set", (
                "unset the variable, or download the checkpoint elsewhere and give the path of its folder"
            )
        case IncompleteSnapshotError():
            return "it cannot be reached, and not all of its files are in the cache", NETWORK_HINT
        case HfHubHTTPError(response=response) if response.status_code in HINT_BY_STATUS:
            return HINT_BY_STATUS[response.status_code]
        case cause:
            return _first_line(cause), (
                f"{NETWORK_HINT}; or download the checkpoint elsewhere and give the path of its folder"
            )


def _cause(error: BaseException) -> BaseException:
    """Return the error of the request that a general error was raised from."""
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    general = isinstance(error, LocalEntryNotFoundError) and not isinstance(error, IncompleteSnapshotError)
    if (general or type(error) is RuntimeError) and error.__cause__ is not None:
        return _cause(error.__cause__)
    return error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
