"""Verbosity and terminals for the tests of `ui`."""

import pytest

from mcpmq import ui


@pytest.fixture(autouse=True)
def default_verbosity() -> None:
    """Set the default verbosity."""
    ui.set_verbosity()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print to a terminal of 80 columns without colors."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")
