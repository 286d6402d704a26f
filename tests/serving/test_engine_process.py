"""The process of the engine: errors at its start."""

import errno
from typing import Any

import pytest

from mcpmq.errors import EngineError
from mcpmq.serving.engine_process import running_engine


def test_a_process_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command does not wait for an engine, and the error has the reason of the system."""

    def fail(*_: object, **__: Any) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable", "python3")

    monkeypatch.setattr("mcpmq.system.child_process.subprocess.Popen", fail)

    reason = "no process can be started: .*Resource temporarily unavailable"
    with pytest.raises(EngineError, match=reason) as caught, running_engine("mcpmq.serving.worker", {}):
        pass
    assert caught.value.hint
