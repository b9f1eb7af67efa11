"""`opd serve --http`: the HTTP door on a port of this machine, until a person or a signal ends it."""

from __future__ import annotations

import errno
import socket
import sys

from opd_core.errors import ConfigError
from opd_core.types import clean_text
from server.home_use_cases import HomeUseCases
from server.settings import Settings
from server.upkeep import tend_soon
from server.web.app import http_app
from server.web.binding import Binding, bind
from server.web.ending import Ending, EndingServer
from server.web.listening import server_config
from server.web.token import read_or_make_token, token_path

BACKLOG = 256
SEND_BUFFER_BYTES = 131_072  # what the system keeps for a reader that takes nothing before we hear of it
MOST_SECONDS_TO_STOP = 5  # `Ending` needs about one


def serve_http(
    settings: Settings,
    host: str,
    port: int,
    *,
    allow_remote: bool = False,
    names: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
) -> int:
    """Listen and answer until SIGINT or SIGTERM; answers under way get a few seconds.

    Args:
        port: 0 takes a free one; the address printed has it.

    Raises:
        ConfigError: the address may not be used, or is taken.
        HomeError: the token cannot be made or read.
    """
    # before anything is touched; the port of 0 is known later
    bind(host, port or 1, allow_remote=allow_remote, names=names, origins=origins)
    token = read_or_make_token(settings.home)
    listener = listen(host, port)
    with listener:
        binding = bind(host, listener.getsockname()[1], allow_remote=allow_remote, names=names, origins=origins)
        cases = HomeUseCases(settings, is_local=False)
        ending = Ending(http_app(cases, token=token, hosts=binding.hosts, origins=binding.origins))
        print(_greeting(binding, str(token_path(settings.home))), file=sys.stderr, flush=True)
        config = server_config(
            ending, host, binding.port, lifespan="on", backlog=BACKLOG, timeout_graceful_shutdown=MOST_SECONDS_TO_STOP
        )
        tend_soon(cases)
        EndingServer(config, ending).run(sockets=[listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """The listening socket.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # the protocol is named: only then asyncio sets TCP_NODELAY, without which each answer takes 40 ms longer
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # connections inherit it
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener
    except (OSError, UnicodeError) as error:  # the latter: a name that no name can be
        raise ConfigError(_why_not(host, port, error), field="port") from None


def _why_not(host: str, port: int, error: OSError | UnicodeError) -> str:
    shown = clean_text(host, 80)
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"Port {port} of {shown} is taken, perhaps by another opd server. Stop it, or give another --port."
    reason = (isinstance(error, OSError) and error.strerror) or "it is no address"
    return f"The server cannot listen on {shown}, port {port}: {reason}. Give another --host or --port."


def _greeting(binding: Binding, token_file: str) -> str:
    lines = [
        f"Serving on {binding.url}; Ctrl-C ends it, runs go on.",
        f"The token lies in {token_file}; requests carry it in the header Authorization: Bearer TOKEN.",
        f"MCP: {binding.url}/mcp, for example: claude mcp add --transport http opd {binding.url}/mcp "
        f'--header "Authorization: Bearer $(cat {token_file})"',
        f"JSON: {binding.url}/openapi.json lists the routes; live events: {binding.url}/opd/events",
    ]
    return "\n".join([*lines, *([f"Warning: {binding.warning}"] if binding.warning else [])])
