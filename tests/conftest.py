"""For every test: an OPD_HOME of its own, no settings from the person's environment, no network."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opd_core.paths import HomePaths


@pytest.fixture
def home(tmp_path: Path) -> HomePaths:
    """The test's own OPD_HOME; nothing exists there yet."""
    return HomePaths(tmp_path / "home")


@pytest.fixture(autouse=True)
def own_environment(home: HomePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point OPD_HOME at the test's folder and hide every other setting."""
    for name in list(os.environ):
        if name.startswith(("OPD_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPD_HOME", str(home.home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Let sockets connect to this machine only; a test that tried more fails even if the error was swallowed.

    Gives the addresses that were refused so far.
    """
    attempts: list[object] = []

    def guard(name: str) -> None:
        real = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if not is_local(address):
                attempts.append(address)
                raise PermissionError(f"tests may not connect to {address!r}")
            return real(self, address)

        monkeypatch.setattr(socket.socket, name, connect)

    guard("connect")
    guard("connect_ex")
    yield attempts
    if attempts:
        pytest.fail(f"the test tried to connect to {attempts}")


def is_local(address: Any) -> bool:
    """Whether a socket address stays on this machine: a path, or a loopback host."""
    if isinstance(address, str | bytes):
        return True
    host = str(address[0])
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
