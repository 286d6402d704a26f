"""How to measure, as the command line has it."""

from pathlib import Path

import pytest

from mcpmq.evaluate import Settings


def test_settings_follow_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All cores unless told otherwise; the cache lies in the user's own cache folder or nowhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings.of(3, cache=True).threads == 3
    assert Settings.of(None, cache=False).threads >= 1
    assert Settings.of(None, cache=True).cache == tmp_path / "mcpmq"
    assert Settings.of(None, cache=False).cache is None
