"""Where the HTTP door may stand: on this machine, or elsewhere when a person said so and named who may ask for it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from opd_core.errors import ConfigError
from opd_core.types import clean_text

NAME_PATTERN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
ORIGIN_PATTERN = re.compile(r"https?://(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
DEFAULT_PORTS = (80,)


@dataclass(frozen=True)
class Binding:
    """An address to listen on, and the exact Host and Origin headers it answers to."""

    host: str
    port: int
    hosts: frozenset[str]
    origins: frozenset[str]
    is_remote: bool

    @property
    def url(self) -> str:
        """What a client on this machine is told to use."""
        return f"http://{_written(self.host)}:{self.port}"

    @property
    def warning(self) -> str | None:
        """What a person must know before others can reach the door."""
        if not self.is_remote:
            return None
        return (
            "Other machines can reach this server, and plain HTTP carries the token readably. Put a proxy with TLS in "
            "front of it, or use it only in a network you trust."
        )


def bind(
    host: str, port: int, *, allow_remote: bool = False, names: Iterable[str] = (), origins: Iterable[str] = ()
) -> Binding:
    """Decide whether the server may listen there.

    Args:
        names: further Host headers, such as `opd.example.org` or `opd.example.org:8443`; one without a port stands
            for itself and for itself with the port.
        origins: web pages that may call, such as `https://opd.example.org`.

    Raises:
        ConfigError: an address other machines can reach without `allow_remote`, or one nobody could ask for.
    """
    named, from_web = tuple(names), tuple(origins)
    _check(port, named, from_web)
    is_remote = not is_loopback(host)
    if is_remote and not allow_remote:
        raise ConfigError(
            f"--host {clean_text(host, 80)!r} can be reached from other machines. Leave --host out to serve this "
            "machine alone, or add --allow-remote and --allow-host NAME with the name that clients will use.",
            field="host",
        )
    own = {host} if is_remote and _is_address(host) else set()
    if is_remote and not named and not own:
        raise ConfigError(
            f"--host {clean_text(host, 80)!r} does not say by which name clients will ask for this server. Add "
            "--allow-host NAME, such as --allow-host opd.example.org.",
            field="host",
        )
    hosts = allowed_hosts(host, port) | {spelling for name in named for spelling in _spellings(name, port)}
    return Binding(host, port, hosts, frozenset(f"http://{name}" for name in hosts) | set(from_web), is_remote)


def allowed_hosts(host: str, port: int) -> frozenset[str]:
    """The Host headers of an address: its own spelling with the port, and this machine's names for itself."""
    names = [*LOOPBACK_NAMES, *([_written(host)] if _is_address(host) else [])]
    return frozenset(spelling for name in names for spelling in _spellings(name, port, bare=port in DEFAULT_PORTS))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address; a name other than localhost never counts."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_address(host: str) -> bool:
    """Whether the host is one address of one machine (and not a name, and not "every address")."""
    try:
        return not ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _spellings(name: str, port: int, bare: bool = True) -> list[str]:
    has_port = re.search(r":[0-9]+$", name.rpartition("]")[2]) is not None
    if has_port:
        return [name]
    return [f"{name}:{port}", *([name] if bare else [])]


def _check(port: int, names: tuple[str, ...], origins: tuple[str, ...]) -> None:
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port} is no port. Give a number from 1 to 65535, such as 8765.", field="port")
    for name in names:
        if not NAME_PATTERN.fullmatch(name):
            raise ConfigError(
                f"--allow-host {clean_text(name, 80)!r} is no host name. Give one such as opd.example.org or "
                "opd.example.org:8443, without http:// and without a '*'.",
                field="allow_host",
            )
    for origin in origins:
        if not ORIGIN_PATTERN.fullmatch(origin):
            raise ConfigError(
                f"--allow-origin {clean_text(origin, 80)!r} is no origin. Give one such as https://opd.example.org, "
                "in small letters, without a path and without a '*'.",
                field="allow_origin",
            )
