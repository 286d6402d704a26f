"""The cluster without one: errors of the connection, and an installation without Ray."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mcpmq.errors import ClusterError, MissingExtra
from mcpmq.system import ray_cluster
from mcpmq.system.ray_cluster import RayCluster


class AuthenticationError(Exception):
    """The token is wrong."""


def fake_ray(*errors: Exception) -> Any:
    """Return a module whose `init` raises these errors one after the other, and then connects."""
    remaining, addresses = list(errors), list[object]()

    def init(address: object = None, **options: object) -> None:
        addresses.append(address)
        if remaining:
            raise remaining.pop(0)

    exceptions = SimpleNamespace(AuthenticationError=AuthenticationError)
    return SimpleNamespace(
        init=init, shutdown=lambda: addresses.append("shutdown"), exceptions=exceptions, log=addresses
    )


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it."""
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(MissingExtra, match="`ray` is not installed") as found, RayCluster.connect("auto"):
        pass
    assert "mcpmq[ray]" in found.value.hint


def test_a_head_that_is_not_ready_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are refused are repeated until the time limit; the connection is closed in the end."""
    ray = fake_ray(ConnectionError("not ready"), ConnectionError("not ready"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_cluster, "RETRY_SECONDS", 0.0)

    with RayCluster.connect("head:6379"):
        assert ray.log == ["head:6379"] * 3
    assert ray.log[-1] == "shutdown"

    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", -1.0)
    monkeypatch.setitem(sys.modules, "ray", fake_ray(ConnectionError("refused\nmore lines")))
    with pytest.raises(ClusterError, match="no connection to the Ray cluster `head:6379`: refused$"):
        RayCluster.connect("head:6379").__enter__()


def test_a_wrong_token_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint has the place of the token."""
    monkeypatch.setitem(sys.modules, "ray", fake_ray(AuthenticationError("invalid token")))

    with pytest.raises(ClusterError, match="invalid token") as found:
        RayCluster.connect("local").__enter__()
    assert "auth_token" in found.value.hint
