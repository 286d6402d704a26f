"""Errors of requests, in the JSON of OpenAI's API."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

RETRY_SECONDS = 1
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that is not answered; the message is for the client and has no paths of the server."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param

    def content(self) -> Mapping[str, Any]:
        """Return the JSON of the error."""
        kind = "server_error" if self.status >= 500 else KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.status}}

    def response(self) -> JSONResponse:
        """Return the response; one with status 503 names the time after which the client may try again."""
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.status == 503 else None
        return JSONResponse(self.content(), self.status, headers)


def engine_unavailable() -> RequestError:
    """Return the error of a request during the start of the engine, or after its end."""
    return RequestError(503, "the engine is starting; try again")
