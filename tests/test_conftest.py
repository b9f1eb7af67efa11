from __future__ import annotations

import contextlib
import os
import socket

import pytest

from opd_core.paths import HomePaths, default_home
from tests.conftest import is_local


@pytest.mark.parametrize("address", [("127.0.0.1", 1), ("localhost", 1), ("::1", 1, 0, 0), "/tmp/socket"])
def test_loopback_and_unix_addresses_are_local(address: object) -> None:
    assert is_local(address)


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.com", 80), ("0.0.0.0", 80), ("2001:db8::1", 80)])
def test_other_addresses_are_not_local(address: object) -> None:
    assert not is_local(address)


def test_a_refused_connection_is_remembered_even_when_swallowed(no_network: list[object]) -> None:
    with contextlib.suppress(OSError), socket.socket() as client:
        client.settimeout(0)
        client.connect(("192.0.2.1", 80))
    assert no_network == [("192.0.2.1", 80)]
    no_network.clear()


def test_a_loopback_connection_works() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def test_every_test_has_a_home_of_its_own(home: HomePaths) -> None:
    assert default_home() == home.home
    assert not home.home.exists()
    assert [name for name in os.environ if name.startswith("OPD_")] == ["OPD_HOME"]
