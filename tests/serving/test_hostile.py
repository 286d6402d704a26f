"""A short campaign of hostile requests; `python -m tests.serving.hostile` runs a long one."""

from tests.serving.hostile import run, trap
from tests.serving.hostile_requests import Target
from tests.serving.requests import Served, png


def test_hostile_requests_change_nothing(served: Served) -> None:
    """All responses have the correct status, ordinary answers do not change, and no URL is fetched."""
    starts = served.engine.starts
    with trap() as (port, fetched):
        campaign = run(Target(served.client, png(), port), count=100, seed=5)

    assert campaign.problems == []
    assert fetched == []
    assert served.engine.starts == starts
    assert len(campaign.ordinary_seconds) == 11
