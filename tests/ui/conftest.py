"""A terminal of 80 columns for the tests of `ui`."""

import pytest

from mcpmq import ui


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set 80 columns and the default verbosity."""
    monkeypatch.setenv("COLUMNS", "80")
    ui.set_verbosity()
