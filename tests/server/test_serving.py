"""The listening socket of `opd serve --http`: quick, and refused in one sentence."""

from __future__ import annotations

import asyncio
import socket

import pytest

from opd_core.errors import ConfigError
from server.serving import listen


def test_answers_leave_at_once_and_do_not_wait_for_an_acknowledgement() -> None:
    found: list[int] = []

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted = transport.get_extra_info("socket")
            found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    async def go() -> None:
        server = await asyncio.get_running_loop().create_server(Accepted, sock=listen("127.0.0.1", 0))
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await reader.read()
            writer.close()
            await writer.wait_closed()

    asyncio.run(go())
    assert found and found[0] != 0


def test_a_taken_port_is_told_as_such() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(ConfigError, match="is taken, perhaps by another opd server"):
        listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 300])
def test_an_address_of_another_machine_is_told_as_such(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen(host, 8765)
