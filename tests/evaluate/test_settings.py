"""Settings from command-line options."""

from pathlib import Path

import pytest

from mcpmq.evaluate import Settings


def test_settings_follow_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default is all cores; the cache is in the user's cache folder, or disabled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert Settings.from_options(3, use_cache=True).threads == 3
    assert Settings.from_options(None, use_cache=False).threads == 12
    assert Settings.from_options(None, use_cache=True).cache_folder == tmp_path / "mcpmq"
    assert Settings.from_options(None, use_cache=False).cache_folder is None


@pytest.mark.parametrize(
    ("names", "first"), [(None, None), ("cpu", "cpu"), ("cuda:1,cuda:0", "cuda:1"), ("cuda:all", "cuda")]
)
def test_the_first_device_of_several_evaluates(names: str | None, first: str | None) -> None:
    """The others share the samples of a calibration with it."""
    assert Settings(threads=1, device=names).first_device == first


def test_one_thread_is_used_if_the_number_of_cores_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """`os.cpu_count` returns None on some systems."""
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert Settings.from_options().threads == 1
    assert Settings.from_options().generate_answers
    assert not Settings(threads=1).generate_answers
